"""Bring tokens to their experts and back: three ways to compute the same mixture.

`dropless` sorts the pairs by expert, `padded` gives every expert the same number of slots and drops what
does not fit, `loop` is the plain definition that the others are tested against. All compute in the dtype of
x (under autocast: in autocast's), weight and sum in float32, and return the dtype of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latentbridge.nn.exchange import Exchange, Work, around_slots
from latentbridge.nn.experts import Experts
from latentbridge.nn.products import batched_product, grouped_product, grouped_runs, segment_product
from latentbridge.nn.routers import Routing
from latentbridge.nn.seating import PRIORITIES, Seating, seat_in_slots, seat_runs, seat_sorted, slots


def dropless(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """Every pair is computed, however uneven the load; x: (N, D), returns (N, D).

    In bf16 on a GPU nothing is read back to the host; elsewhere the counts are, once. Where tokens have 0 to
    E experts (expert_choice), their sum is by atomic adds there, and the same to rounding only. Where ranks
    share the experts, all of them must come here equally often, and the counts are read back, once.
    """
    # peers wait for this rank's rows, even if there are none
    if experts.peers is None and not len(routing.tokens):
        return torch.zeros_like(x)
    compute = _compute_dtype(x)
    seating = seat_sorted(routing.experts, routing.num_experts)
    if experts.peers is None:
        work = _sorted_work(experts, routing.experts, seating, compute)
    else:
        exchange = Exchange(seating.ends, experts.peers)
        work = exchange.around(_unsorted_work(experts, exchange, compute))
    return _mix(compute, routing, seating, work).to(x.dtype)


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
    capacity = slots(len(routing.tokens), routing.num_experts, capacity_factor)
    seating = seat_in_slots(routing, capacity, priority)
    assert seating.kept is not None
    product = batched_product(len(experts.up))

    def here(rows: Tensor) -> Tensor:
        return experts(rows, product)  # type: ignore[no-any-return]

    work = here if experts.peers is None else around_slots(here, len(experts.up), experts.peers)
    y = _mix(_compute_dtype(x), routing, seating, work)
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


def _sorted_work(experts: Experts, chosen: Tensor, seating: Seating, x: Tensor) -> Work:
    """What the experts make of sorted rows; chosen: (R,) expert of each before that;  x: of their dtype."""
    # the kernel is not asked about no rows at all, which a rank can get from its peers
    if grouped_runs(x, experts) and len(chosen):
        product = grouped_product(chosen.index_select(0, seating.pair_of_seat), seating.ends)
    else:
        product = segment_product(seating.ends)
    return lambda rows: experts(rows, product)


def _unsorted_work(experts: Experts, exchange: Exchange, x: Tensor) -> Work:
    """The same of rows that come from other ranks, sorted by expert within what comes from each."""

    def run(rows: Tensor) -> Tensor:
        # not before: a GPU has the rows to move while the host queues these many small steps
        seating, chosen = seat_runs(exchange.counts, len(rows))
        to_seat, to_pair = seating.seat_of_pair, seating.pair_of_seat
        work = _sorted_work(experts, chosen, seating, x)
        seated: Tensor = _Unseated.apply(rows, to_pair, to_seat, None)  # type: ignore[no-untyped-call]
        out: Tensor = _Unseated.apply(work(seated), to_seat, to_pair, None)  # type: ignore[no-untyped-call]
        return out

    return run


def _mix(x: Tensor, routing: Routing, seating: Seating, work: Work) -> Tensor:
    """Take rows to their seats, let experts work, take them back, weight and sum per token, in float32."""
    tokens, to_seat, to_pair = routing.tokens, seating.seat_of_pair, seating.pair_of_seat
    token_of_seat = tokens.index_select(0, to_pair)  # (S,)
    rows = _Seated.apply(x, tokens, token_of_seat, to_seat, seating.kept, routing.top_k)  # type: ignore[no-untyped-call]
    out = _Unseated.apply(work(rows), to_seat, to_pair, seating.taken)  # type: ignore[no-untyped-call]
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
