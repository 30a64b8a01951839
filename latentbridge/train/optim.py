"""The optimiser over its parameter groups, and a learning rate that is a function of the update alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from latentbridge.errors import ConfigError
from latentbridge.nn.exchange import peers_of
from latentbridge.train.config import OptimConfig
from latentbridge.train.muon import MuonAdamW


@dataclass(frozen=True)
class GroupSettings:
    """What one parameter group trains with, before the schedule."""

    lr: float
    weight_decay: float
    # Muon's, which trains the group then
    momentum: float | None = None


def parameter_groups(
    model: nn.Module, optim: OptimConfig
) -> tuple[list[list[nn.Parameter]], list[GroupSettings]]:
    """Trainable parameters as matrices, other decayed ones, not decayed and gates, and the settings of each.

    Groups without parameters are left out. Biases, norms, vectors and embeddings are not decayed; a gate is a
    single number whose own name starts with "gate". Matrices are a group of their own for Muon only. What
    ranks share stands apart, behind the rest: it is averaged over other ranks.
    """
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    gates: list[nn.Parameter] = []
    # whatever their names are: transformers has embed_tokens, wte and wpe
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if _is_gate(name, parameter):
            gates.append(parameter)
        elif id(parameter) in tables or _is_plain(name, parameter):
            plain.append(parameter)
        else:
            (matrices if optim.muon and _is_matrix(name, parameter) else decayed).append(parameter)
    muon = optim.muon
    settings = [
        GroupSettings(muon.lr if muon else optim.lr, optim.weight_decay, muon.momentum if muon else None),
        GroupSettings(optim.lr, optim.weight_decay),
        GroupSettings(optim.lr, 0.0),
        GroupSettings(optim.lr * optim.gate_lr_multiplier, 0.0),
    ]
    kinds = list(zip([matrices, decayed, plain, gates], settings, strict=True))
    split = [
        ([p for p in group if (peers_of(p) is not None) == is_shared], setting)
        for is_shared in (False, True)
        for group, setting in kinds
    ]
    # DeepSpeed drops empty groups, after which settings would no longer line up
    pairs = [(group, setting) for group, setting in split if group]
    if not pairs:
        raise ConfigError(f"{type(model).__name__} has no trainable parameter; there is nothing to train")
    return [group for group, _ in pairs], [setting for _, setting in pairs]


def _is_gate(name: str, parameter: nn.Parameter) -> bool:
    return parameter.numel() == 1 and name.rsplit(".", 1)[-1].startswith("gate")


def _is_plain(name: str, parameter: nn.Parameter) -> bool:
    # stacked experts have two-dimensional biases, so the name counts beside the shape
    is_named_so = "bias" in name.rsplit(".", 1)[-1] or "norm" in name
    return parameter.ndim < 2 or is_named_so


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    # an output layer, learned queries and a depthwise convolution are tables of vectors, as embeddings are
    is_table = "head" in name.split(".") or name.rsplit(".", 1)[-1] in ("query", "queries", "taps")
    return parameter.ndim in (2, 3) and not is_table


def build_optimizer(
    groups: list[list[nn.Parameter]], settings: list[GroupSettings], optim: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW, or Muon and AdamW, with one parameter group per setting; AdamW is fused on CUDA."""
    kind = MuonAdamW if optim.muon else torch.optim.AdamW
    groups_of = with_settings(groups, settings)
    return kind(groups_of, lr=optim.lr, betas=optim.betas, fused=device.type == "cuda")


def with_settings(
    groups: Sequence[list[nn.Parameter]], settings: Sequence[GroupSettings]
) -> list[dict[str, Any]]:
    """Parameter groups as torch's optimisers take them."""
    return [
        {"params": group, **{key: value for key, value in asdict(setting).items() if value is not None}}
        for group, setting in zip(groups, settings, strict=True)
    ]


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

    Warm-up rises to 1 at update `warmup_steps`; linear and cosine then fall, and would be at `floor` one
    update after the last, so with a floor of 0 no update is wasted.
    """
    if done < optim.warmup_steps:
        return (done + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return 1.0
    share = (done - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    left = 1.0 - share if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))
    return optim.floor + (1.0 - optim.floor) * left
