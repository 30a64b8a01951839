"""What a bridge recovers by the source's layer that it reads and the target's layer that it aims at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from latentbridge.audit.figures.sheet import Figure, Row, Sheet, bounds, measured, unique, where
from latentbridge.audit.figures.style import COLUMN_IN, SMALL, new_figure
from latentbridge.audit.records import CellRecords, Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

PANELS = {"context_recovered": "context recovered", "bridged_accuracy": "bridged accuracy"}
PASSTHROUGH = "passthrough"


def _read(records: Records) -> Sheet:
    sheet = Sheet("Mean over seeds [95 % t interval]; layers as configs count them: 0 is the embeddings.")
    grid = _grid(records.cells)
    for cell in measured(grid, "context_recovered", sheet):
        for metric in PANELS:
            if metric in cell.row.metrics and not cell.gaps(metric):
                about = {"cell": cell.name, "source_layer": _source(cell), "target_layer": _target(cell)}
                value = {"metric": metric, **bounds("value", cell.row.metrics[metric])}
                sheet.rows.append(about | value | {"n": len(cell.runs), "run_ids": cell.run_ids})
    return sheet


def _grid(cells: Sequence[CellRecords]) -> list[CellRecords]:
    """Most cells that differ in both layers alone, and what passes the same model's states on as they are."""
    groups: dict[str, list[CellRecords]] = {}
    for cell in cells:
        if cell.setting("teacher", "layer") is not None and _source(cell) is not None:
            groups.setdefault(cell.settings_but("source.layer", "teacher.layer"), []).append(cell)
    grids = [own for own in groups.values() if all(len(set(map(of, own))) > 1 for of in (_source, _target))]
    if not grids:
        return []
    grid = max(grids, key=len)
    models = _models(grid[0])
    return grid + [c for c in cells if c.setting("model", "kind") == PASSTHROUGH and _models(c) == models]


def _source(cell: CellRecords) -> Any:
    return cell.setting("source", "layer")


def _target(cell: CellRecords) -> Any:
    is_fixed = cell.setting("model", "kind") == PASSTHROUGH
    return PASSTHROUGH if is_fixed else cell.setting("teacher", "layer")


def _models(cell: CellRecords) -> list[Any]:
    keys = (("source", "model"), ("target", "model"), ("model", "soft_tokens"))
    return [cell.setting(*key) for key in keys]


def _plot(rows: Sequence[Row], caption: str) -> Canvas:
    shown = [metric for metric in PANELS if where(rows, metric=metric)]
    sources, targets = (sorted(unique(rows, f"{side}_layer"), key=_depth) for side in ("source", "target"))
    # the name of the axis is as high as two lines
    figure = new_figure(caption, COLUMN_IN, 0.6 + 0.36 * max(2, len(sources)))
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, metric in zip(panels, shown, strict=True):
        _draw(axes, where(rows, metric=metric), sources, targets)
        axes.set_title(PANELS[metric], loc="left")
        axes.set_xlabel("target's layer that it aims at")
    panels[0].set_ylabel("source's layer")
    return figure


def _depth(layer: Any) -> tuple[bool, float]:
    """Layers counted from the end stand behind the others, and what is no layer behind all."""
    if layer == PASSTHROUGH:
        return True, 0.0
    return layer < 0, float(layer)


def _draw(axes: Axes, rows: Sequence[Row], sources: Sequence[Any], targets: Sequence[Any]) -> None:
    values = [[float("nan")] * len(targets) for _ in sources]
    for row in rows:
        values[sources.index(row["source_layer"])][targets.index(row["target_layer"])] = row["value"]
    axes.imshow(values, cmap="cividis", aspect="auto")
    middle = (min(row["value"] for row in rows) + max(row["value"] for row in rows)) / 2
    for row in rows:
        x, y = targets.index(row["target_layer"]), sources.index(row["source_layer"])
        text = f"{row['value']:.3f}"
        if row["value_low"] is not None:
            text += f"\n[{row['value_low']:.2f}, {row['value_high']:.2f}]"
        # cividis is dark below its middle, and where all values are one
        colour = "white" if row["value"] <= middle else "black"
        axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=SMALL - 1)
    axes.set_xticks(range(len(targets)), [str(layer) for layer in targets])
    axes.set_yticks(range(len(sources)), [str(layer) for layer in sources])
    for side in axes.spines.values():
        side.set_visible(False)


FIGURES = (
    Figure(
        "layer_grid",
        _read,
        _plot,
        needs="translators alike but for source.layer and teacher.layer, two or more of either",
    ),
)
