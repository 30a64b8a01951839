from __future__ import annotations

import pytest
import torch
from torch import nn

from latentbridge.errors import ConfigError
from latentbridge.train.config import OptimConfig
from latentbridge.train.optim import apply_settings, lr_factor, parameter_groups


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_ffn = nn.Parameter(torch.zeros(1))
        self.gate_matrix = nn.Parameter(torch.zeros(2, 3))  # SwiGLU's, no gate of ours
        self.experts_bias = nn.Parameter(torch.zeros(4, 5))  # stacked experts
        self.norm = nn.LayerNorm(7)
        self.embedding = nn.Embedding(3, 8)
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
