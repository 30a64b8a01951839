"""AdamW over parameter groups, and a learning rate that is a function of the update alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from latentbridge.errors import ConfigError
from latentbridge.train.config import OptimConfig


@dataclass(frozen=True)
class GroupSettings:
    """What one parameter group trains with, before the schedule."""

    lr: float
    weight_decay: float


def parameter_groups(
    model: nn.Module, optim: OptimConfig
) -> tuple[list[list[nn.Parameter]], list[GroupSettings]]:
    """Trainable parameters as decayed, not decayed and gates, without empty groups, and the settings of each.

    Biases, norms, vectors and embeddings are not decayed; a gate is a single number whose own name starts
    with "gate".
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    gates: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = gates if _is_gate(name, parameter) else plain if _is_plain(name, parameter) else decayed
            group.append(parameter)
    settings = [
        GroupSettings(optim.lr, optim.weight_decay),
        GroupSettings(optim.lr, 0.0),
        GroupSettings(optim.lr * optim.gate_lr_multiplier, 0.0),
    ]
    # DeepSpeed drops empty groups, after which settings would no longer line up
    pairs = [(g, s) for g, s in zip([decayed, plain, gates], settings, strict=True) if g]
    if not pairs:
        raise ConfigError(f"{type(model).__name__} has no trainable parameter; there is nothing to train")
    return [group for group, _ in pairs], [setting for _, setting in pairs]


def _is_gate(name: str, parameter: nn.Parameter) -> bool:
    return parameter.numel() == 1 and name.rsplit(".", 1)[-1].startswith("gate")


def _is_plain(name: str, parameter: nn.Parameter) -> bool:
    # stacked experts have two-dimensional biases, so the name counts beside the shape
    is_named_so = "bias" in name.rsplit(".", 1)[-1] or "norm" in name or "embedding" in name
    return parameter.ndim < 2 or is_named_so


def build_adamw(
    groups: list[list[nn.Parameter]], settings: list[GroupSettings], optim: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW with one parameter group per setting; fused on CUDA."""
    return torch.optim.AdamW(
        [
            {"params": group, "lr": setting.lr, "weight_decay": setting.weight_decay}
            for group, setting in zip(groups, settings, strict=True)
        ],
        lr=optim.lr,
        betas=optim.betas,
        fused=device.type == "cuda",
    )


def apply_settings(
    groups: Sequence[dict[str, Any]], settings: Sequence[GroupSettings], factor: float
) -> None:
    """Set every group's learning rate (times `factor`) and weight decay.

    Done before each update, because loading an optimiser can overwrite both: DeepSpeed's universal
    checkpoints give every ZeRO-3 group the settings of the first.
    """
    for group, setting in zip(groups, settings, strict=True):
        group["lr"] = setting.lr * factor
        group["weight_decay"] = setting.weight_decay


def lr_factor(optim: OptimConfig, steps: int, done: int) -> float:
    """The schedule's factor for the next update, after `done` of `steps` updates.

    Warm-up rises to 1 at update `warmup_steps`; linear and cosine then fall, and would be 0 one update
    after the last, so no update is wasted.
    """
    if done < optim.warmup_steps:
        return (done + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return 1.0
    share = (done - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    return 1.0 - share if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))
