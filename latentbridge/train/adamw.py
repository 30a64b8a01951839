"""AdamW (Loshchilov and Hutter 2019) for bf16 weights, in as few bytes as it takes.

An update moves 26 bytes a weight where copies to and from float32 masters would move 40: with 273 M weights
that is the third of a step. On a GPU it is compiled, and may be recorded: nothing is read by the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.train.muon import turned
from latentbridge.train.recorded import compiled
from latentbridge.train.wide import join, split

_EPSILON = 1e-8


class WideAdamW(torch.optim.Optimizer):
    """State of each bf16 weight: float32 moments, and `rest`, see train/wide.py.

    Groups with a `momentum` take Muon's step, as in train/muon.py. Call `prepare` once the groups' learning
    rates are set, then `apply`; `apply` alone may be recorded.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], betas: tuple[float, float]) -> None:
        """groups: {params, lr, weight_decay}, weights still in float32: they become bf16 here."""
        super().__init__(list(groups), {"lr": 0.0, "betas": betas, "weight_decay": 0.0})
        self.weights: list[nn.Parameter] = [p for group in self.param_groups for p in group["params"]]
        self._device = self.weights[0].device
        for group in self.param_groups:
            group["step"] = torch.zeros((), device=self._device)
            moments = ["momentum"] if "momentum" in group else ["exp_avg", "exp_avg_sq"]
            for weight in group["params"]:
                state = {name: torch.zeros_like(weight, dtype=torch.float32) for name in moments}
                weight.data, state["rest"] = split(weight.detach().float())
                self.state[weight] = state
        self._lr = [torch.zeros((), device=self._device) for _ in self.param_groups]
        self._update, self._norm = compiled(_update), compiled(_total_norm)

    def prepare(self) -> None:
        """Bring the learning rates to the device."""
        for place, group in zip(self._lr, self.param_groups, strict=True):
            place.fill_(group["lr"])

    @torch.no_grad()
    def apply(self, gradients: Sequence[Tensor], scale: Tensor) -> None:
        """Step every weight; gradients: in the order of `weights`;  scale: scalar, times all of them."""
        start = 0
        for group, lr in zip(self.param_groups, self._lr, strict=True):
            own = list(gradients[start : start + len(group["params"])])
            group["step"] += 1
            if "momentum" in group:
                self._turn(group, own, scale, lr)
            else:
                self._step(group, own, scale, lr)
            start += len(own)

    def _step(self, group: dict[str, Any], gradients: list[Tensor], scale: Tensor, lr: Tensor) -> None:
        states = [self.state[weight] for weight in group["params"]]
        self._update(
            [weight.data for weight in group["params"]],
            [state["rest"] for state in states],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            gradients,
            scale,
            lr,
            group["step"],
            group["weight_decay"],
            group["betas"],
        )

    def _turn(self, group: dict[str, Any], gradients: list[Tensor], scale: Tensor, lr: Tensor) -> None:
        for weight, gradient in zip(group["params"], gradients, strict=True):
            state, gradient = self.state[weight], gradient.float() * scale
            value = join(weight.data, state["rest"])
            decay, momentum = group["weight_decay"], group["momentum"]
            near, rest = split(turned(value, gradient, state["momentum"], lr, decay, momentum))
            weight.copy_(near)
            state["rest"].copy_(rest)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Of all gradients together, in float32: torch's own would be rounded to bf16."""
        found: Tensor = self._norm(list(gradients))
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does, which would make every state a bf16 number like its weight."""
        super().load_state_dict(state_dict)
        for index, weight in enumerate(self.weights):
            kept = state_dict["state"][index]
            self.state[weight] = {name: value.to(self._device) for name, value in kept.items()}
        for group in self.param_groups:
            group["step"] = group["step"].to(self._device)


def _total_norm(gradients: list[Tensor]) -> Tensor:
    return torch.stack([gradient.float().square().sum() for gradient in gradients]).sum().sqrt()


def _update(
    weights: list[Tensor],
    rests: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    gradients: list[Tensor],
    scale: Tensor,
    lr: Tensor,
    step: Tensor,
    weight_decay: float,
    betas: tuple[float, float],
) -> None:
    pairs = zip(weights, rests, firsts, seconds, gradients, strict=True)
    rate = lr / (1 - betas[0] ** step)
    correction = (1 - betas[1] ** step).sqrt()
    for weight, rest, first, second, gradient in pairs:
        gradient = gradient.float() * scale
        first.lerp_(gradient, 1 - betas[0])
        second.mul_(betas[1]).add_((1 - betas[1]) * gradient * gradient)
        value = join(weight, rest) * (1 - lr * weight_decay)
        near, left = split(value - rate * first / (second.sqrt() / correction + _EPSILON))
        weight.copy_(near)
        rest.copy_(left)
