"""How evenly experts are loaded: against quality, by layer and expert, and over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from latentbridge.audit.figures.sheet import Figure, Row, Sheet, bounds, crowd, measured, unique, where
from latentbridge.audit.figures.spotlight import spotlight
from latentbridge.audit.figures.style import (
    COLUMN_IN,
    GREY,
    PAGE_IN,
    SMALL,
    Mark,
    dots,
    draw_interval,
    grid,
    label_points,
    looks,
    new_figure,
)
from latentbridge.audit.records import CellRecords, Records, final, shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

PERPLEXITY = "test_perplexity"
AGAINST = {
    "test_demand_cv": "load CV over experts (0 is even)",
    "test_entropy": "router entropy, nats",
}
# more panels make a figure that nobody reads; the CSV has them all
MOST_CELLS = 16


def _read_quality(records: Records) -> Sheet:
    sheet = Sheet(
        "Of the test text, means over layers and seeds, before any token is dropped; bars: of perplexity "
        "95 % intervals over seeds, else the range of seeds. Hash routers have no probabilities, so no "
        "entropy."
    )
    for cell in measured(records.mixtures, PERPLEXITY, sheet):
        row = {"cell": cell.name, **bounds(PERPLEXITY, cell.row.metrics[PERPLEXITY])}
        for name in AGAINST:
            metric = cell.range_over_seeds(final(name))
            row |= bounds(name, metric) if metric else dict.fromkeys((name, f"{name}_low", f"{name}_high"))
        sheet.rows.append(row | {"run_ids": cell.run_ids})
    return sheet


def _plot_quality(rows: Sequence[Row], caption: str) -> Canvas:
    ends = {row["cell"]: row[PERPLEXITY] for row in rows}
    light = spotlight(unique(rows, "cell"), ends, PERPLEXITY, "perplexity")
    figure = new_figure(light.caption(caption), PAGE_IN, 3.0)
    marks_of = dots(light.named)
    look = {
        cell: marks_of.get(cell, {"zorder": 1}) | {"color": own["color"]} for cell, own in light.look.items()
    }
    for axes, (name, title) in zip(figure.subplots(1, 2, sharey=True), AGAINST.items(), strict=True):
        own = [row for row in rows if row[name] is not None]
        for row in own:
            draw_interval(axes, [row], name, PERPLEXITY, **look[row["cell"]])
        axes.margins(0.15)
        axes.set_xlabel(title)
        names = {cell: cell for cell in light.named}
        marks = [
            Mark.of(row, name, PERPLEXITY, names.get(row["cell"], ""), look[row["cell"]]["color"])
            for row in own
        ]
        label_points(axes, marks)
    figure.axes[0].set_ylabel("perplexity of the test text")
    return figure


def _read_loads(records: Records) -> Sheet:
    sheet = Sheet(
        "Share of the pairs of the test text, before any is dropped, times the number of experts: 1 is even. "
        "Of the first seed of each cell, since experts of other seeds are others."
    )
    for cell in measured(records.mixtures, PERPLEXITY, sheet):
        sheet.rows += loads_of(cell, cell.runs[:1])
    return crowd(sheet, MOST_CELLS)


def _read_all_loads(records: Records) -> Sheet:
    sheet = Sheet(
        "A dot: one expert of one layer and seed, by its share of the pairs of the test text times the "
        "number of experts: 1 is even, 0 is dead; a line: their median."
    )
    for cell in measured(records.mixtures, PERPLEXITY, sheet):
        sheet.rows += loads_of(cell, cell.runs)
    return sheet


def loads_of(cell: CellRecords, runs: Sequence[Any]) -> list[Row]:
    """A row an expert, layer and run, of the final evaluation's test text."""
    rows = []
    for run in runs:
        for layer, load in enumerate(run.loads("test")):
            rows += [
                {
                    "cell": cell.name,
                    "seed": run.row.seed,
                    "layer": layer,
                    "expert": expert,
                    "pairs": load[expert],
                    "share": share,
                    "times_even": share * len(load),
                    "run_id": run.row.id,
                }
                for expert, share in enumerate(shares(load))
            ]
    return rows


