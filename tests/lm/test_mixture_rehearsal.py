"""Each published fault of a routing bench, put back: the rehearsal finds it before a GPU hour is spent."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from latentbridge.config import Tree, build, read_yaml
from latentbridge.lm import mixture, mixture_rehearsal
from latentbridge.lm.mixture_config import MixtureLmConfig
from latentbridge.nn import experts, routers
from latentbridge.rehearsal import checks
from latentbridge.rehearsal.contract import Caught, Stage
from latentbridge.rehearsal.fingerprint import Fingerprint
from latentbridge.train.loop import LossTerm

BASE = Path(__file__).parents[2] / "configs" / "routing_bench" / "demo.yaml"
MINE = mixture_rehearsal.MixtureRehearsal()
KINDS = {
    "softk": {},
    "top1": {"mixture.router": {"strategy": "top1", "top_k": 1}},
    "topk_hard": {"mixture.router.strategy": "topk_hard"},
    "hash": {"mixture": {"router.strategy": "hash", "balance": {"weight": 0.0, "z_weight": 0.0}}},
    "expert_choice": {"mixture": {"router.strategy": "expert_choice", "balance.weight": 0.0}},
    "bias_balanced": {"mixture": {"router.strategy": "bias_balanced", "balance.weight": 0.0}},
    "padded": {"mixture.dispatch.kind": "padded"},
    # over as many ranks as the rehearsal has not
    "shared": {"mixture.expert_parallel": 2},
    "sampled": {"mixture.router.temperature": {"start": 2.0, "acts_on": "choice"}},
    "everywhere": {"model": {"dropout": 0.1, "dropout_everywhere": True}, "mixture.router.noise": 0.1},
    "muon": {"optim": {"muon": {"lr": 0.02}, "schedule": "cosine", "floor": 0.1}},
    "scheduled": {"mixture.router.temperature": {"schedule": "cosine", "start": 5.0, "end": 1.0}},
}


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    """Makes the stage of the config that ships, with changes."""
    number = count()

    def make(changes: dict[str, Any] | None = None) -> Stage:
        tree = read_yaml(BASE)
        config = build(MixtureLmConfig, tree.override(Tree(changes or {}, {(): tree.origin(())})))
        return Stage(MINE, MINE.shrink(config, tmp_path), tmp_path / f"stage{next(number)}", [config])

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_mixtures_of_all_kinds_pass_every_check(stage, ranks, kind: str):
    def every(made: Stage) -> list[str]:
        return [check.prove(made) for check in (*checks.CHECKS, *MINE.checks)]

    (found,) = ranks(every, stage(KINDS[kind]), world_size=1)
    assert len(found) == 11


def test_a_router_that_the_text_does_not_teach_is_caught(stage, monkeypatch):
    """top1 and topk_hard gave each expert a weight of 1: random projections were compared with each other."""
    plain = routers.Router._gates
    monkeypatch.setattr(routers.Router, "_gates", lambda self, *args: torch.ones_like(plain(self, *args)))

    with pytest.raises(Caught, match="no gradient at"):
        mixture_rehearsal.routers(stage())


def test_experts_that_start_smaller_the_more_they_are_are_caught(stage, monkeypatch):
    """An initialiser that took the number of experts for a width made them up to 21 times too small."""
    plain = experts._uniform

    def stacked(shape: tuple[int, ...], fan_in: int) -> torch.nn.Parameter:
        return plain(shape, fan_in * shape[0] ** 2)

    monkeypatch.setattr(experts, "_uniform", stacked)
    with pytest.raises(Caught, match="as large as dense layers"):
        mixture_rehearsal.routers(stage())


def test_experts_that_choose_among_all_tokens_are_not_called_causal(stage, monkeypatch):
    monkeypatch.setattr(routers.Router, "is_causal", True)

    with pytest.raises(Caught, match="changes"):
        mixture_rehearsal.causality(stage(KINDS["expert_choice"]))


def test_a_temperature_that_is_said_to_change_choices_and_does_not_is_caught(stage, monkeypatch):
    """Dividing logits by T before the top-k changes no choice, though it was said to drive the load."""
    made = stage(KINDS["sampled"])
    monkeypatch.setattr(routers, "_gumbel_like", torch.zeros_like)

    with pytest.raises(Caught, match="changes no choice"):
        mixture_rehearsal.temperature(made)


def test_a_balance_weight_that_no_loss_reads_is_one_experiment_under_two_names(stage, monkeypatch):
    """Bug E of the temperature study, put back: the layers' own 0.01 whatever the config says."""
    cells = [stage({"mixture.balance.weight": weight}) for weight in (0.01, 0.5)]
    assert Fingerprint(cells[0], {}) != Fingerprint(cells[1], {})
    plain = mixture.MixtureLm.extra_losses

    def fixed(self, *args):
        return {name: LossTerm(term.value, 0.01) for name, term in plain(self, *args).items()}

    monkeypatch.setattr(mixture.MixtureLm, "extra_losses", fixed)
    cells = [stage({"mixture.balance.weight": weight}) for weight in (0.01, 0.5)]

    assert Fingerprint(cells[0], {}) == Fingerprint(cells[1], {})
