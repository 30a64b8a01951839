"""A workload small enough to train in a test, with a part of each kind that training treats differently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.config import JobConfig
from latentbridge.job import Run
from latentbridge.metric import Metric, mean
from latentbridge.rundir import RunDir
from latentbridge.train.config import EarlyStopConfig, OptimConfig, TrainConfig
from latentbridge.train.loop import LossTerm, fit


class Config(JobConfig):
    optim: OptimConfig
    train: TrainConfig
    early_stop: EarlyStopConfig


class Model(nn.Module):
    """A little of everything that training treats differently: norm, bias, gate, dropout, an unused part."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.gate_up = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(7, 3)
        self.unused = nn.Parameter(torch.ones(4, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.up(inputs.to(self.norm.weight.dtype)).relu())
        return self.down(self.dropout(hidden * (1 + self.gate_up.tanh()))).float()


class Workload:
    """Eleven examples of three classes.

    hooks: `losses` and `evaluate` are called with the update or the label, before what they are named for
    """

    def __init__(self, dropout: float = 0.0, **hooks: Callable[..., Any]) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = Model(dropout)
        self.num_examples = 11
        self.inputs, self.classes = torch.randn(11, 5), torch.randint(0, 3, (11,))
        self.hooks = hooks
        self.evaluated: list[str] = []

    def load_batch(self, indices: Sequence[int]) -> Sequence[int]:
        return indices

    def losses(self, model: nn.Module, batch: Sequence[int], step: int) -> dict[str, LossTerm]:
        if "losses" in self.hooks:
            self.hooks["losses"](step)
        scores = model(self.inputs[batch])
        return {
            "cross_entropy": LossTerm(nn.functional.cross_entropy(scores, self.classes[batch]), 1.0),
            "size": LossTerm(scores.square().mean(), 0.01),
        }

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        self.evaluated.append(label)
        if "evaluate" in self.hooks:
            self.hooks["evaluate"](label)
        nll = nn.functional.cross_entropy(model(self.inputs), self.classes, reduction="none")
        return {"nll": mean(nll.tolist()), "step": Metric(value=float(step), n=1)}


def make_config(metric: str = "step", patience: int | None = None, **train: Any) -> Config:
    """Six updates of four examples, all logged; by the metric "step" the last weights are the best."""
    defaults = {"steps": 6, "batch_size": 4, "log_every": 1, "eval_every": 3, "checkpoint_every": 2}
    return Config(
        optim=OptimConfig(lr=0.05, weight_decay=0.1, warmup_steps=2, clip_norm=0.5),
        train=TrainConfig(**(defaults | train)),
        early_stop=EarlyStopConfig(
            metric=metric, mode="min" if metric == "nll" else "max", patience=patience
        ),
    )


def run(
    folder: Path, config: Config | None = None, workload: Workload | None = None
) -> dict[str, Any] | None:
    """Train in a run folder; returns the summary."""
    folder.mkdir(exist_ok=True)
    return fit(workload or Workload(), config or make_config(), Run(RunDir(folder)))
