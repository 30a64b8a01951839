"""A mixture of OLMoE's family that is small enough for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentbridge.config import Origin, Tree, build
from latentbridge.job import Run
from latentbridge.perft.config import PerftConfig
from latentbridge.perft.train import Perft
from latentbridge.rehearsal.tiny import tiny_mixture
from latentbridge.rundir import RunDir

TINY = {
    "seed": 5,
    "problems": {"train_examples": 24, "eval_examples": 9, "templates": "one_step"},
    "adapters": {"variant": "shared", "rank": 3, "dropout": 0.0},
    "optim": {"lr": 1e-2},
    "train": {"engine": "torch", "steps": 4, "batch_size": 4, "log_every": 1, "eval_every": 2},
    "eval": {"batch_size": 3},
}
VARIANTS = {
    "shared": {},
    "embedded": {"adapters.variant": "embedded"},
    "routed": {"adapters": {"variant": "routed", "num_adapters": 4, "top_k": 2}},
}


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    shape = {"width": 24, "layers": 2, "num_experts": 5, "top_k": 2}
    return tiny_mixture(
        tmp_path_factory.mktemp("models"), "mixture", tokenizer_of="bundled:llama_bpe", **shape
    )


@pytest.fixture(scope="session")
def config_of(mixture: str) -> Callable[..., PerftConfig]:
    """Settings by dotted key upon the tiny ones; variant: one of VARIANTS."""

    def make(variant: str = "shared", **changes: Any) -> PerftConfig:
        origins = {(): Origin("test.yaml", 1)}
        tree = Tree({**TINY, "frozen": {"model": mixture}}, origins).override(
            Tree(VARIANTS[variant], origins)
        )
        return build(PerftConfig, tree.override(Tree(changes, origins)))

    return make


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Run]:
    def make(name: str = "run") -> Run:
        folder = tmp_path / name / "run"
        folder.mkdir(parents=True, exist_ok=True)
        return Run(RunDir(folder))

    return make


@pytest.fixture
def make(config_of: Callable[..., PerftConfig], run_of: Callable[..., Run]) -> Callable[..., Perft]:
    """The workload of such settings."""
    return lambda variant="shared", **changes: Perft(config_of(variant, **changes), run_of())
