"""Layer routing by update and at the end: losses of arms, who reads by what, how sure routers are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from latentbridge.audit.figures.balance import heat
from latentbridge.audit.figures.curves import trained_top
from latentbridge.audit.figures.layer_routing_cells import (
    SHOWN,
    Arm,
    arms,
    curve_rows,
    over_seeds,
    routed_arms,
)
from latentbridge.audit.figures.sheet import Figure, Row, Sheet, unique, where
from latentbridge.audit.figures.spotlight import ends_of, spotlight
from latentbridge.audit.figures.style import (
    COLUMN_IN,
    GREY,
    PAGE_IN,
    ROW_IN,
    SMALL,
    by_update,
    draw_band,
    grid,
    looks,
    name_rows,
    new_figure,
)
from latentbridge.audit.records import CellRecords, Records, evaluated, logged
from latentbridge.layer_routing.metrics import BALANCED, COLLAPSED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

BANDS = "Means over seeds; bands: range of the seeds."
SHADED = "Shaded: balanced, 40 to 60 %; beyond the dashes: collapsed."
CURVES = {
    "losses.lm": "nats per token of training text",
    "val_nll": "nats per token of validation text",
    "val_accuracy": "accuracy on validation text",
    "losses.balance": "balance loss, unweighted (1 even, 2 collapsed)",
}
SURENESS = {
    "val_route_entropy": "entropy of a token's choice, nats",
    "val_split_entropy": "entropy of the split, nats",
    "losses.temperature": "temperature of the gradient",
}
READ_BY = "share read by gated delta"
TRAINING_SHARE = "losses.gdn_share"
# more panels make a figure that nobody reads; the CSV has them all
MOST_ARMS = 8
FEWEST_TOKENS = 20


def _read_curves(records: Records) -> Sheet:
    sheet = Sheet(f"{BANDS} {SHOWN} The text's loss is apart from the balance loss. Star: the lowest mean.")
    for arm in arms(records, sheet):
        for metric in CURVES:
            sheet.rows += curve_rows(arm, metric, _curve(arm.chosen, metric))
    return sheet


def _read_sureness(records: Records) -> Sheet:
    sheet = Sheet(f"{BANDS} {SHOWN} Entropies are means over routed layers; 0.693 nats is the most.")
    for arm in routed_arms(records, sheet):
        for metric in SURENESS:
            sheet.rows += curve_rows(arm, metric, _curve(arm.chosen, metric))
    return sheet


def _read_shares(records: Records) -> Sheet:
    sheet = Sheet(
        f"Share of tokens that gated delta reads. {BANDS} {SHOWN} Lines: layers, on the validation text; "
        f"dotted: the draws of training, a mean over layers. {SHADED}"
    )
    for arm in routed_arms(records, sheet):
        for layer in arm.routed:
            name = f"val_layer_{layer}_gdn_share"
            sheet.rows += curve_rows(arm, "validation", list(arm.chosen.curve(evaluated(name))), layer)
        sheet.rows += curve_rows(arm, "training", _curve(arm.chosen, TRAINING_SHARE))
    return sheet


def _curve(cell: CellRecords, metric: str) -> list[dict[str, float]]:
    read = evaluated(metric) if metric.startswith("val_") else logged(*metric.split("."))
    return list(cell.curve(read))


def _plot_lines(rows: Sequence[Row], caption: str, panels: dict[str, str], columns: int) -> Canvas:
    shown = [metric for metric in panels if where(rows, metric=metric)]
    lines, columns = grid(len(shown), columns)
    ranks = "val_nll" if "val_nll" in shown else shown[0]
    cells = unique(rows, "cell")
    light = spotlight(cells, ends_of(rows, ranks), ranks, panels[ranks], may_coincide=True)
    figure = new_figure(light.caption(caption), PAGE_IN, 0.4 + 1.9 * lines)
    all_axes = figure.subplots(lines, columns, squeeze=False).flat
    for axes in all_axes[len(shown) :]:
        axes.set_axis_off()
    for axes, metric in zip(all_axes, shown, strict=False):
        own = where(rows, metric=metric)
        for cell, own_look in light.look.items():
            if found := where(own, cell=cell):
                draw_band(axes, found, **own_look)
        if metric == "val_nll":
            best = min(own, key=lambda row: row["mean"])
            axes.plot(best["step"], best["mean"], "*", color=light.look[best["cell"]]["color"], markersize=7)
        if metric in ("losses.lm", "val_nll"):
            axes.set_ylim(top=trained_top(own))
        axes.set_title(panels[metric], loc="left")
        by_update(axes)
    _name(figure, {cell: light.look[cell] for cell in light.named})
    return figure


def _name(figure: Canvas, look: dict[Any, dict[str, Any]]) -> None:
    """A legend above all panels, which share their lines."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=str(name), **own) for name, own in look.items()]
    columns = min(len(handles), 4)
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        handlelength=3,
    )


