from __future__ import annotations

import pytest
import torch
from torch import nn

from latentbridge.errors import ConfigError
from latentbridge.train.config import MuonConfig, OptimConfig
from latentbridge.train.optim import apply_settings, lr_factor, parameter_groups


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_ffn = nn.Parameter(torch.zeros(1))
        self.gate_matrix = nn.Parameter(torch.zeros(2, 3))  # SwiGLU's, no gate of ours
        self.experts_bias = nn.Parameter(torch.zeros(4, 5))  # stacked experts
        self.norm = nn.LayerNorm(7)
        # no name tells it, as in transformers' models
        self.wte = nn.Embedding(3, 8)
        self.frozen = nn.Parameter(torch.zeros(11), requires_grad=False)


def test_gates_learn_faster_and_neither_they_nor_biases_norms_or_embeddings_decay() -> None:
    optim = OptimConfig(lr=0.5, weight_decay=0.1, gate_lr_multiplier=3.0)
    groups, settings = parameter_groups(Block(), optim)

    assert [[tuple(p.shape) for p in group] for group in groups] == [
        [(2, 3)],
        [(4, 5), (7,), (7,), (3, 8)],
        [(1,)],
    ]
    assert [(s.lr, s.weight_decay) for s in settings] == [(0.5, 0.1), (0.5, 0.0), (1.5, 0.0)]


def test_what_ranks_share_stands_behind_the_rest_in_groups_of_the_same_settings() -> None:
    block = Block()
    block.gate_matrix.peers = block.experts_bias.peers = object()  # type: ignore[attr-defined]
    groups, settings = parameter_groups(block, OptimConfig(lr=0.5, weight_decay=0.1))

    assert [[tuple(p.shape) for p in group] for group in groups] == [
        [(7,), (7,), (3, 8)],
        [(1,)],
        [(2, 3)],
        [(4, 5)],
    ]
    assert [(s.lr, s.weight_decay) for s in settings] == [(0.5, 0.0), (1.5, 0.0), (0.5, 0.1), (0.5, 0.0)]


def test_muon_takes_matrices_and_stacks_but_no_tables_of_vectors() -> None:
    model = Block()
    model.experts_up = nn.Parameter(torch.zeros(4, 3, 6))
    model.router = nn.Linear(3, 4)
    model.head = nn.Linear(3, 9, bias=False)
    model.queries = nn.Parameter(torch.zeros(10, 3))
    optim = OptimConfig(lr=0.5, weight_decay=0.1, muon=MuonConfig(lr=2.0, momentum=0.8))
    groups, settings = parameter_groups(model, optim)

    assert [[tuple(p.shape) for p in group] for group in groups] == [
        [(2, 3), (4, 3, 6), (4, 3)],
        [(10, 3), (9, 3)],
        [(4, 5), (7,), (7,), (3, 8), (4,)],
        [(1,)],
    ]
    assert [(s.lr, s.weight_decay, s.momentum) for s in settings[:3]] == [
        (2.0, 0.1, 0.8),
        (0.5, 0.1, None),
        (0.5, 0.0, None),
    ]


def test_a_group_without_parameters_is_left_out_with_its_settings() -> None:
    groups, settings = parameter_groups(nn.LayerNorm(7), OptimConfig(lr=0.5, weight_decay=0.1))

    assert [len(group) for group in groups] == [2]
    assert [(s.lr, s.weight_decay) for s in settings] == [(0.5, 0.0)]


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear has no trainable parameter"):
        parameter_groups(nn.Linear(2, 3).requires_grad_(False), OptimConfig(lr=0.5))


def test_settings_overwritten_by_a_load_are_put_back() -> None:
    optim = OptimConfig(lr=0.5, weight_decay=0.1)
    _, settings = parameter_groups(Block(), optim)
    # what loading a universal ZeRO-3 checkpoint leaves: every group as the first
    loaded = [{"lr": 0.2, "weight_decay": 0.1} for _ in settings]
    apply_settings(loaded, settings, factor=0.5)

    assert loaded == [
        {"lr": 0.25, "weight_decay": 0.1},
        {"lr": 0.25, "weight_decay": 0.0},
        {"lr": 0.75, "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_rate_warms_up_falls_and_wastes_no_update(schedule: str, expected: list[float]) -> None:
    optim = OptimConfig.model_validate({"lr": 1.0, "warmup_steps": 2, "schedule": schedule})

    assert [lr_factor(optim, 6, done) for done in range(6)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [1.0, 0.775, 0.55, 0.325]), ("cosine", [1.0, 0.868198, 0.55, 0.231802])],
)
def test_the_rate_falls_to_its_floor_one_update_after_the_last(schedule: str, expected: list[float]) -> None:
    optim = OptimConfig.model_validate({"lr": 1.0, "schedule": schedule, "floor": 0.1})

    assert [lr_factor(optim, 4, done) for done in range(4)] == pytest.approx(expected, abs=1e-6)
    assert lr_factor(optim, 4, 4) == pytest.approx(0.1)
