"""A language model and a text that are small enough to train in a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentbridge.config import Origin, Tree, build
from latentbridge.job import Run
from latentbridge.lm.config import LmConfig
from latentbridge.lm.train import LanguageModeling
from latentbridge.rundir import RunDir

TINY = {
    "seed": 5,
    "text": {"context": 11, "eval_tokens": 77},
    "model": {"dim": 24, "layers": 2, "heads": 3},
    "optim": {"lr": 1e-2, "betas": [0.9, 0.95]},
    "train": {"engine": "torch", "steps": 6, "batch_size": 4, "log_every": 1, "eval_every": 3},
    "eval": {"batch_size": 3},
}


@pytest.fixture(scope="session")
def config_of() -> Callable[..., LmConfig]:
    """Settings by dotted key upon the tiny ones."""

    def make(**changes: Any) -> LmConfig:
        origins = {(): Origin("test.yaml", 1)}
        return build(LmConfig, Tree(TINY, origins).override(Tree(changes, origins)))

    return make


@pytest.fixture
def make(tmp_path: Path, config_of: Callable[..., LmConfig]) -> Callable[..., LanguageModeling]:
    """The workload of such settings, or one derived from it."""

    def workload(kind: type[LanguageModeling] = LanguageModeling, **changes: Any) -> LanguageModeling:
        folder = tmp_path / "launch" / "run"
        folder.mkdir(parents=True, exist_ok=True)
        return kind(config_of(**changes), Run(RunDir(folder)))

    return workload
