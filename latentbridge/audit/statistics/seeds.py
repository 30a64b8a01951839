"""What may be said from a handful of seeds: t intervals, pairs of seeds, Welch's test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    half = _t_quantile(n - 1) * math.sqrt(variance(values) / n)
    low, high = average - half, average + half
    if share:
        low, high = max(0.0, low), min(1.0, high)
    return Metric(value=average, n=n, low=low, high=high)


@dataclass(frozen=True)
class SeedTest:
    """One cell minus another with its 95 % interval and the two-sided p of no difference; void: no p."""

    difference: Metric
    p: float | None
    by: str  # "3 pairs" of seeds, or "Welch"


def compare_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> SeedTest:
    """first minus second, by pairs of seeds where both have the same ones, else by Welch's t.

    A seed sets the order of the data and the first weights of both cells, so what it does to both cancels.
    first, second: value by seed; two seeds or more on each side
    """
    if first.keys() == second.keys():
        seeds, by = sorted(first), f"{len(first)} pairs"
        values, others = [first[seed] for seed in seeds], [second[seed] for seed in seeds]
        differences = [a - b for a, b in zip(values, others, strict=True)]
        if not has_spread(differences, scale=_scale(values, others)):
            reason = "every pair of seeds differs by the same; there is no spread to judge by"
            return SeedTest(void(reason, len(seeds)), None, by)
        return SeedTest(*paired_t(values, others), by)
    values, others = list(first.values()), list(second.values())
    if not has_spread(values) and not has_spread(others):
        reason = "in each cell all seeds gave one value; there is no spread to judge by"
        return SeedTest(void(reason), None, "Welch")
    return SeedTest(*welch(values, others), "Welch")


def paired_t(first: Sequence[float], second: Sequence[float]) -> tuple[Metric, float]:
    """Mean of first minus second with its 95 % interval, and the two-sided p of no difference.

    Needs two pairs or more whose differences have a spread; n counts pairs.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    n = len(differences)
    difference = math.fsum(differences) / n
    error = math.sqrt(variance(differences, scale=_scale(first, second)) / n)
    half = _t_quantile(n - 1) * error
    interval = Metric(value=difference, n=n, low=difference - half, high=difference + half)
    return interval, 2.0 * _t_tail(abs(difference) / error, n - 1)


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[Metric, float]:
    """first minus second with its 95 % interval, and the two-sided p of no difference (Welch 1947).

    Needs two values or more on each side, and a spread on at least one.
    """
    parts = [variance(values) / len(values) for values in (first, second)]
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


def has_spread(values: Sequence[float], scale: float | None = None) -> bool:
    """Whether the values differ by more than rounding.

    scale: the largest that they were computed from, where they are differences
    """
    return max(values) - min(values) > 1e-12 * (max(map(abs, values)) if scale is None else scale)


def variance(values: Sequence[float], scale: float | None = None) -> float:
    """Of a sample of two or more; 0 without a spread, see `has_spread`."""
    if not has_spread(values, scale):
        return 0.0
    average = math.fsum(values) / len(values)
    return math.fsum((value - average) ** 2 for value in values) / (len(values) - 1)


def _scale(*samples: Sequence[float]) -> float:
    return max(abs(value) for values in samples for value in values)


def _t_quantile(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def _t_tail(t: float, freedom: float) -> float:
    from scipy.special import stdtr

    return float(stdtr(freedom, -t))
