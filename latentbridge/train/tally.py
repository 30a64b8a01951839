"""Running means of what the device computes, read by the host only when someone needs them."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from latentbridge.errors import RunError
from latentbridge.train import distributed

# name, sum, how many, first update at which it was not finite (inf: none)
_Value = tuple[str, float, int, float]


@dataclass
class Totals:
    """What all ranks have added since the last record; plain data, kept in checkpoints."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    tokens: int = 0
    flops: int = 0
    train_s: float = 0.0

    def means(self) -> dict[str, float]:
        """Mean of each value over what it was added for."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


class _Sums:
    """Sums on the device of values that come together, and the first update at which each was not finite."""

    def __init__(self, row: Tensor) -> None:
        self.sums = torch.zeros_like(row, dtype=torch.float64)
        self.first_bad = torch.full_like(self.sums, math.inf)
        self.count = 0

    def add(self, row: Tensor, step: int, weight: int) -> None:
        self.sums.add_(row, alpha=weight)
        self.first_bad = torch.where(row.isfinite(), self.first_bad, self.first_bad.clamp(max=step))
        self.count += weight


class Tally:
    """Adds on the device without waiting for it; `settle` waits, merges the ranks and looks for nan."""

    def __init__(self, totals: dict[str, Any] | None = None) -> None:
        """totals: what `as_record` gave before."""
        self.totals = Totals(**(totals or {}))
        self._pending: dict[tuple[str, ...], _Sums] = {}
        self._samples = 0
        self._tokens = 0
        self._flops = 0
        self._started: float | None = None

    def start_clock(self) -> None:
        """Training goes on from here; the clock stops at `settle`."""
        if self._started is None:
            self._started = time.perf_counter()

    def add(self, step: int, values: dict[str, Tensor], weight: int = 1) -> None:
        """Take the scalars of one micro-batch or update; those of one call must share a device.

        weight: samples that they are means over; micro-batches change size when a run backs off
        """
        row = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        if tuple(values) not in self._pending:
            self._pending[tuple(values)] = _Sums(row)
        self._pending[tuple(values)].add(row, step, weight)

    def count(self, samples: int, tokens: int, flops: int = 0) -> None:
        """Count what this rank has trained on."""
        self._samples += samples
        self._tokens += tokens
        self._flops += flops

    def settle(self) -> float:
        """Move what was added into `totals`; returns the seconds of training since the last call.

        Raises RunError on all ranks together, naming the first value that was not finite on any.
        """
        local: list[_Value] = []
        for names, sums in self._pending.items():
            columns = torch.stack([sums.sums, sums.first_bad]).T.tolist()
            for name, (total, first_bad) in zip(names, columns, strict=True):
                local.append((name, total, sums.count, first_bad))
        # the device has caught up with the host here, so this is the time that training took
        seconds = time.perf_counter() - self._started if self._started is not None else 0.0
        ranks = distributed.gather_in_order([(local, self._samples, self._tokens, self._flops)])
        self._pending, self._started = {}, None
        self._samples = self._tokens = self._flops = 0
        _refuse_not_finite([values for values, *_ in ranks])
        for values, samples, tokens, flops in ranks:
            self._merge(values)
            self.totals.samples += samples
            self.totals.tokens += tokens
            self.totals.flops += flops
        self.totals.train_s += seconds
        return seconds

    def _merge(self, values: list[_Value]) -> None:
        for name, total, count, _ in values:
            self.totals.sums[name] = self.totals.sums.get(name, 0.0) + total
            self.totals.counts[name] = self.totals.counts.get(name, 0) + count

    def take(self) -> Totals:
        """The totals since the last record; starts over. Settle first."""
        totals, self.totals = self.totals, Totals()
        return totals

    def as_record(self) -> dict[str, Any]:
        """Plain data to go on from. Settle first."""
        return asdict(self.totals)


def _refuse_not_finite(ranks: list[list[_Value]]) -> None:
    # a bad term spoils the total and, one update later, every other term: the earliest is the cause
    found = [
        (first_bad, position, name, rank)
        for rank, values in enumerate(ranks)
        for position, (name, _, _, first_bad) in enumerate(values)
    ]
    first_bad, _, name, rank = min(found, default=(math.inf, 0, "", 0))
    if first_bad < math.inf:
        raise RunError(
            f"update {first_bad:.0f}: {name} is not finite on rank {rank}. No checkpoint was taken since; "
            "lower optim.lr or optim.clip_norm, or look at how that value is computed"
        )
