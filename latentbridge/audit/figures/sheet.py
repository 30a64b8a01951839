"""The data of one figure as rows, which are its CSV: nothing is drawn that is not in them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from latentbridge.audit.records import CellRecords, Records
from latentbridge.metric import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Row = dict[str, Any]


@dataclass
class Sheet:
    """rows: of equal keys;  about: what the reader must know;  left_out: by cell, why it is not drawn."""

    about: str
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def caption(self, launch: str) -> str:
        """Which launch, what it shows, and what is missing."""
        by_reason: dict[str, list[str]] = {}
        for cell, why in self.left_out.items():
            by_reason.setdefault(why, []).append(cell)
        missing = "; ".join(f"{', '.join(cells)} ({why})" for why, cells in by_reason.items())
        parts = [f"{launch}.", self.about.strip(), self._seeds(), f"Left out: {missing}." if missing else ""]
        return " ".join(filter(None, parts))

    def _seeds(self) -> str:
        """How many seeds a cell has; empty where rows are of single runs, or of several cells."""
        rows = [row for row in self.rows if {"cell", "run_ids"} <= row.keys() and "cells" not in row]
        counts = sorted({len(row["run_ids"].split()) for row in rows})
        if not counts:
            return ""
        text = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        return f"{text} seed{'' if counts == [1] else 's'} a cell."

    def as_csv(self) -> str:
        """Every row with the runs that it is of: `run_id` of one, `run_ids` of several."""
        assert {"run_id", "run_ids"} & set(self.rows[0]), "a row must say of which runs it is"
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


@dataclass(frozen=True)
class Figure:
    """name: of its files;  read: its data, without rows where a launch has none;  plot: rows and caption.

    needs: what a launch must hold for it, after "it needs"
    """

    name: str
    read: Callable[[Records], Sheet]
    plot: Callable[[Sequence[Row], str], Canvas]
    needs: str

    def nothing(self, records: Records) -> str:
        """Why there is nothing to draw: what it needs, and by cell what is missing."""
        missing = "".join(f"; {cell}: {why}" for cell, why in self.read(records).left_out.items())
        return f"{records.summary.launch} has no results for {self.name}: it needs {self.needs}{missing}"


def bounds(name: str, metric: Metric) -> Row:
    """Columns of a number and its interval."""
    return {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}


def unique(rows: Sequence[Row], column: str) -> list[Any]:
    """Values of a column in the order of the rows."""
    return list(dict.fromkeys(row[column] for row in rows))


def where(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def measured(cells: Sequence[CellRecords], metric: str, sheet: Sheet) -> list[CellRecords]:
    """Cells that have a final metric of every seed; the others are named in the sheet."""
    found = []
    for cell in cells:
        if why := cell.gaps(metric):
            sheet.left_out[cell.name] = why
        else:
            found.append(cell)
    return found


def crowd(sheet: Sheet, most: int) -> Sheet:
    """Name the cells beyond the first so many, which a plot leaves out for lack of room."""
    for cell in unique(sheet.rows, "cell")[most:]:
        sheet.left_out[cell] = "no room; in the CSV"
    return sheet


def without(cells: Sequence[CellRecords], known: set[str], why: str, sheet: Sheet) -> None:
    """Name cells that have no rows and were not named yet."""
    for cell in cells:
        if cell.name not in known:
            sheet.left_out.setdefault(cell.name, why)
