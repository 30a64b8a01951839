"""The temperature study: constant temperatures against one another, and what routers do by update."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, pairwise
from typing import TYPE_CHECKING

from latentbridge.audit.figures.sheet import Figure, Row, Sheet, unique, where
from latentbridge.audit.figures.style import (
    COLOURS,
    GREY,
    LINES,
    PAGE_IN,
    SMALL,
    by_update,
    draw_band,
    draw_interval,
    evenly,
    new_figure,
    warm,
)
from latentbridge.audit.figures.temperature_cells import (
    ABOUT,
    ACCURACY,
    CONFIDENCE,
    ENTROPY,
    LOSS,
    NAMES,
    Read,
    constant_series,
    curves,
    ends,
    last,
    verdict,
)
from latentbridge.audit.records import Records, final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


# of more temperatures a column has no room for all names; colours and places tell those between
MOST_NAMED, OF_MANY = 8, 6


def _named(temperatures: Sequence[float]) -> list[float]:
    return evenly(sorted(temperatures), MOST_NAMED if len(temperatures) <= MOST_NAMED else OF_MANY)


def _read(records: Records, quantities: Sequence[str], numbers: dict[str, Read]) -> Sheet:
    sheet = Sheet(ABOUT)
    for series, group in constant_series(records, sheet).items():
        for temperature, cell in group:
            sheet.rows += curves(cell, quantities, series, temperature)
            sheet.rows += ends(cell, numbers, series, temperature)
    return sheet


def _by_step(axes: Axes, rows: Sequence[Row], metric: str, x: str = "step") -> None:
    """Curves coloured by temperature; sampled choices are dashed."""
    rows = [row for row in where(rows, metric=metric) if row["step"] is not None and row[x] is not None]
    colours = warm(unique(rows, "temperature"))
    for line, series in zip(cycle(LINES), unique(rows, "series"), strict=False):
        for temperature in unique(where(rows, series=series), "temperature"):
            own = where(rows, series=series, temperature=temperature)
            moved = [row | {"step": row[x]} for row in own]
            draw_band(axes, moved, color=colours[temperature], linestyle=line)
    axes.set_title(NAMES[metric], loc="left")
    if x == "step":
        by_update(axes)
    else:
        axes.set_xlabel("minutes of training")


def _name_temperatures(figure: Canvas, rows: Sequence[Row]) -> None:
    """A legend above all panels, which share their colours and lines."""
    from matplotlib.lines import Line2D

    colours = warm(unique(rows, "temperature"))
    handles = [
        Line2D([], [], color=colours[temperature], label=f"T = {temperature:g}")
        for temperature in _named(list(colours))
    ]
    for line, series in zip(cycle(LINES), unique(rows, "series"), strict=False):
        face = "white" if series.startswith("choice") else GREY
        mark = Line2D([], [], color=GREY, marker="o", markersize=3, linestyle=line, label=f"acts on {series}")
        mark.set_markerfacecolor(face)
        handles.append(mark)
    columns = min(len(handles), 8)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=SMALL)


def against_temperature(
    axes: Axes, rows: Sequence[Row], metric: str, y: str, colour: str, title: str
) -> None:
    """A metric of single numbers, in column `y`, with the intervals of their rows, a line a series."""
    for line, series in zip(cycle(LINES), unique(rows, "series"), strict=False):
        own = [
            {"x": row["temperature"], "y": row[y], "y_low": row["low"], "y_high": row["high"]}
            for row in where(rows, metric=metric, series=series)
        ]
        face = "white" if series.startswith("choice") else colour
        look = {"color": colour, "markerfacecolor": face, "linestyle": line, "markersize": 3}
        draw_interval(axes, own, "x", "y", label=f"acts on {series}", **look)
    ticks = _named(unique(rows, "temperature"))
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("temperature")
    axes.set_title(title, loc="left")


def _read_ablation(records: Records) -> Sheet:
    numbers = {
        "last_loss": last(LOSS),
        "best_loss": final(LOSS),
        "final_accuracy": final(ACCURACY),
        "final_entropy": final(ENTROPY),
    }
    sheet = _read(records, (LOSS, ACCURACY), numbers)
    for series, group in constant_series(records, Sheet("")).items():
        sheet.rows += verdict(series, group)
    return sheet


def _plot_ablation(rows: Sequence[Row], caption: str) -> Canvas:
    figure = new_figure(caption, PAGE_IN, 5.6, stacks=False)
    grid = figure.add_gridspec(3, 3)
    curve = [row for row in rows if not row["metric"].startswith("table_")]
    wide, minutes = figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[0, 2])
    accuracy, table = figure.add_subplot(grid[2, :2]), figure.add_subplot(grid[2, 2])
    _by_step(wide, curve, LOSS)
    _by_step(minutes, curve, LOSS, "minutes")
    for column, (metrics, title) in enumerate(
        (
            ({"best_loss": COLOURS[0], "last_loss": COLOURS[1]}, NAMES[LOSS]),
            ({"final_accuracy": COLOURS[0]}, NAMES[ACCURACY]),
            ({"final_entropy": COLOURS[0]}, NAMES[ENTROPY]),
        )
    ):
        axes = figure.add_subplot(grid[1, column])
        for metric, colour in metrics.items():
            against_temperature(axes, curve, metric, "mean", colour, title)
        if column == 0:
            _name_weights(axes, metrics)
    _by_step(accuracy, curve, ACCURACY)
    _write_table(table, rows)
    _name_temperatures(figure, rows)
    return figure


def _name_weights(axes: Axes, metrics: dict[str, str]) -> None:
    axes.margins(y=0.35)
    for place, (metric, colour) in enumerate(metrics.items()):
        words = metric.replace("_loss", " weights")
        axes.text(0.03, 0.97 - 0.1 * place, words, color=colour, va="top", transform=axes.transAxes)


def _write_table(axes: Axes, rows: Sequence[Row]) -> None:
    """Best and worst temperature by series, and whether the seeds can tell them apart."""
    axes.set_axis_off()
    lines = []
    for series in unique(rows, "series"):
        found = {row["metric"]: row for row in where(rows, series=series)}
        lines.append(
            f"acts on {series}: {len(unique(where(rows, series=series), 'temperature'))} temperatures"
        )
        for name in ("best", "worst"):
            row = found[f"table_{name}"]
            lines.append(f"  {name}: T = {row['temperature']:g}, {row['mean']:.4f} nats")
        if difference := found.get("table_difference"):
            lines.append(f"  apart by {difference['mean']:.4f}")
            lines.append(
                f"  [{difference['low']:.4f}, {difference['high']:.4f}], p = {found['table_p']['mean']:.2g}"
            )
        lines.append("")
    lines.append("p is too small: of the two cells\nthat were found farthest apart")
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=SMALL, transform=axes.transAxes)


def _read_dynamics(records: Records) -> Sheet:
    numbers = {"final_entropy": final(ENTROPY), "final_confidence": final(CONFIDENCE)}
    return _read(records, (ENTROPY, CONFIDENCE, "balance"), numbers)


def _plot_dynamics(rows: Sequence[Row], caption: str) -> Canvas:
    figure = new_figure(caption, PAGE_IN, 4.0)
    (entropy, confidence), (balance, ending) = figure.subplots(2, 2)
    for axes, metric in ((entropy, ENTROPY), (confidence, CONFIDENCE), (balance, "balance")):
        if where(rows, metric=metric):
            _by_step(axes, rows, metric)
        else:
            axes.set_axis_off()
    against_temperature(ending, rows, "final_entropy", "mean", COLOURS[0], "at the end")
    twin = ending.twinx()
    twin.spines["right"].set_visible(True)
    against_temperature(twin, rows, "final_confidence", "mean", COLOURS[1], "")
    for axes, colour, words in ((ending, 0, "entropy, nats"), (twin, 1, "confidence")):
        axes.set_ylabel(words, color=COLOURS[colour])
        axes.tick_params(axis="y", colors=COLOURS[colour])
    _name_temperatures(figure, rows)
    return figure


def _read_entropy(records: Records) -> Sheet:
    sheet = _read(records, (ENTROPY,), {})
    for series, temperature in dict.fromkeys((row["series"], row["temperature"]) for row in sheet.rows):
        own = where(sheet.rows, series=series, temperature=temperature)
        for before, after in pairwise(own):
            steps = after["step"] - before["step"]
            slope = (after["mean"] - before["mean"]) / steps
            middle = (after["step"] + before["step"]) / 2
            blank = dict.fromkeys(("low", "high", "minutes"))
            sheet.rows.append(after | blank | {"metric": "slope", "step": middle, "mean": slope})
    return sheet


def _plot_entropy(rows: Sequence[Row], caption: str) -> Canvas:
    figure = new_figure(caption, PAGE_IN, 2.5)
    entropy, slope = figure.subplots(1, 2)
    _by_step(entropy, rows, ENTROPY)
    colours = warm(unique(rows, "temperature"))
    for line, series in zip(cycle(LINES), unique(rows, "series"), strict=False):
        for temperature in unique(where(rows, series=series), "temperature"):
            own = where(rows, metric="slope", series=series, temperature=temperature)
            x, y = [row["step"] for row in own], [row["mean"] for row in own]
            slope.plot(x, y, color=colours[temperature], linestyle=line, linewidth=1)
    slope.axhline(0, color=GREY, linewidth=0.6, linestyle="--")
    slope.set_title("its change by update, nats", loc="left")
    by_update(slope)
    _name_temperatures(figure, rows)
    return figure


NEEDS = "mixtures of experts alike but for a constant router temperature, two or more"
FIGURES = (
    Figure("temperature_ablation_comprehensive", _read_ablation, _plot_ablation, needs=NEEDS),
    Figure("routing_dynamics", _read_dynamics, _plot_dynamics, needs=NEEDS),
    Figure("entropy_analysis", _read_entropy, _plot_entropy, needs=NEEDS),
)
