"""A measured number with its n and interval, or void with a reason; never a silent zero."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

Z95 = NormalDist().inv_cdf(0.975)

Direction = Literal["lower", "higher"]

# last words of names
LOWER = (
    *("nll", "loss", "perplexity", "ppl", "bits_per_byte", "bpc", "s", "kv_mib"),
    *("demand_cv", "max_vio", "dead_experts", "gini", "drop_rate"),
)
HIGHER = ("accuracy", "score", "context_recovered", "tokens_per_s", "kv_saved_mib")
_ENDS: dict[Direction, re.Pattern[str]] = {
    # a rate is no time, though it ends in seconds
    "higher": re.compile(rf"(^|_)({'|'.join(HIGHER)})$"),
    "lower": re.compile(rf"(^|_)(?<!per_)({'|'.join(LOWER)})$"),
}
# controls, and what frozen models reach alone: what a result is held against, of which neither is better
_REFERENCE = re.compile(
    r"(^|_)(shuffled_source|no_source|no_context|full_text|cut_text|source_alone|target_alone|cascade|base)"
    r"_(nll|accuracy)$"
)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """value with a 95 % interval [low, high] over n samples; value None: void, and `void` says why."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    void: str | None = None

    def as_record(self) -> dict[str, Any]:
        """Plain data for a JSONL line; void metrics hold n and the reason only."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @staticmethod
    def from_record(record: dict[str, Any]) -> Metric:
        """The inverse of `as_record`."""
        return Metric(**{"value": None, **record})

    def __str__(self) -> str:
        if self.value is None:
            return f"void ({self.void})"
        interval = f" [{self.low:.3f}, {self.high:.3f}]" if self.low is not None else ""
        return f"{self.value:.3f}{interval}"


def is_seconds(name: str) -> bool:
    """Whether a metric of this name is a time, which no repetition gives again to the digit."""
    return name.endswith("_s")


def better(name: str) -> Direction | None:
    """Which value of a metric is the better one, told from its name; None: neither, or nobody knows."""
    if _REFERENCE.search(name):
        return None
    return next((direction for direction, ends in _ENDS.items() if ends.search(name)), None)


def best_of(scores: Mapping[str, float], metric: str, mode: str) -> tuple[str, str]:
    """The name with the best score, the first of equals, and in words why; mode: min or max."""
    best = (min if mode == "min" else max)(scores, key=lambda name: scores[name])
    beaten = ", ".join(f"{name} {score:.6g}" for name, score in scores.items() if name != best)
    bound = "lowest" if mode == "min" else "highest"
    return best, f"{best} has the {bound} {metric}, {scores[best]:.6g}; beaten: {beaten or 'none'}"


def void(reason: str, n: int = 0) -> Metric:
    """A metric that could not be measured."""
    return Metric(value=None, n=n, void=reason)


def proportion(successes: int, n: int) -> Metric:
    """A share with its Wilson score interval (Wilson 1927), right at 0 and n too."""
    if n == 0:
        return void("no samples")
    p, z2 = successes / n, Z95 * Z95
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # at 0 and n a bound equals p, and rounding must not put it on the wrong side
    return Metric(value=p, n=n, low=max(0.0, min(p, middle - half)), high=min(1.0, max(p, middle + half)))


def mean(values: Sequence[float]) -> Metric:
    """A mean over independent samples with its normal interval; for few seeds, audit's seed_mean."""
    n = len(values)
    if n == 0:
        return void("no samples")
    if not all(math.isfinite(value) for value in values):
        return void("not finite", n)
    average = math.fsum(values) / n
    if n == 1:
        return Metric(value=average, n=1)
    spread = math.sqrt(math.fsum((value - average) ** 2 for value in values) / (n - 1))
    half = Z95 * spread / math.sqrt(n)
    return Metric(value=average, n=n, low=average - half, high=average + half)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Metric:
    """A ratio of two paired means with its delta-method interval (Cochran 1977, section 2.11)."""
    n = len(numerators)
    if n == 0 or n != len(denominators):
        return void("no paired samples", n)
    total = math.fsum(denominators)
    if not math.isfinite(total) or abs(total) < 1e-12:
        return void("the denominator is zero or not finite", n)
    value = math.fsum(numerators) / total
    if not math.isfinite(value):
        return void("not finite", n)
    if n == 1:
        return Metric(value=value, n=1)
    residuals = [top - value * bottom for top, bottom in zip(numerators, denominators, strict=True)]
    variance = math.fsum(r * r for r in residuals) / (n - 1)
    half = Z95 * math.sqrt(variance / n) / abs(total / n)
    return Metric(value=value, n=n, low=value - half, high=value + half)
