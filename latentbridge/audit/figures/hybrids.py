"""Static hybrids and arms beside one another: their layers, their ranking, and what learning rates do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentbridge.audit.figures.layer_routing_cells import CHOSEN_BY, SHOWN, Arm, arms, over_seeds
from latentbridge.audit.figures.sheet import Figure, Row, Sheet, bounds, unique, where
from latentbridge.audit.figures.style import (
    COLOURS,
    PAGE_IN,
    SMALL,
    dots,
    draw_interval,
    grid,
    new_figure,
    thousands,
)
from latentbridge.audit.records import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

LOSS = "test_nll"
AGAINST = {
    "softmax_share": "share of layers that are softmax",
    "parameters": "weights",
    "tokens_per_s": "tokens per second of training",
}
TEXTS = {CHOSEN_BY: "validation", LOSS: "test"}
SHARE_COLUMNS = ("gdn_share", "gdn_share_low", "gdn_share_high")
MIXER_NAMES = {
    "gdn": "gated delta",
    "softmax": "softmax attention",
    "routed": "routed: of its tokens gated delta reads",
}
MIXER_COLOURS = {"gdn": COLOURS[0], "softmax": COLOURS[4], "routed": COLOURS[2]}


def _read_layers(records: Records) -> Sheet:
    sheet = Sheet(
        "What reads in each layer, the first at the bottom; of routed ones the share of the test text's "
        f"tokens that gated delta reads, a mean over seeds. {SHOWN}"
    )
    for arm in arms(records, sheet):
        for layer, mixer in enumerate(arm.mixers):
            share = over_seeds(arm.chosen, _gdn_share(layer))
            sheet.rows.append(
                {
                    "cell": arm.name,
                    "layer": layer,
                    "mixer": mixer,
                    **(bounds("gdn_share", share) if share else dict.fromkeys(SHARE_COLUMNS)),
                    "run_ids": arm.chosen.run_ids,
                }
            )
    return sheet


def _plot_layers(rows: Sequence[Row], caption: str) -> Canvas:
    from matplotlib.patches import Patch

    cells = unique(rows, "cell")
    most = 1 + max(row["layer"] for row in rows)
    figure = new_figure(caption, PAGE_IN, 1.0 + 0.18 * most)
    axes = figure.subplots()
    for row in rows:
        place = cells.index(row["cell"])
        axes.barh(row["layer"], 0.8, 0.85, place - 0.4, color=MIXER_COLOURS[row["mixer"]], alpha=0.75)
        if row["gdn_share"] is not None:
            words = f"{100 * row['gdn_share']:.0f} %"
            axes.text(place, row["layer"], words, ha="center", va="center", fontsize=SMALL)
    axes.set_xticks(range(len(cells)), cells, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(cells) - 0.5)
    axes.set_yticks(range(most))
    axes.set_ylabel("layer")
    shown = [mixer for mixer in MIXER_COLOURS if where(rows, mixer=mixer)]
    handles = [Patch(facecolor=MIXER_COLOURS[mixer], alpha=0.75, label=MIXER_NAMES[mixer]) for mixer in shown]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=SMALL
    )
    return figure


def _read_ranking(records: Records) -> Sheet:
    sheet = Sheet(
        f"Nats per token of the test text; bars: 95 % t intervals over seeds. {SHOWN} Tokens per second: "
        "median over the log, mean and range over seeds, as the runs ran: a shared device shows in them."
    )
    for arm in arms(records, sheet):
        loss, rate = over_seeds(arm.chosen, LOSS), arm.chosen.range_over_seeds(lambda run: run.tokens_per_s)
        weights, softmax_share = over_seeds(arm.chosen, "total_parameters"), _softmax_share(arm)
        if loss is None or rate is None or weights is None or softmax_share is None:
            needed = (LOSS, "total_parameters", *map(_gdn_share, arm.routed))
            gaps = [f"{metric}: {gap}" for metric in needed if (gap := arm.chosen.gaps(metric))]
            sheet.left_out[arm.chosen.name] = gaps[0] if gaps else "no tokens a second"
            continue
        sheet.rows.append(
            {
                "cell": arm.name,
                "learning_rate": arm.chosen.setting("optim", "lr"),
                **bounds(LOSS, loss),
                "softmax_share": softmax_share,
                "parameters": weights.value,
                **bounds("tokens_per_s", rate),
                "n": len(arm.chosen.runs),
                "run_ids": arm.chosen.run_ids,
            }
        )
    for rank, row in enumerate(sorted(sheet.rows, key=lambda row: row[LOSS]), start=1):
        row["rank"] = rank
    return sheet


def _gdn_share(layer: int) -> str:
    """Of the test text's tokens; the metric's name."""
    return f"test_layer_{layer}_gdn_share"


def _softmax_share(arm: Arm) -> float | None:
    """Of layers; a routed one counts by its tokens. None where those of any were not measured."""
    total = float(arm.mixers.count("softmax"))
    for layer in arm.routed:
        share = over_seeds(arm.chosen, _gdn_share(layer))
        if share is None or share.value is None:
            return None
        total += 1 - share.value
    return total / len(arm.mixers)


def _plot_ranking(rows: Sequence[Row], caption: str) -> Canvas:
    figure = new_figure(caption, PAGE_IN, 2.6 + 0.16 * len(rows), stacks=False)
    heights = [0.5 + 0.16 * len(rows), 2.0]
    places = figure.add_gridspec(2, 3, height_ratios=heights)
    ranking = figure.add_subplot(places[0, :])
    look = dots(unique(rows, "cell"))
    for row in rows:
        draw_interval(ranking, [row], LOSS, "rank", **look[row["cell"]])
    ranking.set_yticks([row["rank"] for row in rows], [f"{row['rank']}  {row['cell']}" for row in rows])
    ranking.set_ylim(len(rows) + 0.6, 0.4)
    ranking.set_xlabel("nats per token of the test text")
    for column, (name, title) in enumerate(AGAINST.items()):
        axes = figure.add_subplot(places[1, column])
        for row in rows:
            draw_interval(axes, [row], name, LOSS, **look[row["cell"]])
        axes.set_xlabel(title)
        if name == "softmax_share":
            axes.set_ylabel("nats per token")
        else:
            thousands(axes.xaxis)
    return figure


def _read_rates(records: Records) -> Sheet:
    sheet = Sheet(
        "Bars: 95 % t intervals over seeds. Stars: the learning rate that the validation text chooses; the "
        "test text chooses nothing."
    )
    for arm in arms(records, sheet):
        for rate, cell in arm.rates if len(arm.rates) > 1 else ():
            for metric, text in TEXTS.items():
                found = over_seeds(cell, metric)
                if found is None:
                    sheet.left_out[cell.name] = cell.gaps(metric)
                    continue
                sheet.rows.append(
                    {
                        "cell": arm.name,
                        "learning_rate": rate,
                        "text": text,
                        **bounds("nll", found),
                        "is_chosen": cell is arm.chosen,
                        "n": len(cell.runs),
                        "run_ids": cell.run_ids,
                    }
                )
    return sheet


def _plot_rates(rows: Sequence[Row], caption: str) -> Canvas:
    cells = unique(rows, "cell")
    lines, columns = grid(len(cells), 5)
    figure = new_figure(caption, PAGE_IN, 0.4 + 1.6 * lines)
    all_axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
    for axes in all_axes[len(cells) :]:
        axes.set_axis_off()
    for axes, cell in zip(all_axes, cells, strict=False):
        rates = unique(where(rows, cell=cell), "learning_rate")
        # side by side: texts that are alike would hide one another
        apart = (max(rates) / min(rates)) ** 0.02
        for text, colour, shift in zip(TEXTS.values(), COLOURS, (1 / apart, apart), strict=False):
            own = [
                row | {"learning_rate": row["learning_rate"] * shift}
                for row in where(rows, cell=cell, text=text)
            ]
            draw_interval(axes, own, "learning_rate", "nll", color=colour, linestyle="-", markersize=3)
            best = where(own, is_chosen=True)
            x, y = ([row[name] for row in best] for name in ("learning_rate", "nll"))
            axes.plot(x, y, "*", color=colour, markersize=7)
        _dress_rates(axes, cell, rates)
    all_axes[0].set_ylabel("nats per token")
    for text, colour, place in zip(TEXTS.values(), COLOURS, (0.97, 0.87), strict=False):
        all_axes[0].text(0.03, place, text, color=colour, va="top", transform=all_axes[0].transAxes)
    return figure


def _dress_rates(axes: Axes, cell: str, rates: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.set_xticks([], minor=True)
    axes.margins(0.25)
    axes.set_title(cell, loc="left")
    axes.set_xlabel("learning rate")


FIGURES = (
    Figure(
        "layer_mixers",
        _read_layers,
        _plot_layers,
        needs="layers of gated delta or softmax, every seed evaluated",
    ),
    Figure(
        "layer_ranking",
        _read_ranking,
        _plot_ranking,
        needs="layers of gated delta or softmax, every seed evaluated, with logged speed",
    ),
    Figure(
        "learning_rates",
        _read_rates,
        _plot_rates,
        needs="layers of gated delta or softmax at two or more learning rates",
    ),
)
