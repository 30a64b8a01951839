"""How large a difference is beside what it varies by, whatever its p (Cohen 1988)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from latentbridge.audit.statistics.seeds import variance


def cohens_d(first: Sequence[float], second: Sequence[float]) -> float | None:
    """first minus second in pooled standard deviations; None where neither side has a spread.

    Of few values it is too large: by a quarter of two sides of three (Hedges 1981).
    """
    freedom = len(first) + len(second) - 2
    pooled = ((len(first) - 1) * variance(first) + (len(second) - 1) * variance(second)) / freedom
    if pooled == 0:
        return None
    return (math.fsum(first) / len(first) - math.fsum(second) / len(second)) / math.sqrt(pooled)


def cohens_d_z(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Mean of the paired differences in their standard deviations; None where they have no spread."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    spread = variance(differences, scale=max(map(abs, (*first, *second))))
    return None if spread == 0 else math.fsum(differences) / len(differences) / math.sqrt(spread)


def cohens_h(first: float, second: float) -> float:
    """The distance of two shares on the scale where all shares of n vary alike; 0.2 is small, 0.8 large."""
    return 2 * math.asin(math.sqrt(first)) - 2 * math.asin(math.sqrt(second))
