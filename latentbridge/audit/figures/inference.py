"""What an answer costs by method: time to its first token, to each further one, and the cache it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentbridge.audit.figures.sheet import Figure, Row, Sheet, bounds, crowd, measured, unique, where
from latentbridge.audit.figures.style import PAGE_IN, SMALL, draw_interval, looks, new_figure
from latentbridge.audit.records import Records

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# what is measured in evaluation, see translator.metrics; from seconds and MiB to what is shown
METHODS = ("source_alone", "target_alone", "bridged", "cut_text", "cascade")
PANELS = {
    "ttft_s": ("milliseconds to the first token", 1e3),
    "tpot_s": ("milliseconds a further token", 1e3),
    "kv_mib": ("MiB of keys and values", 1.0),
}
SAVED = "kv_saved_mib"
MOST = 12
# of the largest value: as far as an axis goes for the sake of bars
ROOM = 2.0


def _read(records: Records) -> Sheet:
    sheet = Sheet(
        "One question at a time, with all that comes before the first token. The cache is that of the model "
        "that answers. Saved: what the target keeps less of than with the text, before its reply. "
    )
    cells = [cell for cell in records.cells if SAVED in cell.row.metrics]
    for cell in measured(cells, SAVED, sheet):
        for quantity in (*PANELS, SAVED):
            for method in METHODS if quantity in PANELS else ("bridged",):
                name = f"{method}_{quantity}" if quantity in PANELS else SAVED
                metric = cell.row.metrics.get(name)
                # a reply of one token has no further ones
                if metric is None or metric.value is None:
                    continue
                about = {"cell": cell.name, "method": method, "quantity": quantity}
                ids = {"n": metric.n, "interval_over": cell.row.interval_over, "run_ids": cell.run_ids}
                sheet.rows.append(about | bounds("value", metric) | ids)
    if over := sorted(unique(sheet.rows, "interval_over")):
        sheet.about += f"Bars: 95 % interval over {' or '.join(over)}, cut off where they leave the axes."
    return crowd(sheet, MOST)


def _plot(rows: Sequence[Row], caption: str) -> Canvas:
    from matplotlib.lines import Line2D

    cells = unique(rows, "cell")[:MOST]
    titles = {**PANELS, SAVED: ("MiB saved by the bridge", 1.0)}
    look = looks(METHODS)
    figure = new_figure(caption, PAGE_IN, 2 * (0.45 + 0.3 * len(cells)) + 0.3)
    for axes, (quantity, (title, times)) in zip(figure.subplots(2, 2).flat, titles.items(), strict=True):
        methods = unique(where(rows, quantity=quantity), "method")
        for number, method in enumerate(methods):
            # one below the other within the line of a cell
            shift = 0.14 * (number - (len(methods) - 1) / 2)
            for row in where(rows, quantity=quantity, method=method):
                if row["cell"] in cells:
                    scaled = {
                        key: row[key] and row[key] * times for key in ("value", "value_low", "value_high")
                    }
                    at = {"place": cells.index(row["cell"]) + shift}
                    draw_interval(
                        axes, [scaled | at], "value", "place", color=look[method]["color"], markersize=3
                    )
        axes.set_yticks(range(len(cells)), cells)
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.set_xlim(
            *_limits([row for row in where(rows, quantity=quantity) if row["cell"] in cells], times)
        )
        axes.set_title(title, loc="left")
    handles = [
        Line2D(
            [], [], linestyle="", marker="o", markersize=3, color=own["color"], label=name.replace("_", " ")
        )
        for name, own in look.items()
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=SMALL
    )
    return figure


def _limits(rows: Sequence[Row], times: float) -> tuple[float, float]:
    """Of an axis that shows all points, and no more of the bars than leaves these apart.

    Two seeds of a busy machine have intervals of ten times what they measure, and below 0, where no time is.
    """
    values = [row["value"] for row in rows]
    highs = [row["value_high"] for row in rows if row["value_high"] is not None]
    top = min(max([*values, *highs]), ROOM * max(values)) if max(values) > 0 else 0.0
    # what is saved may be less than nothing
    low = min(0.0, *values)
    return times * 1.05 * low, times * 1.05 * max(top, low + 1e-9)


FIGURES = (
    Figure(
        "inference",
        _read,
        _plot,
        needs="translators that answer problems one at a time when they end: eval.inference_examples above 0",
    ),
)
