"""Schedules of the temperature against one another, beside constant ones of their ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentbridge.audit.figures.sheet import Figure, Row, Sheet, unique, where
from latentbridge.audit.figures.spotlight import ends_of, spotlight
from latentbridge.audit.figures.style import (
    PAGE_IN,
    SMALL,
    by_update,
    draw_band,
    draw_interval,
    label_ends,
    name_rows,
    new_figure,
)
from latentbridge.audit.figures.temperature_cells import ABOUT, ACCURACY, LOSS, NAMES, WHERE, curves, ends
from latentbridge.audit.records import Records, final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


def _read(records: Records) -> Sheet:
    """Cells of a schedule, and constant ones of a temperature that a schedule begins or ends with."""
    sheet = Sheet(ABOUT)
    found = [(cell, cell.setting(*WHERE)) for cell in records.mixtures if cell.setting(*WHERE)]
    moving = [(cell, at) for cell, at in found if at.get("schedule", "constant") != "constant"]
    borders = {value for _, at in moving for value in (at.get("start"), at.get("end"))}
    acts_on = {at.get("acts_on") for _, at in moving}
    steps = {cell.setting("train", "steps") for cell, _ in moving}
    constant = [
        (cell, at)
        for cell, at in found
        if at.get("schedule", "constant") == "constant"
        and at.get("start") in borders
        and at.get("acts_on") in acts_on
        and cell.setting("train", "steps") in steps
    ]
    for cell, at in [*moving, *constant] if moving else []:
        if why := cell.gaps(LOSS):
            sheet.left_out[cell.name] = why
            continue
        numbers = {"best_loss": final(LOSS), "final_accuracy": final(ACCURACY)}
        sheet.rows += curves(cell, (LOSS, "temperature", ACCURACY), at["schedule"], at["start"])
        sheet.rows += ends(cell, numbers, at["schedule"], at["start"])
    return sheet


def _plot(rows: Sequence[Row], caption: str) -> Canvas:
    title = f"{NAMES[LOSS]} of the best weights"
    light = spotlight(unique(rows, "cell"), ends_of(rows, "best_loss"), "best_loss", title)
    figure = new_figure(light.caption(caption), PAGE_IN, 4.2)
    (loss, temperature), (accuracy, ending) = figure.subplots(2, 2)
    for axes, metric in ((loss, LOSS), (temperature, "temperature"), (accuracy, ACCURACY)):
        for cell, look in light.look.items():
            own = [row for row in where(rows, cell=cell, metric=metric) if row["step"] is not None]
            draw_band(axes, own, **look)
        axes.set_title(NAMES[metric], loc="left")
        by_update(axes)
    labels = {
        cell: [row for row in where(rows, cell=cell, metric="temperature") if row["step"] is not None]
        for cell in light.named
    }
    _bars(ending, rows, {cell: light.look[cell] for cell in light.named})
    # schedules end at one height: each is named where it is told from the others
    label_ends(
        temperature,
        [(own[-1]["mean"], cell, light.look[cell]) for cell, own in labels.items() if own],
    )
    return figure


def _bars(axes: Axes, rows: Sequence[Row], look: dict[str, dict[str, str]]) -> None:
    """The loss of the best weights with its interval, a line a cell; the accuracy is written beside it."""
    cells = list(look)
    for place, cell in enumerate(cells):
        (found,) = where(rows, cell=cell, metric="best_loss")
        accuracy = where(rows, cell=cell, metric="final_accuracy")
        row = {"x": found["mean"], "x_low": found["low"], "x_high": found["high"], "y": place}
        draw_interval(axes, [row], "x", "y", color=look[cell]["color"])
        if accuracy:
            words = f"{100 * accuracy[0]['mean']:.1f} %"
            axes.annotate(
                words, (1.02, place), xycoords=("axes fraction", "data"), fontsize=SMALL, va="center"
            )
    name_rows(axes, cells)
    axes.set_title("nats of the best weights, and their accuracy", loc="left")
    axes.set_xlabel(NAMES[LOSS])


FIGURES = (
    Figure(
        "schedule_comparison",
        _read,
        _plot,
        needs="mixtures of experts whose router temperature has a schedule",
    ),
)
