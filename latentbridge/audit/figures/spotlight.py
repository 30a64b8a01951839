"""Of more lines than can be told apart: the foremost in colour and by name, the others in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from latentbridge.audit.figures.style import COLOURS, FAINT, looks
from latentbridge.metric import better

# with more neither colours nor names at the ends of lines are told apart in a column
MOST = 8
FOREMOST = 5


class Spotlight(NamedTuple):
    """named: what has a colour;  look: of every line, in the order of drawing;  words: what colours mean."""

    named: list[Any]
    look: dict[Any, dict[str, Any]]
    words: str

    def caption(self, caption: str) -> str:
        """What stands below the figure, with what its colours mean."""
        return f"{caption} {self.words}".rstrip()


def spotlight(
    names: Sequence[Any],
    ends: Mapping[Any, float],
    metric: str,
    title: str,
    *,
    keep: Sequence[Any] = (),
    noun: str = "cells",
    may_coincide: bool = False,
) -> Spotlight:
    """All lines in colour where they are few; of many the foremost by where they end, and the hindmost.

    ends: by name, of those that have the metric;  title: what the metric is called;  keep: named in any case
    """
    if len(names) <= MOST:
        return Spotlight(list(names), looks(names, may_coincide=may_coincide), "")
    # of a loss, which has no name that tells, less is
    is_more = better(metric) == "higher"
    ranked = sorted((name for name in names if name in ends), key=lambda name: ends[name], reverse=is_more)
    foremost, hindmost = ranked[:FOREMOST], ranked[FOREMOST:][-1:]
    kept = [name for name in keep if name in names and name not in (*foremost, *hindmost)]
    look = {name: FAINT for name in names if name not in (*foremost, *hindmost, *kept)}
    others = len(look)
    look |= looks([*kept, *foremost], may_coincide=may_coincide)
    # above all: its gaps show what it lies upon
    look |= {name: {"color": COLOURS[-1], "linestyle": "--"} for name in hindmost}
    first, last = ("highest", "lowest") if is_more else ("lowest", "highest")
    words = (
        f"In colour: of {len(names)} {noun} the {len(foremost)} {first} by {title} at the end"
        f"{''.join(f', and {name}' for name in kept)}; black: the {last}; grey: {others} others, in the CSV."
    )
    return Spotlight([*kept, *foremost, *hindmost], look, words)


def ends_of(rows: Sequence[dict[str, Any]], metric: str, key: str = "cell") -> dict[Any, float]:
    """The last mean of each line; of a line in several panels the mean of theirs."""
    found: dict[Any, dict[Any, float]] = {}
    for row in rows:
        if row["metric"] == metric:
            found.setdefault(row[key], {})[row["cell"]] = row["mean"]
    return {name: sum(ends.values()) / len(ends) for name, ends in found.items()}
