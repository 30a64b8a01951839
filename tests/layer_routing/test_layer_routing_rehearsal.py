"""Each published fault of per-token routing, put back: the rehearsal finds it before a GPU hour is spent."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentbridge.config import Tree, build, read_yaml
from latentbridge.layer_routing import rehearsal
from latentbridge.layer_routing.config import LayerRoutingConfig
from latentbridge.layer_routing.train import LayerRoutingLm
from latentbridge.nn import layer_routing
from latentbridge.nn.decoder import CausalAttention
from latentbridge.rehearsal import checks
from latentbridge.rehearsal.contract import Caught, Stage

BASE = Path(__file__).parents[2] / "configs" / "layer_routing" / "demo.yaml"
MINE = rehearsal.LayerRoutingRehearsal()
ROUTED = {"mixers": ["gdn", "routed", "routed", "softmax"]}
BOTH = {**ROUTED, "routing": {"router_gradient": "both", "compute": "dense"}}
KINDS = {
    "static": {},
    "routed": ROUTED,
    "both": BOTH,
    "dropout": {**ROUTED, "model.dropout": 0.1, "routing.z_weight": 0.001},
    "first_softmax": {"mixers": ["softmax", "gdn", "routed", "gdn"], "routing.balance_weight": 0.0},
}


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    """Makes the stage of the config that ships, with changes."""
    number = count()

    def make(changes: dict[str, Any]) -> Stage:
        tree = read_yaml(BASE)
        config = build(LayerRoutingConfig, tree.override(Tree(changes, {(): tree.origin(())})))
        return Stage(MINE, MINE.shrink(config, tmp_path), tmp_path / f"stage{next(number)}", [config])

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_all_kinds_pass_every_check(stage, ranks, kind: str):
    def every(made: Stage) -> list[str]:
        return [check.prove(made) for check in (*checks.CHECKS, *MINE.checks)]

    (found,) = ranks(every, stage(KINDS[kind]), world_size=1)
    assert len(found) == 13


def test_noise_in_evaluation_is_caught(stage, monkeypatch):
    """Q: published evaluations drew routes, and differed from one to the next."""
    plain = layer_routing.LayerRouter.forward

    def noisy(self: Any, x: Tensor) -> Any:
        mode, self.training = self.training, True
        found = plain(self, x)
        self.training = mode
        return found if mode else found._replace(relaxed=None)

    monkeypatch.setattr(layer_routing.LayerRouter, "forward", noisy)
    with pytest.raises(Caught, match="two evaluations of the same weights differ"):
        checks.repeatable(stage(ROUTED))


def test_a_load_of_other_routes_than_those_taken_is_caught(stage, monkeypatch):
    """W: the load was that of likelier choices."""
    plain = layer_routing.Routes._of

    def likelier(self: Any, layer: int) -> dict[str, Tensor]:
        found = plain(self, layer)
        counts = layer_routing.one_hot(self.logits[:, :, layer]).sum(dim=(0, 1))
        return {**found, "counts": counts}

    monkeypatch.setattr(layer_routing.Routes, "_of", likelier)
    with pytest.raises(Caught, match="by the routes that were taken it is"):
        rehearsal.routes(stage(ROUTED))


def test_a_router_without_a_gradient_is_caught(stage, monkeypatch):
    monkeypatch.setattr(layer_routing, "gates", lambda taken, relaxed, gradient: taken)

    with pytest.raises(Caught, match="no gradient at 4 of 4 logits"):
        rehearsal.routers(stage(ROUTED))


def test_queries_that_miss_their_place_are_caught(stage, monkeypatch):
    """T: what is saved must change no number."""
    plain = CausalAttention.at

    def unturned(self: Any, x: Tensor, turns: Any, takers: Any) -> Tensor:
        return plain(self, x, None, takers)

    monkeypatch.setattr(CausalAttention, "at", unturned)
    with pytest.raises(Caught, match="where only the taken mixer is computed"):
        rehearsal.sparse(stage(ROUTED))


def test_annealing_that_outlasts_the_run_is_caught(stage, monkeypatch):
    """V: annealed over 5,000 updates in runs of 1,500."""
    monkeypatch.setattr(rehearsal, "temperature_at", lambda config, step, steps: 1.0 - 0.5 * step / 5000)

    with pytest.raises(Caught, match=r"the last of 60 updates has temperature 0.99"):
        rehearsal.temperature(stage(ROUTED))


def test_a_temperature_that_changes_choices_is_caught(stage, monkeypatch):
    plain = layer_routing.LayerRouter.forward

    def before_noise(self: Any, x: Tensor) -> Any:
        with torch.no_grad():
            self.linear.bias.mul_(self.temperature)
        return plain(self, x * self.temperature)

    monkeypatch.setattr(layer_routing.LayerRouter, "forward", before_noise)
    with pytest.raises(Caught, match="temperature changes choices"):
        rehearsal.temperature(stage(ROUTED))


def test_a_token_that_reads_ahead_for_its_route_is_caught(stage):
    made = stage(ROUTED)
    workload = made.workload
    assert isinstance(workload, LayerRoutingLm)
    workload.model.decoder.router.register_forward_pre_hook(
        lambda _, given: (given[0] + 5 * given[0].mean(dim=1, keepdim=True),)
    )

    with pytest.raises(Caught, match="changes logits before it"):
        rehearsal.LmRehearsal().checks[2].prove(made)


def test_small_models_keep_their_layers_and_which_arm_is_wider(stage):
    narrow, wide = stage({}).config, stage({"ffn_width": 128}).config

    assert (narrow.pattern, narrow.model.layers) == (("gdn", "gdn", "gdn", "softmax"), 4)
    assert wide.inner > narrow.inner
