"""A row of the collected table, and what every reader makes rows with."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from latentbridge.errors import DamageError
from latentbridge.metric import Metric, void

SEVERAL_RUNS = "the log holds several runs, which nothing tells apart"
WITH_BALANCE = "holds the balance loss: no language loss"
# a seed that nothing but a run's name tells, as our launcher, the bench's and the study's write it
SEED_IN_NAME = re.compile(r"(?:^|[-_])(?:seed[-_=]?(\d+)(?=$|[-_])|[sS](\d+)$)")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of one evaluation of one run; value None: void, and `void` says why."""

    source: str
    layout: str
    run: str
    cell: str | None = None
    seed: int | None = None
    # equal hashes and seeds of one layout: the same computation was asked for
    config: str | None = None
    label: str | None = None
    step: int | None = None
    metric: str = ""
    value: float | None = None
    # None: the file does not tell
    n: int | None = None
    low: float | None = None
    high: float | None = None
    void: str | None = None
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("seed", "step", "n"):
            found = getattr(self, name)
            # some writers make every number a float
            is_whole = type(found) is int or (isinstance(found, float) and found.is_integer())
            if not (found is None or (is_whole and abs(found) < 2**63)):
                raise DamageError(f"{name} is {found!r}; an integer is needed")
        for name in ("value", "low", "high"):
            found = getattr(self, name)
            if found is not None and type(found) not in (int, float):
                raise DamageError(f"{name} of {self.metric} is {found!r}; a number is needed")

    def at(self, label: str, step: int | None = None) -> Row:
        """The same run, at another evaluation."""
        return replace(self, label=label, step=step)

    def at_step(self, step: Any) -> Row:
        """The same run, at the evaluation of an update as a file names it."""
        number = whole(step)
        return self.at(str(number), number)

    def having(self, metric: str, value: Any, *flags: str, gone: str = "") -> Row:
        """The same evaluation with a value as a file holds it; gone: why that value means nothing."""
        empty = value is None or value == ""
        number = None if empty else _number(value, metric)
        reason = "empty in the file" if number is None else gone
        if not reason and number is not None and not math.isfinite(number):
            reason = f"not finite ({number})"
        found = {"value": None, "void": reason} if reason else {"value": number, "void": None}
        return replace(self, metric=metric, flags=flags, **found)

    def measured(self, metric: str, found: Metric, *flags: str) -> Row:
        """The same evaluation with a metric of ours."""
        plain = {name: getattr(found, name) for name in ("value", "n", "low", "high", "void")}
        return replace(self, metric=metric, flags=flags, **plain)

    def lacking(self, metric: str, reason: str) -> Row:
        """The same evaluation with a metric that is void."""
        return replace(self.measured(metric, void(reason)), n=None)


def _number(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise DamageError(f"{where} is {value!r}; a number is needed") from None


def whole(value: Any) -> Any:
    """An integer that was written as text or as a float; anything else as it is, which a row refuses."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return value
    return value if type(value) is int or not number.is_integer() else int(number)


def seed_in(name: str) -> int | None:
    """The seed that a run's name tells; None where it tells none."""
    found = SEED_IN_NAME.search(name)
    return int(next(filter(None, found.groups()))) if found else None


def goes_back(steps: Iterable[int]) -> bool:
    """Whether updates, as a log names them, go back somewhere: another run was appended."""
    return any(later <= earlier for earlier, later in pairwise(steps))


def fingerprint(config: Mapping[str, Any]) -> str:
    """Twelve hex digits, equal for equal settings."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]


def of_total(row: Row, metric: str, value: Any, gone: str = "") -> Row:
    """A loss with the balance loss in it, called total_loss: under one name it lost to runs without one.

    Of what is made of such a loss, a perplexity, there is no number.
    """
    if "loss" not in metric:
        return row.lacking(metric, f"made of a loss that {WITH_BALANCE}")
    # what cannot be read is named as the file calls it
    found = row.having(metric, value, WITH_BALANCE, gone=gone)
    return replace(found, metric=metric.replace("loss", "total_loss"))


def numbered(name: str, values: Any) -> Iterator[tuple[str, Any]]:
    """`name[0]`, `name[1]`, ... of a list; nothing of what is none."""
    if isinstance(values, list):
        yield from ((f"{name}[{i}]", value) for i, value in enumerate(values))
