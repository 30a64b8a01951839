"""Training and validation by update, a line a cell: the mean over seeds in the band of their range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentbridge.audit.figures.sheet import Figure, Row, Sheet, unique, where, without
from latentbridge.audit.figures.spotlight import ends_of, spotlight
from latentbridge.audit.figures.style import (
    PAGE_IN,
    by_update,
    draw_band,
    label_ends,
    new_figure,
    thousands,
)
from latentbridge.audit.records import CellRecords, Records, evaluated, logged
from latentbridge.audit.summary import CLAIM

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

OVERLAY = {
    "losses.lm": "nats per token of training text",
    "val_bits_per_byte": "bits per byte of validation text",
    "val_perplexity": "perplexity of validation text",
}
TRAINING = {
    "losses.lm": "nats per token",
    "grad_norm": "norm of the gradient",
    "tokens_per_s": "tokens per second",
}
ABOUT = (
    "Mean over seeds by update; bands: range of the seeds. "
    "What lies above all values after a tenth of the updates is cut off."
)


BRIDGE = {
    "losses.lm": "nats per token of training answers",
    "context_recovered": "context recovered",
    "bridged_accuracy": "bridged accuracy",
}
# by which of them many cells are told apart
RANKED_BY = ("context_recovered", "val_bits_per_byte", "losses.lm")


def _read(records: Records, panels: Sequence[str], of: str = "text") -> Sheet:
    sheet = Sheet(ABOUT)
    # a launch of other workloads has none of these
    cells = [cell for cell in records.cells if cell.setting(of) is not None]
    for cell in cells:
        if why := unfinished(cell):
            sheet.left_out[cell.name] = why
            continue
        for panel in panels:
            read = logged(*panel.split(".")) if panel in TRAINING else evaluated(panel)
            if not comparable(cell, panel, sheet):
                continue
            for point in cell.curve(read):
                sheet.rows.append(
                    {
                        "cell": cell.name,
                        "metric": panel,
                        **point,
                        "n": len(cell.runs),
                        "run_ids": cell.run_ids,
                    }
                )
    without(cells, {row["cell"] for row in sheet.rows}, "nothing was logged", sheet)
    return sheet


def unfinished(cell: CellRecords) -> str:
    """Seeds that are not done, and why; empty where all are."""
    runs = [run for run in cell.row.runs if run.state != "DONE"]
    return "; ".join(f"seed {run.seed} {run.state} {run.cause}".rstrip() for run in runs)


def comparable(cell: CellRecords, metric: str, sheet: Sheet) -> bool:
    """False of a share that lies above the whole, which the sheet then names: it would flatten all others."""
    if metric != CLAIM or not cell.row.is_beyond:
        return True
    sheet.left_out[f"{BRIDGE[CLAIM]} of {cell.name}"] = "above 1, see the notes"
    return False


def _plot(rows: Sequence[Row], caption: str, panels: dict[str, str]) -> Canvas:
    shown = [panel for panel in panels if where(rows, metric=panel)]
    ranks = next((metric for metric in RANKED_BY if metric in shown), shown[0])
    light = spotlight(unique(rows, "cell"), ends_of(rows, ranks), ranks, panels[ranks])
    figure = new_figure(light.caption(caption), PAGE_IN, 2.6)
    all_axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, panel in zip(all_axes, shown, strict=True):
        for cell, own_look in light.look.items():
            if own := where(rows, metric=panel, cell=cell):
                draw_band(axes, own, **own_look)
        by_update(axes)
        axes.set_title(panels[panel], loc="left")
        if panel == "tokens_per_s":
            thousands(axes.yaxis)
        # untrained weights would take half of the height
        if (panel in OVERLAY or panel == "grad_norm") and (top := trained_top(where(rows, metric=panel))):
            axes.set_ylim(top=top)
    ends = {panel: ends_of([row for row in rows if row["cell"] in light.named], panel) for panel in shown}
    # the last panel that has them all
    named = max(shown, key=lambda panel: (len(ends[panel]), shown.index(panel)))
    labels = [(end, cell, light.look[cell]) for cell, end in ends[named].items()]
    label_ends(all_axes[shown.index(named)], labels)
    return figure


def trained_top(rows: Sequence[Row]) -> float:
    """What all curves are below after their first tenth of updates, with some room."""
    late = [row["high"] for row in rows if row["step"] >= max(r["step"] for r in rows) / 10]
    low = min(row["low"] for row in rows)
    return float(low + 1.1 * (max(late) - low))


TEXT = "language models trained on a text, every seed DONE"
FIGURES = (
    Figure(
        "overlay",
        lambda records: _read(records, list(OVERLAY)),
        lambda r, c: _plot(r, c, OVERLAY),
        needs=TEXT,
    ),
    Figure(
        "training_curve",
        lambda records: _read(records, list(TRAINING)),
        lambda r, c: _plot(r, c, TRAINING),
        needs=TEXT,
    ),
    Figure(
        "bridge_curve",
        lambda records: _read(records, list(BRIDGE), "source"),
        lambda r, c: _plot(r, c, BRIDGE),
        needs="translators, every seed DONE",
    ),
)
