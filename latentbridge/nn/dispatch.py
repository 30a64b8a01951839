"""Bring tokens to their experts and back: three ways to compute the same mixture.

`dropless` sorts the pairs by expert, `padded` gives every expert the same number of slots and drops what
does not fit, `loop` is the plain definition that the others are tested against. All compute in the dtype of
x (under autocast: in autocast's), weight and sum in float32, and return the dtype of x.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from latentbridge.nn.experts import Experts, Product
from latentbridge.nn.products import batched_product, grouped_product, grouped_runs, segment_product
from latentbridge.nn.routers import Routing
from latentbridge.nn.seating import PRIORITIES, Seating, seat_in_slots, seat_sorted


def dropless(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """Every pair is computed, however uneven the load; x: (N, D), returns (N, D).

    In bf16 on a GPU nothing is read back to the host; elsewhere the counts are, once. Where tokens have 0 to
    E experts (expert_choice), their sum is by atomic adds there, and the same to rounding only.
    """
    if not len(routing.tokens):
        return torch.zeros_like(x)
    compute = _compute_dtype(x)
    seating = seat_sorted(routing)
    if grouped_runs(compute, experts):
        product = grouped_product(seating.experts, seating.ends)
    else:
        product = segment_product(seating.ends)
    return _mix(compute, routing, experts, seating, product).to(x.dtype)


def padded(
    x: Tensor, routing: Routing, experts: Experts, capacity_factor: float, priority: str = "choice"
) -> tuple[Tensor, Tensor]:
    """At most C = ceil(capacity_factor · R / E) pairs an expert, in one batched product of fixed shape.

    priority: who is seated first: "choice" (first choices before second ones, then by position),
    "probability" (the most probable first) or "position" (row by row of the batch, with all their choices)
    returns (N, D), and how many pairs were dropped, an int64 scalar
    """
    if priority not in PRIORITIES:
        raise ValueError(f"priority is {priority!r}; it must be one of {', '.join(PRIORITIES)}")
    capacity = max(1, math.ceil(capacity_factor * len(routing.tokens) / routing.num_experts))
    seating = seat_in_slots(routing, capacity, priority)
    assert seating.kept is not None
    y = _mix(_compute_dtype(x), routing, experts, seating, batched_product(routing.num_experts))
    return y.to(x.dtype), len(routing.tokens) - seating.kept.sum()


def loop(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """One expert after the other, by definition; x: (N, D), returns (N, D)."""
    compute = _compute_dtype(x)
    y = torch.zeros_like(x, dtype=torch.float32)
    for expert in range(routing.num_experts):
        (pairs,) = (routing.experts == expert).nonzero(as_tuple=True)
        tokens = routing.tokens[pairs]
        out = experts.one(expert, compute[tokens])
        y = y.index_add(0, tokens, out.float() * routing.gates[pairs, None])
    return y.to(x.dtype)


def _mix(x: Tensor, routing: Routing, experts: Experts, seating: Seating, product: Product) -> Tensor:
    """Take rows to their seats, run the experts, take them back, weight and sum per token, in float32."""
    tokens, to_seat, to_pair = routing.tokens, seating.seat_of_pair, seating.pair_of_seat
    token_of_seat = tokens.index_select(0, to_pair)  # (S,)
    rows = _Seated.apply(x, tokens, token_of_seat, to_seat, seating.kept, routing.top_k)  # type: ignore[no-untyped-call]
    out = _Unseated.apply(experts(rows, product), to_seat, to_pair, seating.taken)  # type: ignore[no-untyped-call]
    gates = routing.gates if seating.kept is None else routing.gates * seating.kept
    return _sum_per_token(out * gates[:, None], tokens, x.shape, routing.top_k)


def _sum_per_token(rows: Tensor, tokens: Tensor, shape: torch.Size, top_k: int | None) -> Tensor:
    """rows: (R, D);  tokens: (R,);  returns (N, D) float32. A choice per token is a plain sum over K."""
    if top_k is not None:
        return rows.view(top_k, *shape).sum(dim=0, dtype=torch.float32)
    return rows.new_zeros(shape, dtype=torch.float32).index_add(0, tokens, rows.float())


def _compute_dtype(x: Tensor) -> Tensor:
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class _Seated(torch.autograd.Function):
    """Row s is the token seated there. Its backward gathers as well: no atomic adds onto tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        tokens: Tensor,
        token_of_seat: Tensor,
        seat_of_pair: Tensor,
        kept: Tensor | None,
        top_k: int | None,
    ) -> Tensor:
        ctx.save_for_backward(tokens, seat_of_pair, kept)
        ctx.shape, ctx.top_k = x.shape, top_k
        return x.index_select(0, token_of_seat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tokens, seat_of_pair, kept = ctx.saved_tensors
        rows = grad.index_select(0, seat_of_pair)  # (R, D)
        if kept is not None:
            rows = rows * kept[:, None]
        grad_x = _sum_per_token(rows, tokens, ctx.shape, ctx.top_k).to(grad.dtype)
        return grad_x, None, None, None, None, None


class _Unseated(torch.autograd.Function):
    """Row r is what the seat of pair r holds; a pair without a seat reads another's, at a gate of 0."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, seat_of_pair: Tensor, pair_of_seat: Tensor, taken: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(pair_of_seat, taken)
        return out.index_select(0, seat_of_pair)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        pair_of_seat, taken = ctx.saved_tensors
        grad_out = grad.index_select(0, pair_of_seat)  # (S, D)
        return grad_out if taken is None else grad_out * taken[:, None], None, None, None
