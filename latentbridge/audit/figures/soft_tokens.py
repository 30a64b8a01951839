"""Accuracy and context recovered by number of soft tokens, beside controls and references."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from latentbridge.audit.figures.anatomy import model_name
from latentbridge.audit.figures.sheet import Figure, Row, Sheet
from latentbridge.audit.figures.style import COLOURS, COLUMN_IN, GREY, SMALL, new_figure
from latentbridge.audit.records import Records, setting
from latentbridge.audit.summary import CLAIM, CellRow, gaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

HEIGHT_IN = 2.8
# a legend's rows: how high, how many the height above allows for, and what fits beside another, in characters
ROW_IN, USUAL_ROWS, LONGEST_OF_TWO = 0.13, 4, 45

PANELS = {"bridged_accuracy": "bridged accuracy", "context_recovered": "context recovered"}
CONTROLS = {
    "control: question cut to as many tokens": ("cut_text_accuracy", "context_recovered_cut_text", "v"),
    "control: source reads another question": (
        "shuffled_source_accuracy",
        "context_recovered_shuffled_source",
        "x",
    ),
    "control: source reads nothing": ("no_source_accuracy", "context_recovered_no_source", "+"),
}
REFERENCE = "target_alone_accuracy"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One number of the figure, and one row of its CSV."""

    cell: str
    direction: str  # and the problems, where cells differ in them
    fixes: str  # "on": trained with the contrastive term
    soft_tokens: int
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    interval_over: str
    run_ids: str


def _read(records: Records) -> Sheet:
    cells = [cell for cell in records.summary.cells if cell.soft_tokens is not None]
    over = sorted({cell.interval_over for cell in cells})
    sheet = Sheet(f"Bars: 95 % interval over {' or '.join(over)}.")
    for cell in cells:
        if reasons := sorted({gaps(cell.runs, name) for name in PANELS} - {""}):
            sheet.left_out[cell.name] = "; ".join(reasons)
        elif cell.is_beyond:
            sheet.left_out[f"{cell.name} on the right"] = f"{PANELS[CLAIM]} above 1, see the notes"
    points = list(_points(cells))
    if any(point.metric in PANELS for point in points):
        sheet.rows = [asdict(point) for point in points]
    return sheet


def _points(cells: Sequence[CellRow]) -> Iterable[Point]:
    several = len({_problems(cell) for cell in cells}) > 1
    for cell in cells:
        yield from _points_of(cell, f" on {_problems(cell)}" if several else "")


def _problems(cell: CellRow) -> str:
    return str(setting(cell.runs[0].config, "problems", "name"))


def _points_of(cell: CellRow, problems: str) -> Iterable[Point]:
    assert cell.soft_tokens is not None
    config = cell.runs[0].config
    weight = setting(config, "losses", "info_nce", "weight")
    drawn = {*PANELS, REFERENCE, *(name for pair in CONTROLS.values() for name in pair[:2])}
    # on one scale with them all others would be hidden
    if cell.is_beyond:
        drawn = {name for name in drawn if not name.startswith(CLAIM)}
    for name, metric in cell.metrics.items():
        if name in drawn and metric.value is not None:
            yield Point(
                cell=cell.name,
                direction=" → ".join(model_name(config, side) for side in ("source", "target")) + problems,
                fixes="on" if weight else "off",
                soft_tokens=cell.soft_tokens,
                metric=name,
                value=metric.value,
                low=metric.low,
                high=metric.high,
                n=metric.n,
                interval_over=cell.interval_over,
                run_ids=" ".join(run.id for run in cell.runs),
            )


def _plot(rows: Sequence[Row], caption: str) -> Canvas:
    from matplotlib.lines import Line2D

    points = [Point(**row) for row in rows]
    figure = new_figure(caption, COLUMN_IN, HEIGHT_IN)
    panels = figure.subplots(1, 2)
    directions = sorted({point.direction for point in points})
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(directions)}
    series = sorted({(point.direction, point.fixes) for point in points}, reverse=True)
    for axes, (column, (metric, title)) in zip(panels, enumerate(PANELS.items()), strict=True):
        for position, (direction, fixes) in enumerate(series):
            # side by side, where several series have the same number of tokens
            shift = 1.04 ** (position - (len(series) - 1) / 2)
            own = [point for point in points if (point.direction, point.fixes) == (direction, fixes)]
            # where all have them, they tell nothing apart
            label = f"{direction}, fixes {fixes}" if len({fixes for _, fixes in series}) > 1 else direction
            _draw_series(axes, [p for p in own if p.metric == metric], shift, colours[direction], label)
            for *metrics, marker in CONTROLS.values():
                controls = [p for p in own if p.metric == metrics[column]]
                x, y = [p.soft_tokens * shift for p in controls], [p.value for p in controls]
                axes.plot(x, y, marker, color=colours[direction], alpha=0.6, markersize=3.5, zorder=1)
        _dress(axes, title, points)
    _mark_references(panels[0], panels[1], points, colours)
    handles, _ = max((axes.get_legend_handles_labels() for axes in panels), key=lambda found: len(found[0]))
    for name, (*_, marker) in CONTROLS.items():
        handles.append(Line2D([], [], linestyle="", marker=marker, color=GREY, markersize=3.5, label=name))
    columns = 2 if all(len(str(handle.get_label())) <= LONGEST_OF_TWO for handle in handles) else 1
    figure.set_figheight(figure.get_figheight() + ROW_IN * (-(-len(handles) // columns) - USUAL_ROWS))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def _draw_series(axes: Axes, points: list[Point], shift: float, colour: str, label: str) -> None:
    points = sorted(points, key=lambda point: point.soft_tokens)
    x, y = [p.soft_tokens * shift for p in points], [p.value for p in points]
    bars = [[p.value - (p.value if p.low is None else p.low) for p in points]]
    bars += [[(p.value if p.high is None else p.high) - p.value for p in points]]
    hollow = any(p.fixes == "off" for p in points)
    axes.errorbar(
        x,
        y,
        bars,
        fmt="o--" if hollow else "o-",
        color=colour,
        markerfacecolor="white" if hollow else colour,
        markersize=4,
        linewidth=1,
        capsize=2,
        label=label,
    )


def _dress(axes: Axes, title: str, points: list[Point]) -> None:
    ticks = sorted({point.soft_tokens for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.set_xlabel("soft tokens")
    axes.set_ylabel(title)


def _mark_references(accuracy: Axes, recovered: Axes, points: list[Point], colours: dict[str, str]) -> None:
    """Lines to read against: what the target scores with the text, and the ends of the recovery scale."""
    notes = [(recovered, 0.0, "question withheld"), (recovered, 1.0, "question given as text")]
    for height in (0.0, 1.0):
        recovered.axhline(height, color=GREY, linestyle=":", linewidth=1, zorder=0)
    references: list[float] = []
    for direction, colour in colours.items():
        alone = [p.value for p in points if p.metric == REFERENCE and p.direction == direction]
        if alone:
            references.append(sum(alone) / len(alone))
            accuracy.axhline(references[-1], color=colour, linestyle=":", linewidth=1, zorder=0)
    if references:
        notes.append((accuracy, max(references), "target alone, given the text"))
    for axes, height, words in notes:
        axes.annotate(
            words, (0.01, height), xycoords=("axes fraction", "data"), va="bottom", color=GREY, fontsize=SMALL
        )
    accuracy.set_ylim(bottom=0.0)


FIGURES = (
    Figure("soft_tokens", _read, _plot, needs="evaluated translators: a final evaluation of every seed"),
)
