"""What adapters reach against what a token activates for them, by variant and rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentbridge.audit.figures.frontier import pareto
from latentbridge.audit.figures.sheet import Figure, Row, Sheet, bounds, measured, unique, where
from latentbridge.audit.figures.style import (
    COLUMN_IN,
    GREY,
    Mark,
    draw_interval,
    explain_markers,
    label_points,
    looks,
    markers_of,
    new_figure,
)
from latentbridge.audit.records import Records

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

COST, QUALITY = "activated_percent", "test_nll"


def _read(records: Records) -> Sheet:
    # the published axis was (k/N)(r/16) for routed adapters and r/16 for all others: it gave embedded ones,
    # of which a token meets as many as experts, the cost of a single one
    sheet = Sheet(
        "Trained parameters that a token meets, of all that it meets, the frozen ones too; nats of answers: "
        "95 % t intervals over seeds. The line joins cells that no other beats in both."
    )
    cells = [cell for cell in records.cells if isinstance(cell.setting("adapters"), dict)]
    for cell in measured(cells, QUALITY, sheet):
        sheet.rows.append(
            {
                "cell": cell.name,
                "variant": cell.setting("adapters", "variant"),
                "rank": cell.setting("adapters", "rank"),
                **bounds(COST, cell.row.metrics[COST]),
                **bounds(QUALITY, cell.row.metrics[QUALITY]),
                "seeds": len(cell.runs),
                "run_ids": cell.run_ids,
            }
        )
    sheet.rows.sort(key=lambda row: (row[COST], row["cell"]))
    return sheet


def _plot(rows: Sequence[Row], caption: str) -> Canvas:
    figure = new_figure(caption, COLUMN_IN, 3.2)
    axes = figure.subplots()
    variants = looks(unique(rows, "variant"))
    markers = markers_of(sorted(unique(rows, "rank")))
    for row in rows:
        colour, marker = variants[row["variant"]]["color"], markers[row["rank"]]
        draw_interval(axes, [row], COST, QUALITY, color=colour, marker=marker)
    # fewer parameters and fewer nats are both better
    front = [(-x, y) for x, y in pareto([(-row[COST], row[QUALITY]) for row in rows])]
    axes.plot(*zip(*sorted(front), strict=True), color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    best = [min(where(rows, variant=name), key=lambda row: row[QUALITY]) for name in variants]
    marks = [Mark.of(row, COST, QUALITY, row["variant"], variants[row["variant"]]["color"]) for row in best]
    axes.invert_yaxis()
    axes.margins(0.12)
    axes.set_xlabel("% of the parameters that a token meets")
    axes.set_ylabel("nats per token of test answers (better is up)")
    label_points(axes, marks)
    explain_markers(axes, markers, "rank")
    return figure


FIGURES = (
    Figure("perft_frontier", _read, _plot, needs="adapters in a frozen mixture, evaluated on test text"),
)
