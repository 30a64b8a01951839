"""Each published fault of adapters in mixtures, put back: the rehearsal finds it before any GPU hour."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from latentbridge.config import Tree, build, read_yaml
from latentbridge.nn import adapters
from latentbridge.perft import examples, rehearsal
from latentbridge.perft.base_rehearsal import MoeBaseRehearsal
from latentbridge.perft.config import MoeBaseConfig, PerftConfig
from latentbridge.rehearsal import checks
from latentbridge.rehearsal.contract import Caught, Stage

CONFIGS = Path(__file__).parents[2] / "configs" / "perft"
MINE, BASE = rehearsal.PerftRehearsal(), MoeBaseRehearsal()
KINDS = {
    "shared": {},
    "embedded": {"adapters": {"variant": "embedded", "kind": "parallel"}},
    "routed": {"adapters": {"variant": "routed", "num_adapters": 4, "top_k": 2, "dropout": 0.1}},
    "routed_1": {"adapters": {"variant": "routed", "num_adapters": 4, "top_k": 1, "balance_weight": 0.0}},
}


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    """Makes the stage of a config that ships, with changes."""
    number = count()

    def make(changes: dict[str, Any] | None = None, name: str = "demo") -> Stage:
        tree = read_yaml(CONFIGS / f"{name}.yaml")
        of, mine = (MoeBaseConfig, BASE) if name == "stories_base" else (PerftConfig, MINE)
        config = build(of, tree.override(Tree(changes or {}, {(): tree.origin(())})))
        return Stage(mine, mine.shrink(config, tmp_path), tmp_path / f"stage{next(number)}", [config])

    return make


def every(made: Stage) -> list[str]:
    return [check.prove(made) for check in (*checks.CHECKS, *made.rehearsal.checks)]


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_all_kinds_pass_every_check(stage, ranks, kind: str):
    (found,) = ranks(every, stage(KINDS[kind]), world_size=1)
    assert len(found) == 11


def test_the_base_passes_every_check(stage, ranks):
    (found,) = ranks(every, stage(name="stories_base"), world_size=1)
    assert len(found) == 10


def test_routed_adapters_that_the_base_router_weights_are_caught(stage, monkeypatch):
    """Published: chosen by a gate of their own, multiplied by the base's weights."""
    plain = adapters.dropless

    def weighted(x, routing, stack):
        routing.gates = routing.gates.detach()
        return plain(x, routing, stack)

    monkeypatch.setattr(adapters, "dropless", weighted)
    with pytest.raises(Caught, match="no gradient at 4 weights of the adapters' gates"):
        rehearsal.routers(stage(KINDS["routed"]))


def test_scored_prompts_are_caught(stage, monkeypatch):
    """Published: the loss and the evaluation were of all tokens."""
    plain = examples.Examples.take

    def whole(self, indices):
        batch = plain(self, indices)
        before = batch.places - 1
        targets = batch.ids.flatten()[batch.places]
        return examples.Batch(batch.ids, batch.real, before, targets, batch.num_tokens, batch.answers)

    monkeypatch.setattr(examples.Examples, "take", whole)
    with pytest.raises(Caught, match="read one by one"):
        rehearsal.labels(stage())


def test_adapters_that_do_not_start_at_nothing_are_caught(stage, monkeypatch):
    """Published: B began as 1e-6 N(0, 1)."""
    plain = adapters.AdapterStack.__init__

    def noisy(self, *args):
        plain(self, *args)
        torch.nn.init.normal_(self.down, std=1e-3)

    monkeypatch.setattr(adapters.AdapterStack, "__init__", noisy)
    with pytest.raises(Caught, match="do not start at 0"):
        rehearsal.identity(stage())


def test_a_trained_base_is_caught(stage):
    made = stage()
    weight = next(made.workload.lm.model.parameters())
    weight.requires_grad_(True)
    try:
        with pytest.raises(Caught, match="of the base would be trained"):
            rehearsal.routers(made)
    finally:
        weight.requires_grad_(False)
