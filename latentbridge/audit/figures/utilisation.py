"""How temperatures load experts: bars of each, and what becomes of evenness."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from latentbridge.audit.figures.balance import heat, loads_of, ticks
from latentbridge.audit.figures.sheet import Figure, Row, Sheet, unique, where
from latentbridge.audit.figures.style import (
    COLOURS,
    GREY,
    PAGE_IN,
    SMALL,
    grid,
    new_figure,
    warm,
)
from latentbridge.audit.figures.temperature import against_temperature
from latentbridge.audit.figures.temperature_cells import constant_series
from latentbridge.audit.records import Records, RunRecords, shares
from latentbridge.audit.statistics.seeds import seed_mean
from latentbridge.lm.routing_metrics import gini

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

ABOUT = (
    "Load of the test text before any token is dropped, times the number of experts: 1 is even. "
    "Loads are of the first seed, since experts of other seeds are others; evenness is a mean over layers "
    "and seeds, with 95 % t intervals."
)
EVENNESS = {"gini": "Gini of the load (0 is even)", "variance": "variance of the experts' shares"}


def _read(records: Records) -> Sheet:
    """Rows of loads by expert, and of gini and variance by temperature, told apart by `metric`."""
    sheet = Sheet(ABOUT)
    for series, group in constant_series(records, sheet).items():
        for temperature, cell in group:
            more = {"series": series, "temperature": temperature}
            sheet.rows += [
                _row(row | more, "load", row["times_even"]) for row in loads_of(cell, cell.runs[:1])
            ]
            base = {"cell": cell.name, "run_id": cell.run_ids, **more}
            for name, of_layer in (("gini", gini), ("variance", statistics.pvariance)):
                values = [value for run in cell.runs if (value := _over_layers(run, of_layer)) is not None]
                if len(values) == len(cell.runs):
                    metric = seed_mean(values)
                    sheet.rows.append(_row(base, name, metric.value, metric.low, metric.high))
    if not any(row["metric"] == "load" for row in sheet.rows):
        sheet.rows = []
    return sheet


def _read_analysis(records: Records) -> Sheet:
    """The rows of cells that a map of layers and experts has room for: those of the commonest shape."""
    sheet = _read(records)
    loads = where(sheet.rows, metric="load")
    shapes = {
        cell: tuple((row["layer"], row["expert"]) for row in where(loads, cell=cell))
        for cell in unique(loads, "cell")
    }
    if shapes:
        usual = statistics.mode(shapes.values())
        others = [cell for cell, shape in shapes.items() if shape != usual]
        sheet.left_out |= dict.fromkeys(others, "loads of other layers or experts than the most have")
        sheet.rows = [row for row in sheet.rows if row["cell"] not in others]
    return sheet


def _row(
    of: Row, metric: str, value: float | None, low: float | None = None, high: float | None = None
) -> Row:
    keys = ("cell", "series", "temperature", "seed", "layer", "expert")
    found = {key: of.get(key) for key in keys}
    return found | {"metric": metric, "value": value, "low": low, "high": high, "run_id": of["run_id"]}


def _over_layers(run: RunRecords, of_layer: Callable[[Sequence[float]], float]) -> float | None:
    loads = run.loads("test")
    found = [of_layer(shares(load)) for load in loads if shares(load)]
    return statistics.fmean(found) if found else None


def _columns(rows: Sequence[Row]) -> list[tuple[str, float]]:
    return list(dict.fromkeys((row["series"], row["temperature"]) for row in rows))


def _plot_bars(rows: Sequence[Row], caption: str) -> Canvas:
    rows = where(rows, metric="load")
    places = _columns(rows)
    lines, columns = grid(len(places), 4)
    figure = new_figure(caption, PAGE_IN, 0.2 + 1.1 * lines)
    all_axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    colours = warm(unique(rows, "temperature"))
    for axes in all_axes.flat[len(places) :]:
        axes.set_axis_off()
    for number, (series, temperature) in enumerate(places):
        axes = all_axes.flat[number]
        own = _least_even(where(rows, series=series, temperature=temperature))
        axes.bar([row["expert"] for row in own], [row["value"] for row in own], color=colours[temperature])
        axes.axhline(1, color=GREY, linewidth=0.6, linestyle="--")
        axes.set_title(f"{_title(series, temperature)}, layer {own[0]['layer']}")
        axes.set_xticks(ticks(len(own)))
        if number >= len(places) - columns:
            axes.set_xlabel("expert")
    for line in all_axes:
        line[0].set_ylabel("load / even load")
    return figure


def _least_even(rows: Sequence[Row]) -> list[Row]:
    """The rows of the layer whose load is the least even."""
    layers = [where(rows, layer=layer) for layer in unique(rows, "layer")]
    return max(layers, key=lambda own: statistics.pvariance(row["value"] for row in own))


def _title(series: str, temperature: float) -> str:
    return f"T = {temperature:g}" + (", sampled" if series.startswith("choice") else "")


def _plot_analysis(rows: Sequence[Row], caption: str) -> Canvas:
    figure = new_figure(caption, PAGE_IN, 4.2)
    (evenness, variance), (places, table) = figure.subplots(2, 2)
    for axes, (metric, title) in zip((evenness, variance), EVENNESS.items(), strict=True):
        against_temperature(axes, rows, metric, "value", COLOURS[0], title)
        axes.set_ylim(bottom=0)
        if len(unique(rows, "series")) > 1:
            axes.legend(frameon=False, fontsize=SMALL)
    loads = where(rows, metric="load")
    names = _columns(loads)
    maps = [[row["value"] for row in where(loads, series=s, temperature=t)] for s, t in names]
    drawn = heat(places, maps, max(2.0, *(max(line) for line in maps)))
    places.set_yticks(range(len(names)), [_title(*name) for name in names])
    layers = unique(loads, "layer")
    width = len(maps[0]) // len(layers)
    for layer in layers[1:]:
        places.axvline(layer * width - 0.5, color="white", linewidth=1.5)
    places.set_xticks(
        [(layer + 0.5) * width - 0.5 for layer in layers], [f"layer {layer}" for layer in layers]
    )
    places.set_title("load by layer and expert", loc="left")
    figure.colorbar(drawn, ax=places, label="load / even load", fraction=0.04, pad=0.01)
    _write_table(table, rows)
    return figure


def _write_table(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_axis_off()
    cells = []
    for series, temperature in _columns(rows):
        own = where(rows, series=series, temperature=temperature)
        numbers = {row["metric"]: row["value"] for row in own if row["metric"] in EVENNESS}
        loads = [row["value"] for row in where(own, metric="load")]
        cells.append(
            [
                _title(series, temperature),
                *(f"{numbers[name]:.4f}" if name in numbers else "-" for name in EVENNESS),
                f"{min(loads):.2f}" if loads else "-",
                f"{max(loads):.2f}" if loads else "-",
            ]
        )
    heads = ["", "Gini", "variance", "least", "most"]
    table = axes.table(cells, colLabels=heads, loc="upper center", edges="horizontal", cellLoc="right")
    table.auto_set_font_size(False)
    table.set_fontsize(SMALL)
    table.auto_set_column_width(range(len(heads)))
    for cell in table.get_celld().values():
        cell.set_linewidth(0.4)


NEEDS = "mixtures of experts alike but for a constant router temperature, two or more"
FIGURES = (
    Figure("expert_utilization", _read, _plot_bars, needs=NEEDS),
    Figure("expert_utilization_analysis", _read_analysis, _plot_analysis, needs=NEEDS),
)
