"""A routed language model and a text that are small enough to train in a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentbridge.config import Origin, Tree, build
from latentbridge.job import Run
from latentbridge.layer_routing.config import LayerRoutingConfig
from latentbridge.layer_routing.train import LayerRoutingLm
from latentbridge.rundir import RunDir

TINY = {
    "seed": 5,
    "text": {"context": 11, "eval_tokens": 77},
    "model": {"dim": 24, "layers": 4, "heads": 3, "activation": "silu", "tied": False},
    "gdn": {"key_width": 5, "value_width": 7},
    "mixers": ["gdn", "routed", "routed", "softmax"],
    "optim": {"lr": 1e-2, "betas": [0.9, 0.95]},
    "train": {"engine": "torch", "steps": 6, "batch_size": 4, "log_every": 1, "eval_every": 3},
    "eval": {"batch_size": 3},
}


@pytest.fixture(scope="session")
def config_of() -> Callable[..., LayerRoutingConfig]:
    """Settings by dotted key upon the tiny ones."""

    def make(**changes: Any) -> LayerRoutingConfig:
        origins = {(): Origin("test.yaml", 1)}
        return build(LayerRoutingConfig, Tree(TINY, origins).override(Tree(changes, origins)))

    return make


@pytest.fixture
def make(tmp_path: Path, config_of: Callable[..., LayerRoutingConfig]) -> Callable[..., LayerRoutingLm]:
    """The workload of such settings."""

    def workload(**changes: Any) -> LayerRoutingLm:
        folder = tmp_path / "launch" / "run"
        folder.mkdir(parents=True, exist_ok=True)
        return LayerRoutingLm(config_of(**changes), Run(RunDir(folder)))

    return workload
