"""What may be said from a handful of seeds: t intervals, Welch's test, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence

from latentbridge.metric import Metric, void


def seed_mean(values: Sequence[float], share: bool = False) -> Metric:
    """Mean over seeds with its 95 % t interval; one seed has a value and no interval, n counts seeds.

    share: no value can lie outside [0, 1], so neither does the interval
    """
    n = len(values)
    if n == 0:
        return void("no seeds")
    average = math.fsum(values) / n
    if n == 1:
        return Metric(value=average, n=1)
    half = _t_quantile(n - 1) * math.sqrt(_variance(values) / n)
    low, high = average - half, average + half
    if share:
        low, high = max(0.0, low), min(1.0, high)
    return Metric(value=average, n=n, low=low, high=high)


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[Metric, float]:
    """first minus second with its 95 % interval, and the two-sided p of no difference (Welch 1947).

    Needs two values or more on each side, and a spread on at least one.
    """
    parts = [_variance(values) / len(values) for values in (first, second)]
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    difference = math.fsum(first) / len(first) - math.fsum(second) / len(second)
    half = _t_quantile(freedom) * error
    interval = Metric(
        value=difference, n=len(first) + len(second), low=difference - half, high=difference + half
    )
    return interval, 2.0 * _t_tail(abs(difference) / error, freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values raised so that 0.05 bounds the chance of even one false find among them all (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        floor = max(floor, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = floor
    return adjusted


def has_spread(values: Sequence[float]) -> bool:
    """Whether the values differ by more than the rounding of a mean."""
    return max(values) - min(values) > 1e-12 * max(abs(value) for value in values)


def _variance(values: Sequence[float]) -> float:
    if not has_spread(values):
        return 0.0
    average = math.fsum(values) / len(values)
    return math.fsum((value - average) ** 2 for value in values) / (len(values) - 1)


def _t_quantile(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def _t_tail(t: float, freedom: float) -> float:
    from scipy.special import stdtr

    return float(stdtr(freedom, -t))
