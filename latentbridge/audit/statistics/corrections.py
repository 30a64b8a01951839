"""What several tests at once do to their p values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

SIGNIFICANCE = 0.05

Decided = Literal["won", "tied", "lost"]


def holm(p_values: Sequence[float]) -> list[float]:
    """p values raised so that 0.05 bounds the chance of even one false find among them all (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        floor = max(floor, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = floor
    return adjusted


def outcome(difference: float, p: float, lower_is_better: bool) -> Decided:
    """won or lost where the corrected p tells so; tied says that the data cannot tell."""
    if p >= SIGNIFICANCE:
        return "tied"
    return "won" if (difference < 0) == lower_is_better else "lost"
