"""What was trained, drawn from the effective config: one diagram for cells that differ in numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentbridge.audit.figures import anatomy
from latentbridge.audit.figures.boxes import WIDTH_IN, Diagram, draw_boxes, height_in, legend, merged
from latentbridge.audit.figures.sheet import Figure, Row, Sheet, crowd, unique, where
from latentbridge.audit.figures.style import fitting, new_figure
from latentbridge.audit.records import CellRecords, Records

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

MOST = 4
# above each diagram stands whose it is
_TITLE_IN, _BETWEEN_IN = 0.2, 0.15


def read(records: Records) -> Sheet:
    """Rows of boxes, arrows and frames, diagram by diagram."""
    sheet = Sheet("From the config of each run; cells of one diagram differ in no more than numbers. ")
    shapes: dict[str, list[tuple[CellRecords, Diagram]]] = {}
    for cell in records.cells:
        if diagram := anatomy.diagram(cell.config):
            shapes.setdefault(diagram.shape(), []).append((cell, diagram))
    for members in shapes.values():
        cells = [cell for cell, _ in members]
        about = {"cell": cells[0].name, "cells": " ".join(cell.name for cell in cells)}
        ids = {"run_ids": " ".join(cell.run_ids for cell in cells)}
        sheet.rows += [about | row | ids for row in merged([diagram for _, diagram in members]).elements]
    sheet.about += legend(sheet.rows)
    return crowd(sheet, MOST)


def plot(rows: Sequence[Row], caption: str) -> Canvas:
    """Two diagrams beside one another where the page allows it."""
    diagrams = [where(rows, cell=cell) for cell in unique(rows, "cell")[:MOST]]
    across = min(len(diagrams), int(fitting(2.1 * WIDTH_IN) / WIDTH_IN))
    lines = [diagrams[start : start + across] for start in range(0, len(diagrams), across)]
    heights = [_TITLE_IN + _BETWEEN_IN + max(height_in(diagram) for diagram in line) for line in lines]
    figure = new_figure(caption, across * WIDTH_IN * (1.0 if across == 1 else 1.05), sum(heights))
    places = figure.add_gridspec(len(lines), across, height_ratios=heights)
    for number, diagram in enumerate(diagrams):
        axes = figure.add_subplot(places[divmod(number, across)])
        draw_boxes(axes, diagram)
        others = len(diagram[0]["cells"].split()) - 1
        axes.set_title(diagram[0]["cell"] + (f" and {others} more" if others else ""), loc="left", pad=3)
    return figure


NEEDS = "configs of translators, decoders or adapters that tell their sizes"
FIGURES = (Figure("architecture", read, plot, NEEDS),)
