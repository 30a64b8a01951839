"""Figures of the published paper: the two stacks of layers, curves, and splits over time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentbridge.audit.figures import architecture
from latentbridge.audit.figures.sheet import Figure, Row, Sheet, unique, where
from latentbridge.audit.figures.specialisation import FIGURES as SPECIALISATION
from latentbridge.audit.figures.style import (
    COLOURS,
    GREY,
    PAGE_IN,
    by_update,
    draw_band,
    looks,
    new_figure,
)
from latentbridge.audit.records import CellRecords, Records, evaluated, logged
from latentbridge.errors import ConfigError
from latentbridge.layer_routing.metrics import COLLAPSED

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

PANELS = {
    "losses.lm": "training loss",
    "nll": "loss of validation text",
    "accuracy": "accuracy of validation text",
    "losses.balance": "balance loss",
}
_SHARE = re.compile(r"val_layer_(\d+)_gdn_share")


CURVES = "a static and a routed cell whose training was logged"
SPLITS = "routed layers whose evaluations were logged"


def published(
    number: int, records: Records, baseline: CellRecords, dynamic: CellRecords
) -> tuple[Figure, Records]:
    """A figure of the published paper, and the part of the launch that it shows."""
    both = Records(records.summary, [baseline, dynamic])
    alone = Records(records.summary, [dynamic])
    tokens = next(figure for figure in SPECIALISATION if figure.name == "token_colours")
    known = {
        1: (Figure("figure1_architecture", architecture.read, architecture.plot, architecture.NEEDS), alone),
        2: (Figure("figure2_training_curves", _read_curves, _plot_curves, CURVES), both),
        3: (Figure("figure3_routing_distribution", _read_splits, _plot_splits, SPLITS), alone),
        4: (Figure("figure4_comparison", architecture.read, architecture.plot, architecture.NEEDS), both),
        5: (tokens, alone),
    }
    if number not in known:
        raise ConfigError(f"no figure {number}; the grammar has 1 to {len(known)}")
    return known[number]


def _read_curves(records: Records) -> Sheet:
    sheet = Sheet("Mean over seeds by update; bands: range of the seeds; star: the lowest validation loss.")
    for cell in records.cells:
        for panel in PANELS:
            read = logged(*panel.split(".")) if "." in panel else evaluated(f"val_{panel}")
            sheet.rows += [
                {"cell": cell.name, "panel": panel, **point, "run_ids": cell.run_ids}
                for point in cell.curve(read)
            ]
    return sheet


def _plot_curves(rows: Sequence[Row], caption: str) -> Canvas:
    figure = new_figure(caption, PAGE_IN, 4.4)
    look = looks(unique(rows, "cell"))
    for axes, (panel, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for cell, own in look.items():
            if points := where(rows, panel=panel, cell=cell):
                draw_band(axes, points, label=cell, **own)
                if panel == "nll":
                    best = min(points, key=lambda row: row["mean"])
                    axes.plot(best["step"], best["mean"], "*", color=own["color"], markersize=7)
        by_update(axes)
        axes.set_title(title, loc="left")
    figure.axes[0].legend(frameon=False)
    return figure


def _read_splits(records: Records) -> Sheet:
    sheet = Sheet(
        "Percent of validation tokens that gated delta reads, mean over seeds in the band of their range."
    )
    for cell in records.cells:
        for metric in cell.row.metrics:
            if found := _SHARE.fullmatch(metric):
                for point in cell.curve(evaluated(metric)):
                    percent = {key: point[key] * (1 if key == "step" else 100) for key in point}
                    row = {"cell": cell.name, "layer": int(found[1]), **percent, "run_ids": cell.run_ids}
                    sheet.rows.append(row)
    return sheet


def _plot_splits(rows: Sequence[Row], caption: str) -> Canvas:
    layers = unique(rows, "layer")
    figure = new_figure(caption, PAGE_IN, 1.6 * len(layers))
    for axes, layer in zip(figure.subplots(len(layers), 1, squeeze=False).flat, layers, strict=True):
        draw_band(axes, where(rows, layer=layer), color=COLOURS[0])
        for share, line in ((0.5, ":"), (1 - COLLAPSED, "--"), (COLLAPSED, "--")):
            axes.axhline(100 * share, color=GREY, linestyle=line, linewidth=0.6)
        by_update(axes)
        axes.set(ylim=(0, 100), title=f"layer {layer}: % gated delta; dotted: even, dashed: collapse")
    return figure
