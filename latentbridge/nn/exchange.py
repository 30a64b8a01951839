"""Experts that are shared by ranks: rows go to the rank that holds their expert, and come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Work = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Peers:
    """P ranks that share one set of experts: rank p of them holds the p-th run of E / P.

    group: these ranks;  replicas: the ranks of all sets that hold the same experts as this one
    name: by which DeepSpeed knows both
    """

    group: dist.ProcessGroup
    replicas: dist.ProcessGroup
    size: int
    rank: int
    name: str

    def own(self, whole: Tensor) -> Tensor:
        """This rank's run; whole: (E, ...), returns (E / P, ...)."""
        return whole.chunk(self.size)[self.rank]


def share(parameter: nn.Parameter, peers: Peers) -> nn.Parameter:
    """This rank's part of a stack, which remembers whose part it is: what trains and saves it has to know."""
    own = nn.Parameter(peers.own(parameter.detach()).clone())
    own.peers = peers  # type: ignore[attr-defined]
    return own


def peers_of(tensor: Tensor) -> Peers | None:
    """The ranks that hold the other parts; None: there are none."""
    return getattr(tensor, "peers", None)


class Exchange:
    """Where rows go that are sorted by expert; how many is told first, and read back to the host, once.

    counts: (P, E / P) rows that come here, by rank and expert
    """

    def __init__(self, ends: Tensor, peers: Peers) -> None:
        """ends: (E,) where each expert's rows end."""
        self._group = peers.group
        counts = ends.diff(prepend=ends.new_zeros(1)).view(peers.size, -1)  # (P, E / P)
        self.counts = _all_to_all(counts, None, None, peers.group)
        self._sizes = _read_later(torch.stack([counts.sum(dim=1), self.counts.sum(dim=1)]))

    def around(self, work: Work) -> Work:
        """What `work` makes of the rows that come here, each brought back to where it came from."""

        def run(rows: Tensor) -> Tensor:
            sent, received = self._sizes()
            came = _exchanged(rows, sent, received, self._group)
            return _exchanged(work(came), received, sent, self._group)

        return run


def _read_later(values: Tensor) -> Callable[[], Any]:
    """Starts to copy them to the host; to call what is returned waits for that alone, and lists them.

    So a GPU has work to do, queued in between, until the host has queued what needs the values.
    """
    # where it is of use, this lands in pinned memory, and the host goes on
    here = values.to("cpu", non_blocking=True)
    copied = torch.cuda.current_stream().record_event() if values.is_cuda else None

    def read() -> Any:
        if copied is not None:
            copied.synchronize()
        return here.tolist()

    return read


def around_slots(work: Work, num_own: int, peers: Peers) -> Work:
    """The same for rows in C slots an expert, C being equal on all ranks: nothing is read back.

    num_own: E / P experts, of which each has C slots a rank when `work` sees them
    """

    def run(rows: Tensor) -> Tensor:
        width, capacity = rows.shape[1], len(rows) // (num_own * peers.size)
        came = _exchanged(rows, None, None, peers.group).view(peers.size, num_own, capacity, width)
        done = work(came.transpose(0, 1).reshape(-1, width)).view(num_own, peers.size, capacity, width)
        return _exchanged(done.transpose(0, 1).reshape(-1, width), None, None, peers.group)

    return run


def _exchanged(
    rows: Tensor, sent: list[int] | None, received: list[int] | None, group: dist.ProcessGroup
) -> Tensor:
    out: Tensor = _Exchanged.apply(rows, sent, received, group)  # type: ignore[no-untyped-call]
    return out


class _Exchanged(torch.autograd.Function):
    """All-to-all; its gradient is the one of the other direction."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int] | None, received: list[int] | None, group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _all_to_all(grad, ctx.received, ctx.sent, ctx.group), None, None, None


def _all_to_all(
    rows: Tensor, sent: list[int] | None, received: list[int] | None, group: dist.ProcessGroup
) -> Tensor:
    """sent, received: rows to and from each rank; None: as many to and from all."""
    came = rows.new_empty(len(rows) if received is None else sum(received), *rows.shape[1:])
    dist.all_to_all_single(came, rows.contiguous(), received, sent, group=group)
    return came
