"""Where each pair of token and expert sits while the experts work: sorted by expert, or in fixed slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentbridge.nn.routers import Routing

PRIORITIES = ("choice", "probability", "position")


@dataclass
class Seating:
    """R pairs on S seats, expert after expert; sorted, S is R and every pair sits.

    kept, taken: None when every pair is seated and every seat taken. An empty seat names some pair all the
    same: its row is computed, read by nobody, and gets no gradient.
    """

    seat_of_pair: Tensor  # (R,) int64
    pair_of_seat: Tensor  # (S,) int64
    experts: Tensor  # (R,) of the pairs in sorted order
    ends: Tensor  # (E,) int32, where each expert's pairs end in sorted order
    kept: Tensor | None = None  # (R,) bool
    taken: Tensor | None = None  # (S,) bool


def seat_sorted(routing: Routing) -> Seating:
    """All pairs, sorted by expert."""
    experts, order = _sort(routing.experts)
    return Seating(_inverse(order), order, experts, _ends(experts, routing.num_experts))


def seat_in_slots(routing: Routing, capacity: int, priority: str) -> Seating:
    """C slots an expert, slot c of expert e being seat e·C + c; pairs first by `priority` are seated."""
    queue = _queue(routing, priority)
    experts, order = _sort(routing.experts.index_select(0, queue))
    order = queue.index_select(0, order)  # by expert, then by priority
    ends = _ends(experts, routing.num_experts)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    places = torch.arange(len(order), device=order.device)
    rank = places - starts.index_select(0, experts)
    seat = experts * capacity + rank.clamp(max=capacity - 1)
    # the same two maps from the seats' side, as gathers
    place = starts[:, None] + torch.arange(capacity, device=order.device)  # (E, C)
    taken = (place < ends[:, None]).reshape(-1)
    pair_of_seat = order.index_select(0, place.clamp(max=len(order) - 1).reshape(-1))
    back = _inverse(order)
    kept = (rank < capacity).index_select(0, back)
    return Seating(seat.index_select(0, back), pair_of_seat, experts, ends, kept, taken)


def _queue(routing: Routing, priority: str) -> Tensor:
    """(R,) pairs in the order in which they ask for a slot."""
    if priority == "position":
        return routing.tokens.argsort(stable=True)
    if priority == "probability":
        probs = routing.gates if routing.probs is None else routing.probs[routing.tokens, routing.experts]
        return probs.argsort(descending=True, stable=True)
    # as they come: a routing lists all first choices before the second ones
    return torch.arange(len(routing.tokens), device=routing.tokens.device)


def _sort(experts: Tensor) -> tuple[Tensor, Tensor]:
    # 16 bits: a GPU sorts digit by digit, and int64 has four times as many
    values, order = experts.to(torch.int16).sort(stable=True)
    return values.long(), order


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def _ends(sorted_experts: Tensor, num_experts: int) -> Tensor:
    """(E,) int32 by binary search: no count is read back to the host, and nothing is added atomically."""
    every = torch.arange(num_experts, device=sorted_experts.device)
    return torch.searchsorted(sorted_experts, every, right=True, out_int32=True)
