"""AdamW (Loshchilov and Hutter 2019) for bf16 weights, in as few bytes as it takes.

An update moves 30 bytes a weight where copies to and from float32 masters would move 40: with 273 M weights
that is the third of a step. On a GPU it is compiled, and may be recorded: nothing is read by the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.errors import RunError
from latentbridge.train.muon import turned
from latentbridge.train.recorded import compiled
from latentbridge.train.wide import join, split

_EPSILON = 1e-8
# numbers after which a weight may begin: what reads it may count on an address that 128 bytes divide
_LINE = 64


class WideAdamW(torch.optim.Optimizer):
    """State of each bf16 weight: float32 moments, and `rest`, see train/wide.py.

    Groups with a `momentum` take Muon's step, as in train/muon.py. Of another group all weights lie in one
    piece, and so do their moments, so that an update is one kernel: told of 61 tensors one by one, torch's
    compiler took a minute, and what it made took longer than this with the copy of gradients (H200).

    Call `prepare` once the groups' learning rates are set, then `apply`; `apply` alone may be recorded.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], betas: tuple[float, float]) -> None:
        """groups: {params, lr, weight_decay}, weights still in float32: they become bf16 here."""
        super().__init__(list(groups), {"lr": 0.0, "betas": betas, "weight_decay": 0.0})
        self.weights: list[nn.Parameter] = [p for group in self.param_groups for p in group["params"]]
        self._device = self.weights[0].device
        self._pieces: list[_Piece | None] = []
        for group in self.param_groups:
            group["step"] = torch.zeros((), device=self._device)
            piece = None if "momentum" in group else _Piece(group["params"])
            self._pieces.append(piece)
            states = map(_turn_state, group["params"]) if piece is None else piece.states()
            self.state.update(zip(group["params"], states, strict=True))
        self._lr = [torch.zeros((), device=self._device) for _ in self.param_groups]
        self._update = compiled(_update)

    def prepare(self) -> None:
        """Bring the learning rates to the device; RunError where weights are no longer what is updated."""
        for place, group, piece in zip(self._lr, self.param_groups, self._pieces, strict=True):
            place.fill_(group["lr"])
            if piece is not None and not piece.holds():
                raise RunError(
                    "a weight was moved or replaced since its optimiser was made, so no update would reach "
                    "it; bring a model to its device and type before"
                )

    def make_sums(self) -> list[Tensor]:
        """Float32 zeros in the order of `weights`, to add gradients to: `apply` wants them just there."""
        sums = []
        for group, piece in zip(self.param_groups, self._pieces, strict=True):
            if piece is None:
                sums += [torch.zeros_like(weight, dtype=torch.float32) for weight in group["params"]]
            else:
                sums += piece.make_sums()
        return sums

    @torch.no_grad()
    def apply(self, gradients: Sequence[Tensor], scale: Tensor) -> None:
        """Step every weight; gradients: in the order of `weights`;  scale: scalar, times all of them."""
        start = 0
        for group, piece, lr in zip(self.param_groups, self._pieces, self._lr, strict=True):
            own = list(gradients[start : start + len(group["params"])])
            group["step"] += 1
            if piece is None:
                self._turn(group, own, scale, lr)
            else:
                settings = scale, lr, group["step"], group["weight_decay"], group["betas"]
                self._update(*piece.numbers, piece.gather(own), *settings)
            start += len(own)

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
        norms = torch._foreach_norm(list(gradients), 2, dtype=torch.float32)
        return torch.stack(norms).square().sum().sqrt()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does, but in place: torch would make bf16 numbers of all, elsewhere, as weights are."""
        places = dict(self.state)
        super().load_state_dict(state_dict)
        for index, weight in enumerate(self.weights):
            for name, value in state_dict["state"][index].items():
                # a copy alone would spread what is smaller
                places[weight][name].copy_(value.view_as(places[weight][name]))
            self.state[weight] = places[weight]
        for group in self.param_groups:
            group["step"] = group["step"].to(self._device)


def _turn_state(weight: nn.Parameter) -> dict[str, Tensor]:
    """What Muon keeps of a weight, which becomes its bf16 numbers."""
    weight.data, rest = split(weight.detach().float())
    return {"momentum": torch.zeros_like(weight, dtype=torch.float32), "rest": rest}


class _Piece:
    """Weights one after the other, and beside each number of them what is kept of it.

    numbers: bf16 ones, what they leave, and both moments, (N,) each;  gradients: (N,), once there were any
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        """Bring the weights here, one by one: there is no memory for all of them twice."""
        self._weights = weights
        self._rooms = [-(-weight.numel() // _LINE) * _LINE for weight in weights]
        near, rest = self._zeros(torch.bfloat16), self._zeros(torch.int16)
        for weight, *parts in zip(weights, self._parts(near), self._parts(rest), strict=True):
            torch._foreach_copy_(parts, list(split(weight.detach().float())))
            weight.data = parts[0]
        self.numbers = near, rest, self._zeros(torch.float32), self._zeros(torch.float32)
        self.gradients: Tensor | None = None

    def states(self) -> list[dict[str, Tensor]]:
        """Of each weight."""
        kept = zip(*map(self._parts, self.numbers[1:]), strict=True)
        return [dict(zip(("rest", "exp_avg", "exp_avg_sq"), parts, strict=True)) for parts in kept]

    def holds(self) -> bool:
        """Whether the first weight is here: whoever moves a model moves all of it."""
        first, here = self._weights[0].untyped_storage(), self.numbers[0].untyped_storage()
        return first.data_ptr() == here.data_ptr()

    def make_sums(self) -> list[Tensor]:
        """See `WideAdamW.make_sums`."""
        self.gradients = self._zeros(torch.float32)
        return self._parts(self.gradients)

    def gather(self, gradients: list[Tensor]) -> Tensor:
        """Them in one piece, in their own type; nothing is copied of what lies there."""
        if self.gradients is None:
            self.gradients = self._zeros(gradients[0].dtype)
        # else they are the sums that were made here
        if gradients[0].data_ptr() != self.gradients.data_ptr():
            torch._foreach_copy_(self._parts(self.gradients), gradients)
        return self.gradients

    def _zeros(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(sum(self._rooms), dtype=dtype, device=self._weights[0].device)

    def _parts(self, piece: Tensor) -> list[Tensor]:
        pairs = zip(torch.split(piece, self._rooms), self._weights, strict=True)
        return [room[: weight.numel()].view(weight.shape) for room, weight in pairs]


def _update(
    weight: Tensor,
    rest: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    scale: Tensor,
    lr: Tensor,
    step: Tensor,
    weight_decay: float,
    betas: tuple[float, float],
) -> None:
    gradient = gradient.float() * scale
    first.lerp_(gradient, 1 - betas[0])
    second.mul_(betas[1]).add_((1 - betas[1]) * gradient * gradient)
    rate, correction = lr / (1 - betas[0] ** step), (1 - betas[1] ** step).sqrt()
    value = join(weight, rest) * (1 - lr * weight_decay)
    near, left = split(value - rate * first / (second.sqrt() / correction + _EPSILON))
    weight.copy_(near)
    rest.copy_(left)
