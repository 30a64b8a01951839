"""What quality costs: bits per byte against measured tokens a second, by router and by router network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentbridge.audit.figures.sheet import Figure, Row, Sheet, bounds, measured, unique, where
from latentbridge.audit.figures.style import (
    COLUMN_IN,
    GREY,
    Mark,
    dots,
    draw_interval,
    explain_markers,
    label_points,
    looks,
    markers_of,
    new_figure,
    thousands,
)
from latentbridge.audit.records import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

QUALITY = "test_bits_per_byte"


def _read(records: Records) -> Sheet:
    sheet = Sheet(
        "Tokens per second: median over the log of each run, of updates alone, mean and range over seeds, "
        "measured as the runs ran; runs that shared a device measure that too. Bits per byte: 95 % t "
        "intervals over seeds. The line joins cells that no other beats in both."
    )
    for cell in measured(records.mixtures, QUALITY, sheet):
        rate = cell.range_over_seeds(lambda run: run.tokens_per_s)
        if rate is None:
            sheet.left_out[cell.name] = "no tokens per second were logged"
            continue
        padded = cell.setting("mixture", "dispatch", "kind") == "padded"
        sheet.rows.append(
            {
                "cell": cell.name,
                "strategy": cell.setting("mixture", "router", "strategy"),
                "network": cell.setting("mixture", "router", "network"),
                "capacity_factor": cell.setting("mixture", "dispatch", "capacity_factor") if padded else None,
                **bounds("tokens_per_s", rate),
                **bounds(QUALITY, cell.row.metrics[QUALITY]),
                "seeds": len(cell.runs),
                "run_ids": cell.run_ids,
            }
        )
    return sheet


def _read_networks(records: Records) -> Sheet:
    sheet = _read(records)
    # hash has no network
    rows = [row for row in sheet.rows if row["strategy"] != "hash"]
    sheet.rows = rows if len(unique(rows, "network")) > 1 else []
    return sheet


def _plot(rows: Sequence[Row], caption: str) -> Canvas:
    figure = new_figure(caption, COLUMN_IN, 3.2)
    axes = figure.subplots()
    look = dots(unique(rows, "cell"))
    for row in rows:
        draw_interval(axes, [row], "tokens_per_s", QUALITY, **look[row["cell"]])
    _dress(axes, rows)
    label_points(axes, [_mark(row, row["cell"], look[row["cell"]]["color"]) for row in rows])
    return figure


def _plot_networks(rows: Sequence[Row], caption: str) -> Canvas:
    figure = new_figure(caption, COLUMN_IN, 3.2)
    axes = figure.subplots()
    strategies = looks(unique(rows, "strategy"))
    markers = markers_of(unique(rows, "network"))
    for strategy, factor in dict.fromkeys((row["strategy"], row["capacity_factor"]) for row in rows):
        own, colour = where(rows, strategy=strategy, capacity_factor=factor), strategies[strategy]["color"]
        x, y = ([row[name] for row in own] for name in ("tokens_per_s", QUALITY))
        axes.plot(x, y, color=colour, linewidth=0.5, alpha=0.5)
        for row in own:
            draw_interval(axes, [row], "tokens_per_s", QUALITY, color=colour, marker=markers[row["network"]])
    _dress(axes, rows)
    best = [min(where(rows, strategy=strategy), key=lambda row: row[QUALITY]) for strategy in strategies]
    label_points(axes, [_mark(row, row["strategy"], strategies[row["strategy"]]["color"]) for row in best])
    explain_markers(axes, markers, "router network")
    return figure


def _mark(row: Row, name: str, colour: str) -> Mark:
    return Mark.of(row, "tokens_per_s", QUALITY, name, colour)


def _dress(axes: Axes, rows: Sequence[Row]) -> None:
    front = pareto([(row["tokens_per_s"], row[QUALITY]) for row in rows])
    axes.plot(*zip(*front, strict=True), color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    axes.invert_yaxis()
    axes.margins(0.12)
    rates = [row["tokens_per_s"] for row in rows]
    if max(rates) > 3 * min(rates):
        axes.set_xscale("log")
    axes.set_xlabel("tokens per second of training")
    axes.set_ylabel("bits per byte of the test text (better is up)")
    thousands(axes.xaxis)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that none beats in both: x large, y small; in order of x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (-point[0], point[1])):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front[::-1]


FIGURES = (
    Figure(
        "frontier", _read, _plot, needs="mixtures of experts with bits per byte of test text and logged speed"
    ),
    Figure(
        "router_arch_frontier",
        _read_networks,
        _plot_networks,
        needs="mixtures of experts whose routers have two or more networks",
    ),
)