def _bands(axes: Axes, *, across: bool = False) -> None:
    """What counts as balanced and as collapsed, over all shares; across: they lie along x."""
    limit, shade, line = (
        (axes.set_xlim, axes.axvspan, axes.axvline) if across else (axes.set_ylim, axes.axhspan, axes.axhline)
    )
    limit(0, 1)
    shade(*BALANCED, color=GREY, alpha=0.12, linewidth=0)
    for border in (1 - COLLAPSED, COLLAPSED):
        line(border, color=GREY, linewidth=0.6, linestyle="--")


def _plot_shares(rows: Sequence[Row], caption: str) -> Canvas:
    cells = unique(rows, "cell")[:MOST_ARMS]
    lines, columns = grid(len(cells), 4)
    figure = new_figure(caption, PAGE_IN, 0.4 + 1.7 * lines)
    layers = [layer for layer in unique(rows, "layer") if layer is not None]
    look = looks([f"layer {layer}" for layer in sorted(layers)])
    all_axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
    for axes in all_axes[len(cells) :]:
        axes.set_axis_off()
    for axes, cell in zip(all_axes, cells, strict=False):
        _bands(axes)
        for layer in unique(where(rows, cell=cell, metric="validation"), "layer"):
            draw_band(axes, where(rows, cell=cell, layer=layer), **look[f"layer {layer}"])
        drawn = where(rows, cell=cell, metric="training")
        axes.plot(*zip(*((row["step"], row["mean"]) for row in drawn), strict=True), ":", color=GREY)
        axes.set_title(cell, loc="left")
        by_update(axes)
    for axes in all_axes[::columns]:
        axes.set_ylabel(READ_BY)
    _name(figure, {**look, "draws of training": {"color": GREY, "linestyle": ":"}})
    return figure


def _read_split(records: Records) -> Sheet:
    sheet = Sheet(
        "Share of the test text's tokens that gated delta reads, at the end. Dots: seeds; lines: their mean. "
        f"{SHOWN} {SHADED} One seed cannot show either."
    )
    for arm in routed_arms(records, sheet):
        for layer in arm.routed:
            name = f"test_layer_{layer}_gdn_share"
            if over_seeds(arm.chosen, name) is None:
                sheet.left_out[arm.chosen.name] = arm.chosen.gaps(name)
                continue
            sheet.rows += [
                {
                    "cell": arm.chosen.name,
                    "layer": layer,
                    "seed": run.row.seed,
                    "gdn_share": run.row.value(name),
                    "softmax_share": 1 - run.row.value(name),
                    "run_id": run.row.id,
                }
                for run in arm.chosen.runs
            ]
    return sheet


def _plot_split(rows: Sequence[Row], caption: str) -> Canvas:
    places = list(dict.fromkeys((row["cell"], row["layer"]) for row in rows))
    figure = new_figure(caption, COLUMN_IN, 0.8 + ROW_IN * len(places))
    axes = figure.subplots()
    _bands(axes, across=True)
    look = looks(unique(rows, "cell"))
    for place, (cell, layer) in enumerate(places):
        shares = [row["gdn_share"] for row in where(rows, cell=cell, layer=layer)]
        shifts = [0.3 * ((number + 0.5) / len(shares) - 0.5) for number in range(len(shares))]
        colour = look[cell]["color"]
        axes.plot(shares, [place + shift for shift in shifts], "o", color=colour, markersize=3.5, alpha=0.8)
        axes.vlines(sum(shares) / len(shares), place - 0.3, place + 0.3, color=colour, linewidth=1.2)
    name_rows(axes, [f"{cell}, layer {layer}" for cell, layer in places])
    axes.set_xlabel(READ_BY)
    return figure


