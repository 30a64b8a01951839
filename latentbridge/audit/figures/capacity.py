"""What a capacity limit drops and how fast it is, by factor, experts and choices, beside the closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from latentbridge.audit.figures.sheet import Figure, Row, Sheet, unique, where
from latentbridge.audit.figures.style import (
    COLOURS,
    COLUMN_IN,
    GREY,
    MARKERS,
    PAGE_IN,
    SMALL,
    looks,
    new_figure,
    thousands,
)
from latentbridge.audit.records import Records
from latentbridge.audit.statistics.seeds import seed_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# of a bench beside experts and choices: rows that differ in one are not of one measurement
SETTINGS = ("preference", "num_tokens", "width", "dtype", "device")
KEYS = ("num_experts", "top_k", "capacity_factor", *SETTINGS)
VALUES = ("drop_rate", "closed_form", "tokens_per_s")


def _read(records: Records) -> Sheet:
    sheet = Sheet(
        "Dots: measured, mean over runs of equal settings in the band of their range. Lines of the upper "
        "panels: what is dropped in closed form where routers prefer nobody (capacity/closed_form.py)."
    )
    found = [(run.row.id, row) for cell in records.cells for run in cell.runs for row in run.capacity]
    groups: dict[tuple[Any, ...], list[tuple[str, Row]]] = {}
    for run_id, row in found:
        groups.setdefault(tuple(row.get(key) for key in KEYS), []).append((run_id, row))
    for place, group in sorted(groups.items(), key=_order):
        made: Row = dict(zip(KEYS, place, strict=True))
        for name in VALUES:
            values = [row[name] for _, row in group if row.get(name) is not None]
            made |= {name: seed_mean(values).value if values else None}
            made |= {f"{name}_low": min(values, default=None), f"{name}_high": max(values, default=None)}
        sheet.rows.append(made | {"n": len(group), "run_ids": " ".join(dict.fromkeys(i for i, _ in group))})
    for cell in records.cells:
        for run in cell.runs:
            if sheet.rows and run.row.state != "DONE":
                sheet.left_out[run.row.name] = " ".join(
                    ("nothing measured,", run.row.state, run.row.cause)
                ).strip()
    return sheet


def _order(group: tuple[tuple[Any, ...], Any]) -> list[tuple[bool, Any]]:
    """By all keys, of which rows may lack some."""
    return [(value is not None, value) for value in group[0]]


def _plot(rows: Sequence[Row], caption: str) -> Canvas:
    top_ks, series = sorted(unique(rows, "top_k")), _series(rows)
    width = PAGE_IN if len(top_ks) > 1 else COLUMN_IN
    # a character of a name takes about 0.05 in, its mark six of them
    columns = min(len(series), max(1, int(20 * width / (6 + max(map(len, series))))))
    figure = new_figure(caption, width, 3.9 + 0.12 * (len(series) // columns))
    all_axes = figure.subplots(2, len(top_ks), squeeze=False, sharex=True, sharey="row")
    look = looks(list(series))
    for column, top_k in zip(all_axes.T, top_ks, strict=True):
        for number, (name, wanted) in enumerate(series.items()):
            own = where(rows, top_k=top_k, **wanted)
            # marks change where colours begin again
            marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
            dots = look[name] | {"marker": marker}
            _draw(column[0], own, "closed_form", **look[name])
            _draw(column[0], own, "drop_rate", label=name, **(dots | {"linestyle": ""}))
            _draw(column[1], own, "tokens_per_s", **dots)
            _draw_range(column[1], own, look[name]["color"])
        column[0].axvline(1, color=GREY, linewidth=0.5, linestyle=":", zorder=0)
        column[0].set_title(f"{top_k} expert{'s' if top_k > 1 else ''} a token")
        column[1].set_xlabel("capacity factor")
        column[1].set_ylim(bottom=0)
    thousands(all_axes[1][0].yaxis)
    all_axes[0][0].set_ylabel("share of pairs dropped")
    all_axes[1][0].set_ylabel("tokens per second")
    figure.legend(
        *all_axes[0][0].get_legend_handles_labels(),
        title="experts",
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        title_fontsize=SMALL,
    )
    return figure


def _series(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """What tells the rows of each series, by its name: the experts, and other settings that vary."""
    varying = [key for key in SETTINGS if len(unique(rows, key)) > 1]
    found = {}
    for row in rows:
        others = [f"{key} {row[key]}" for key in varying]
        name = ", ".join((str(row["num_experts"]), *others))
        found[name] = {key: row[key] for key in ("num_experts", *varying)}
    return found


def _draw_range(axes: Axes, rows: Sequence[Row], colour: str) -> None:
    own = [row for row in rows if row["tokens_per_s"] is not None]
    factors, low, high = (
        [row[name] for row in own] for name in ("capacity_factor", "tokens_per_s_low", "tokens_per_s_high")
    )
    axes.fill_between(factors, low, high, color=colour, alpha=0.15, linewidth=0)


def _draw(axes: Axes, rows: Sequence[Row], name: str, **look: Any) -> None:
    own = [row for row in rows if row[name] is not None]
    factors, values = [row["capacity_factor"] for row in own], [row[name] for row in own]
    axes.plot(factors, values, linewidth=1, markersize=3, **look)


FIGURES = (Figure("capacity", _read, _plot, needs="runs of the job capacity"),)
