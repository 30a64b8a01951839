"""Where each pair of token and expert sits while the experts work: sorted by expert, or in fixed slots."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentbridge.nn.routers import Routing

PRIORITIES = ("choice", "probability", "position")

# pairs that are counted in one go
_BLOCK = 128


@dataclass
class Seating:
    """R pairs on S seats, expert after expert; sorted, S is R and every pair sits.

    kept, taken: None when every pair is seated and every seat taken. An empty seat names some pair all the
    same: its row is computed, read by nobody, and gets no gradient.
    """

    seat_of_pair: Tensor  # (R,) int64
    pair_of_seat: Tensor  # (S,) int64
    ends: Tensor  # (E,) int32, where each expert's pairs end in sorted order
    kept: Tensor | None = None  # (R,) bool
    taken: Tensor | None = None  # (S,) bool


def slots(num_pairs: int, num_experts: int, capacity_factor: float) -> int:
    """C, the pairs that an expert has room for: so many even shares, rounded up."""
    return max(1, math.ceil(capacity_factor * num_pairs / num_experts))


def seat_sorted(experts: Tensor, num_experts: int) -> Seating:
    """All pairs, sorted by expert; those of one expert keep their order. experts: (R,)."""
    rank, ends = _rank(experts, num_experts)
    seat = _starts(ends).index_select(0, experts) + rank
    return Seating(seat, _inverse(seat), ends)


def seat_runs(counts: Tensor, num_rows: int) -> tuple[Seating, Tensor]:
    """Rows that came from P ranks, each time sorted by expert; now sorted by expert altogether.

    counts: (P, E) rows of each run, R in all
    returns where they sit, and the expert (R,) of each as it came
    """
    ranks, num_experts = counts.shape
    came = _starts(counts.flatten().cumsum(0))  # (P · E) where each run begins
    seats = _starts(counts.T.flatten().cumsum(0)).view(num_experts, ranks).T.flatten()
    runs = torch.arange(len(came), device=counts.device)
    run_of_row = runs.repeat_interleave(counts.flatten(), output_size=num_rows)
    seat = torch.arange(num_rows, device=counts.device) + (seats - came).index_select(0, run_of_row)
    ends = counts.sum(dim=0).cumsum(0, dtype=torch.int32)
    return Seating(seat, _inverse(seat), ends), run_of_row % num_experts


def seat_in_slots(routing: Routing, capacity: int, priority: str) -> Seating:
    """C slots an expert, slot c of expert e being seat e·C + c; pairs first by `priority` are seated."""
    queue = _queue(routing, priority)
    experts = routing.experts if queue is None else routing.experts.index_select(0, queue)
    rank, ends = _rank(experts, routing.num_experts)
    starts = _starts(ends)
    order = _inverse(starts.index_select(0, experts) + rank)  # by expert, then by priority
    if queue is not None:
        rank = rank.index_select(0, _inverse(queue))
        order = queue.index_select(0, order)
    # the same two maps from the seats' side, as gathers
    place = starts[:, None] + torch.arange(capacity, device=starts.device)  # (E, C)
    taken = (place < ends[:, None]).reshape(-1)
    pair_of_seat = order.index_select(0, place.clamp(max=len(order) - 1).reshape(-1))
    seat = routing.experts * capacity + rank.clamp(max=capacity - 1)
    return Seating(seat, pair_of_seat, ends, rank < capacity, taken)


def _queue(routing: Routing, priority: str) -> Tensor | None:
    """(R,) pairs in the order in which they ask for a slot; None: as they come."""
    if priority == "position":
        return routing.tokens.argsort(stable=True)
    if priority == "probability":
        probs = routing.gates if routing.probs is None else routing.probs[routing.tokens, routing.experts]
        return probs.argsort(descending=True, stable=True)
    # a routing lists all first choices before the second ones
    return None


def _rank(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Each pair's place among those of its expert, (R,) int64, and where experts end, (E,) int32.

    By counting: there is nothing to sort, to read back to the host or to add atomically.
    """
    if not len(experts):
        return torch.empty_like(experts), torch.zeros(num_experts, dtype=torch.int32, device=experts.device)
    member = experts[:, None] == torch.arange(num_experts, device=experts.device)  # (R, E)
    block = _BLOCK if len(experts) % _BLOCK == 0 else len(experts)
    within = member.view(-1, block, num_experts).cumsum(dim=1, dtype=torch.int32)
    upto = within[:, -1].cumsum(dim=0, dtype=torch.int32)  # (blocks, E)
    before = upto - within[:, -1]
    count = (within + before[:, None]).flatten(0, 1)  # (R, E), itself included
    rank = torch.where(member, count, 0).sum(dim=1) - 1
    return rank, upto[-1].cumsum(dim=0, dtype=torch.int32)


def _starts(ends: Tensor) -> Tensor:
    return torch.cat([ends.new_zeros(1), ends[:-1]]).long()


def _inverse(order: Tensor) -> Tensor:
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places
