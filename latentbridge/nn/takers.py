"""Some of a batch's tokens, so that a layer is computed for those alone.

On a GPU they are set before the others, and how many they are stays on the device: nothing is read back, no
shape depends on it, and a CUDA graph may hold the work. On a CPU the others are left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentbridge.nn.products import leading_product
from latentbridge.nn.seating import seat_sorted


class Takers(NamedTuple):
    """The tokens that took one choice, of N = B·T that are numbered text after text.

    order: (R,) those that took it, as the texts go, and on a GPU the rest of N after them
    seat: (N,) where in order each token is; None: not all are
    end: (1,) int32, how many took it; None: all of order
    """

    order: Tensor
    seat: Tensor | None = None
    end: Tensor | None = None

    def take(self, x: Tensor) -> Tensor:
        """Tokens in order: x (B, T, ...), returns (R, ...)."""
        found: Tensor = _Take.apply(x.flatten(0, 1), self)  # type: ignore[no-untyped-call]
        return found

    def put(self, rows: Tensor, batch: int, length: int) -> Tensor:
        """The same in their texts, and 0 where nothing is put: rows (R, ...), returns (B, T, ...)."""
        found: Tensor = _Put.apply(rows, self, batch * length)  # type: ignore[no-untyped-call]
        return found.view(batch, length, *rows.shape[1:])

    def project(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Takers' rows times a matrix, and 0 for the rest: rows (R, I), weight (O, I), returns (R, O)."""
        if self.end is None:
            return F.linear(rows, weight, bias)
        return leading_product(rows, weight, bias, self.end)

    def through(self, linear: nn.Linear, rows: Tensor) -> Tensor:
        """`project` by a layer."""
        return self.project(rows, linear.weight, linear.bias)


def find_takers(taken: Tensor) -> list[list[Takers]]:
    """Of each of L layers and C choices; taken: (B, T, L, C), not 0 for the choice that a token made."""
    find = _first if shapes_are_fixed(taken.device) else _alone
    return [
        [find(of_choice) for of_choice in of_layer.unbind(1)] for of_layer in taken.flatten(0, 1).unbind(1)
    ]


def shapes_are_fixed(device: torch.device) -> bool:
    """Whether takers come with the rest after them."""
    return device.type == "cuda"


def _first(taken: Tensor) -> Takers:
    seating = seat_sorted((taken == 0).long(), 2)
    return Takers(seating.pair_of_seat, seating.seat_of_pair, seating.ends[:1])


def _alone(taken: Tensor) -> Takers:
    return Takers(taken.nonzero().squeeze(1))


def _taken(table: Tensor, order: Tensor) -> Tensor:
    return table.index_select(0, order)


def _placed(rows: Tensor, order: Tensor, seat: Tensor | None, num_tokens: int) -> Tensor:
    """What `_taken` is of, none of it twice, so that it is never added up."""
    if seat is not None:
        # where all have a place it is read, which a compiler makes a part of what comes after it
        return rows.index_select(0, seat)
    return rows.new_zeros(num_tokens, *rows.shape[1:]).index_copy_(0, order, rows)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, takers: Takers) -> Tensor:
        ctx.save_for_backward(takers.order, takers.seat)
        ctx.num_tokens = len(table)
        return _taken(table, takers.order)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        order, seat = ctx.saved_tensors
        return _placed(above, order, seat, ctx.num_tokens), None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, takers: Takers, num_tokens: int) -> Tensor:
        ctx.save_for_backward(takers.order)
        return _placed(rows, takers.order, takers.seat, num_tokens)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        return _taken(above, *ctx.saved_tensors), None, None
