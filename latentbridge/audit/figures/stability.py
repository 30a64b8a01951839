"""Training with and without the fixes that are to steady it: loss, gradient and what the bridge recovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from latentbridge.audit.figures.curves import comparable, trained_top, unfinished
from latentbridge.audit.figures.sheet import Figure, Row, Sheet, unique, where
from latentbridge.audit.figures.spotlight import Spotlight, ends_of, spotlight
from latentbridge.audit.figures.style import PAGE_IN, SMALL, by_update, draw_band, evenly, new_figure
from latentbridge.audit.records import CellRecords, Records, evaluated, logged

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# by name: the setting, and which of its values is the fix
FIXES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "InfoNCE": ("losses.info_nce.weight", bool),
    "warm-up": ("optim.warmup_steps", bool),
    "clipping": ("optim.clip_norm", lambda norm: norm is not None),
    "faster gates": ("optim.gate_lr_multiplier", lambda times: times != 1.0),
    "closed gates": ("model.gate_init", lambda start: start == 0.0),
    "RMS match": ("model.rms_match", bool),
}
PANELS = {
    "losses.lm": "nats per answer token",
    "grad_norm": "norm of the gradient",
    "context_recovered": "context recovered",
}
ABOUT = (
    "Mean over seeds by update; bands: range of the seeds. Cells of one panel differ in fixes alone. "
    "What lies above all losses after a tenth of the updates is cut off."
)
FIXED = "with all fixes"
# columns of a page
MOST = 4


def _read(records: Records) -> Sheet:
    sheet = Sheet(ABOUT)
    groups = _groups([cell for cell in records.cells if cell.row.soft_tokens is not None and cell.config])
    for name, cells in groups.items():
        for label, cell in cells:
            if why := unfinished(cell):
                sheet.left_out[cell.name] = why
                continue
            for metric in PANELS:
                if not comparable(cell, metric, sheet):
                    continue
                read = evaluated(metric) if metric == "context_recovered" else logged(*metric.split("."))
                about = {"like": name, "cell": cell.name, "fixes": label, "metric": metric}
                ids = {"n": len(cell.runs), "run_ids": cell.run_ids}
                sheet.rows += [about | point | ids for point in cell.curve(read)]
    shown = _shown(sheet.rows)
    for row in sheet.rows:
        if row["like"] not in shown:
            sheet.left_out[row["cell"]] = "no room; in the CSV"
    return sheet


def _groups(cells: Sequence[CellRecords]) -> dict[str, list[tuple[str, CellRecords]]]:
    """By the name of the first: cells that differ in fixes alone, each with what it goes without."""
    found: dict[str, list[CellRecords]] = {}
    for cell in cells:
        found.setdefault(cell.settings_but(*(key for key, _ in FIXES.values())), []).append(cell)
    groups = {}
    for own in found.values():
        # what none of them has, or all, tells nothing apart
        varying = [name for name in FIXES if len({_has(cell, name) for cell in own}) > 1]
        if varying:
            groups[own[0].name] = [(_label(cell, varying), cell) for cell in own]
    return groups


def _has(cell: CellRecords, fix: str) -> bool:
    key, is_fix = FIXES[fix]
    return is_fix(cell.setting(*key.split(".")))


def _label(cell: CellRecords, varying: Sequence[str]) -> str:
    lacking = [name for name in varying if not _has(cell, name)]
    return f"without {', '.join(lacking)}" if lacking else FIXED


def _shown(rows: Sequence[Row]) -> list[str]:
    """Groups for which a page has room."""
    return evenly(unique(rows, "like"), MOST)


def _plot(rows: Sequence[Row], caption: str) -> Canvas:
    groups = _shown(rows)
    metrics = [metric for metric in PANELS if where(rows, metric=metric)]
    ranks = metrics[-1] if metrics[-1] == "context_recovered" else metrics[0]
    ends = ends_of(rows, ranks, "fixes")
    light = spotlight(unique(rows, "fixes"), ends, ranks, PANELS[ranks], keep=(FIXED,), noun="sets of fixes")
    figure = new_figure(light.caption(caption), PAGE_IN, 0.4 + 1.35 * len(metrics))
    panels = figure.subplots(len(metrics), len(groups), squeeze=False, sharey="row")
    for line, metric in zip(panels, metrics, strict=True):
        for axes, group in zip(line, groups, strict=True):
            own = where(rows, like=group, metric=metric)
            for label, look in light.look.items():
                if drawn := where(own, fixes=label):
                    draw_band(axes, drawn, **look)
            by_update(axes)
            axes.set_title(
                f"{group}: {PANELS[metric]}" if len(groups) == 1 else group, loc="left", fontsize=SMALL
            )
        if len(groups) > 1:
            line[0].set_ylabel(PANELS[metric])
        if metric == "grad_norm":
            line[0].set_yscale("log")
        if metric == "losses.lm":
            line[0].set_ylim(top=max(trained_top(where(rows, like=g, metric=metric)) for g in groups))
    _explain(figure, light)
    return figure


def _explain(figure: Canvas, light: Spotlight) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, **({"linewidth": 1} | light.look[name])) for name in light.named]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(3, len(handles)), frameon=False, fontsize=SMALL
    )


FIGURES = (
    Figure(
        "stability",
        _read,
        _plot,
        needs="translators with and without a fix (InfoNCE, warm-up, clipping, gates), alike otherwise",
    ),
)
