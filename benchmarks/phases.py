"""Where the time of an update goes: by phase, and by kind of what the device does."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# the first that a name matches: kernels on a GPU, operators on a CPU; flash attention is made of cutlass
KINDS = {
    "collectives": r"nccl|gloo|c10d|_exchanged",
    "attention": r"flash|fmha|attention",
    "products": r"gemm|gemv|nvjet|cutlass|cublas|splitk|aten::(add|_grouped_)?mm\b|aten::(badd)?bmm\b",
}


class Stopwatch:
    """Marks between the phases of an update; on a GPU they lie in its queue, and nobody waits for them."""

    def __init__(self) -> None:
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Here one phase ends and the next begins."""
        if torch.cuda.is_available():
            self._marks.append(torch.cuda.current_stream().record_event(torch.cuda.Event(enable_timing=True)))
        else:
            self._marks.append(time.perf_counter())

    def milliseconds(self, phases: int) -> list[float]:
        """Of each phase, the mean over updates, each of which left a mark more than it has phases."""
        updates = [
            self._marks[start : start + phases + 1] for start in range(0, len(self._marks), phases + 1)
        ]
        return [sum(_between(*one[i : i + 2]) for one in updates) / len(updates) for i in range(phases)]


def _between(start: Any, end: Any) -> float:
    return 1e3 * (end - start) if isinstance(start, float) else float(start.elapsed_time(end))


def profiled(update: Callable[[], object], updates: int) -> dict[str, Any]:
    """What this rank's device does in an update, ms; on a CPU what torch does, and idle is all else.

    returns ms of each kind, rest and idle; launches, kernels or operators; longest, what took most ms
    """
    # the first time the profiler itself takes a while
    for count in (1, updates):
        wait()
        began = time.perf_counter()
        with profile(activities=[_activity()]) as found:
            for _ in range(count):
                update()
            wait()
        elapsed = 1e3 * (time.perf_counter() - began)
    spans = [event for event in found.events() if _counts(event)]
    took: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for event in spans:
        ms = _milliseconds(event) / updates
        took[event.name] += ms
        kinds[_kind(event.name)] += ms
    if torch.cuda.is_available():
        ranges = [(event.time_range.start, event.time_range.end) for event in spans]
        idle = _gaps(ranges) / 1e3 / updates
    else:
        idle = max(0.0, elapsed / updates - took.total())
    return {
        **{kind: kinds[kind] for kind in (*KINDS, "rest")},
        "idle": idle,
        "launches": len(spans) // updates,
        "longest": took.most_common(8),
    }


def wait() -> None:
    """Until the device has done all it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _activity() -> ProfilerActivity:
    # operators are not looked at beside kernels: the host would be slower, and a GPU wait for it
    return ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU


def _counts(event: Any) -> bool:
    device = DeviceType.CUDA if torch.cuda.is_available() else DeviceType.CPU
    return event.device_type == device and not event.is_user_annotation


def _milliseconds(event: Any) -> float:
    return (
        float(event.time_range.elapsed_us() if torch.cuda.is_available() else event.self_cpu_time_total) / 1e3
    )


def _kind(name: str) -> str:
    return next((kind for kind, names in KINDS.items() if re.search(names, name, re.IGNORECASE)), "rest")


def _gaps(ranges: Iterable[tuple[float, float]]) -> float:
    """From the first start to the last end, what none of these covers."""
    gaps, until = 0.0, None
    for start, end in sorted(ranges):
        if until is not None:
            gaps += max(0.0, start - until)
        until = end if until is None else max(until, end)
    return gaps