def _plot_bars(rows: Sequence[Row], caption: str) -> Canvas:
    cells, layers = unique(rows, "cell")[:MOST_CELLS], sorted(unique(rows, "layer"))
    figure = new_figure(caption, PAGE_IN, 0.4 + 0.75 * len(cells), stacks=False)
    look = looks(unique(rows, "cell"))
    all_axes = figure.subplots(len(cells), len(layers), sharey="row", squeeze=False)
    for cell, line in zip(cells, all_axes, strict=True):
        for layer, axes in zip(layers, line, strict=True):
            own = where(rows, cell=cell, layer=layer)
            axes.bar(
                [row["expert"] for row in own], [row["times_even"] for row in own], color=look[cell]["color"]
            )
            axes.axhline(1, color=GREY, linewidth=0.6, linestyle="--")
            axes.set_xticks(ticks(len(own)))
            axes.tick_params(labelsize=SMALL)
        line[0].set_ylabel(cell, rotation=0, ha="right", va="center")
    for layer, axes in zip(layers, all_axes[0], strict=True):
        axes.set_title(f"layer {layer}")
    for axes in all_axes[-1]:
        axes.set_xlabel("expert")
    figure.supylabel("load / even load", fontsize=SMALL)
    return figure


def ticks(count: int) -> list[int]:
    """Some experts, of which the last is one."""
    step = 1 if count <= 8 else max(1, count // 4)
    return list(range(0, count, step))


def _plot_maps(rows: Sequence[Row], caption: str) -> Canvas:
    cells = unique(rows, "cell")[:MOST_CELLS]
    lines, columns = grid(len(cells), 4)
    layers = len(unique(rows, "layer"))
    figure = new_figure(caption, PAGE_IN, 0.3 + lines * (0.55 + 0.16 * layers))
    all_axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    top = max(2.0, *(row["times_even"] for row in rows))
    for axes in all_axes.flat[len(cells) :]:
        axes.set_axis_off()
    for number, cell in enumerate(cells):
        axes = all_axes.flat[number]
        own = where(rows, cell=cell)
        table = [
            [row["times_even"] for row in where(own, layer=layer)] for layer in sorted(unique(own, "layer"))
        ]
        drawn = heat(axes, table, top)
        axes.set_title(cell)
        axes.set_xticks(ticks(len(table[0])))
        axes.set_yticks(range(len(table)))
        if number >= len(cells) - columns:
            axes.set_xlabel("expert")
    for line in all_axes:
        line[0].set_ylabel("layer")
    figure.colorbar(drawn, ax=all_axes, label="load / even load", fraction=0.03, pad=0.01)
    return figure


def heat(axes: Axes, table: Sequence[Sequence[float]], top: float) -> Any:
    """A map of values from 0 to `top`, dark to light."""
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelsize=SMALL)
    return axes.imshow(table, cmap="cividis", vmin=0, vmax=top, aspect="auto", interpolation="nearest")


def _plot_distribution(rows: Sequence[Row], caption: str) -> Canvas:
    import statistics

    cells = unique(rows, "cell")
    figure = new_figure(caption, COLUMN_IN, 0.6 + 0.26 * len(cells))
    axes = figure.subplots()
    look = dots(cells)
    dot: dict[str, Any] = {"linestyle": "", "markersize": 2.2, "alpha": 0.5, "markeredgewidth": 0}
    for place, cell in enumerate(cells):
        own = sorted(row["times_even"] for row in where(rows, cell=cell))
        # spread over the height of the line, neighbours in value apart
        heights = [place + 0.3 * ((number * 0.618) % 1 - 0.5) * 2 for number in range(len(own))]
        axes.plot(own, heights, **(dot | look[cell]))
        middle = statistics.median(own)
        axes.plot([middle, middle], [place - 0.38, place + 0.38], color="black", linewidth=1)
    axes.axvline(1, color=GREY, linewidth=0.6, linestyle="--", zorder=0)
    axes.set_yticks(range(len(cells)), cells)
    axes.invert_yaxis()
    axes.set_xlim(left=-0.05)
    axes.set_xlabel("load / even load")
    return figure


NEEDS = "mixtures of experts that were evaluated on test text"
FIGURES = (
    Figure("balance_vs_perplexity", _read_quality, _plot_quality, needs=NEEDS),
    Figure("gate_balance", _read_loads, _plot_bars, needs=NEEDS),
    Figure("expert_heat_map", _read_loads, _plot_maps, needs=NEEDS),
    Figure("expert_load_distribution", _read_all_loads, _plot_distribution, needs=NEEDS),
)