def _read_classes(records: Records) -> Sheet:
    sheet = Sheet(
        f"Share of a class's tokens of the test text that softmax reads, a mean over seeds. {SHOWN} Classes "
        f"of fewer than {FEWEST_TOKENS} tokens in a seed are left out."
    )
    for arm in routed_arms(records, sheet):
        told = [run.specialisation for run in arm.chosen.runs]
        if any(found is None for found in told):
            sheet.left_out[arm.chosen.name] = "a seed has no specialisation.json"
            continue
        for place, layer in enumerate(arm.routed):
            sheet.rows += _class_rows(arm, [found for found in told if found], place, layer)
    return sheet


def _class_rows(arm: Arm, told: Sequence[dict[str, Any]], place: int, layer: int) -> list[Row]:
    rows = []
    for number, name in enumerate(told[0]["classes"]):
        loads = [found["layers"][place]["load"][number] for found in told]
        if min(sum(load) for load in loads) < FEWEST_TOKENS:
            continue
        shares = [softmax / (gdn + softmax) for gdn, softmax in loads]
        rows.append(
            {
                "cell": arm.chosen.name,
                "layer": layer,
                "class": name,
                "tokens": sum(map(sum, loads)),
                "softmax_share": sum(shares) / len(shares),
                "least": min(shares),
                "most": max(shares),
                "n": len(shares),
                "run_ids": arm.chosen.run_ids,
            }
        )
    return rows


def _plot_classes(rows: Sequence[Row], caption: str) -> Canvas:
    cells = unique(rows, "cell")[:MOST_ARMS]
    lines, columns = grid(len(cells), 4)
    names = unique(rows, "class")
    figure = new_figure(caption, PAGE_IN, 0.3 + lines * (0.17 * len(names) + 0.45))
    all_axes = figure.subplots(lines, columns, squeeze=False)
    for axes in all_axes.flat[len(cells) :]:
        axes.set_axis_off()
    for number, (axes, cell) in enumerate(zip(all_axes.flat, cells, strict=False)):
        layers = unique(where(rows, cell=cell), "layer")
        known = {(row["class"], row["layer"]): row for row in where(rows, cell=cell)}
        table = [[_share(known.get((name, layer))) for layer in layers] for name in names]
        heat(axes, table, 1.0)
        for line, shares in enumerate(table):
            for column, share in enumerate(shares):
                colour = "black" if share > 0.5 else "white"
                axes.text(column, line, f"{share:.2f}", ha="center", va="center", fontsize=5, color=colour)
        axes.set_title(cell)
        axes.set_xticks(range(len(layers)), [f"layer {layer}" for layer in layers])
        axes.set_yticks(range(len(names)), [] if number % columns else names)
    return figure


def _share(row: Row | None) -> float:
    return float("nan") if row is None else float(row["softmax_share"])


FIGURES = (
    Figure(
        "layer_routing_curves",
        _read_curves,
        lambda rows, caption: _plot_lines(rows, caption, CURVES, 2),
        needs="layers of gated delta or softmax, every seed evaluated",
    ),
    Figure("layer_routing_shares", _read_shares, _plot_shares, needs="routed layers, every seed evaluated"),
    Figure("layer_routing_split", _read_split, _plot_split, needs="routed layers, every seed evaluated"),
    Figure(
        "layer_routing_entropy",
        _read_sureness,
        lambda rows, caption: _plot_lines(rows, caption, SURENESS, 3),
        needs="routed layers, every seed evaluated",
    ),
    Figure(
        "class_by_mixer",
        _read_classes,
        _plot_classes,
        needs="routed layers of which every seed ended with specialisation.json",
    ),
)
