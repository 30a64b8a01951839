"""Rows of RUN/capacity.jsonl, one a capacity factor; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentbridge.metric import Metric

ROWS = "capacity.jsonl"

Row = dict[str, Any]


def metric_name(factor: float, what: str) -> str:
    """As in c1.25_drop_rate."""
    return f"c{factor:g}_{what}"


def metrics_of(rows: Sequence[Row]) -> dict[str, Metric]:
    """Both measurements of each row; intervals are over rounds, of a rate there is a median without one."""
    found = {}
    for row in rows:
        factor, n = row["capacity_factor"], row["iterations"]
        drop = Metric(value=row["drop_rate"], n=n, low=row["drop_rate_low"], high=row["drop_rate_high"])
        found[metric_name(factor, "drop_rate")] = drop
        found[metric_name(factor, "tokens_per_s")] = Metric(value=row["tokens_per_s"], n=n)
    return found
