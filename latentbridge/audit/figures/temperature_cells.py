"""Which cells a temperature study compares, and what they did, as rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from latentbridge.audit.figures.sheet import Row, Sheet
from latentbridge.audit.records import CellRecords, Records, RunRecords, evaluated, final, logged
from latentbridge.audit.statistics.seeds import compare_seeds

WHERE = ("mixture", "router", "temperature")
LOSS, ACCURACY, ENTROPY, CONFIDENCE = "val_nll", "val_accuracy", "val_entropy", "val_confidence"
NOT_A_SERIES = "no other cell differs from it in the temperature alone"

ABOUT = "Means over seeds; bands: range of the seeds; bars: 95 % t intervals over seeds."
NAMES = {
    LOSS: "validation nats per token",
    ACCURACY: "validation accuracy",
    ENTROPY: "router entropy, nats",
    CONFIDENCE: "router confidence",
    "balance": "balance loss (1 is even)",
    "temperature": "temperature",
}

Read = Callable[[RunRecords], float | None]


def constant_series(records: Records, sheet: Sheet) -> dict[str, list[tuple[float, CellRecords]]]:
    """Cells of constant temperature, by temperature, in groups that differ in nothing else; by acts_on.

    Groups of one temperature are named in the sheet: a longer training is no point on the axis of short ones.
    """
    groups: dict[str, list[tuple[float, CellRecords]]] = {}
    for cell in records.mixtures:
        found = cell.setting(*WHERE)
        if not isinstance(found, dict) or found.get("schedule", "constant") != "constant":
            continue
        if why := cell.gaps(LOSS):
            sheet.left_out[cell.name] = why
            continue
        others = cell.settings_but(".".join((*WHERE, "start")))
        groups.setdefault(others, []).append((found.get("start", 1.0), cell))
    series: dict[str, list[tuple[float, CellRecords]]] = {}
    for group in sorted(groups.values(), key=len, reverse=True):
        if len(group) < 2:
            sheet.left_out |= {cell.name: NOT_A_SERIES for _, cell in group}
            continue
        name = group[0][1].setting(*WHERE, "acts_on") or "weights"
        name = name if name not in series else f"{name}, as {group[0][1].name}"
        series[name] = sorted(group, key=lambda pair: pair[0])
    if not series:
        sheet.left_out = {}
    return series


def temperatures(run: RunRecords) -> dict[int, float]:
    """The temperature of each update that was logged, as its config gives it."""
    from latentbridge.lm.mixture_config import TemperatureConfig, temperature_at

    config, steps = TemperatureConfig(**run.setting(*WHERE)), run.setting("train", "steps")
    return {record["step"]: temperature_at(config, record["step"], steps) for record in run.updates}


def curves(cell: CellRecords, quantities: Sequence[str], series: str, temperature: float) -> list[Row]:
    """Rows of every quantity by update, with the minutes of training until then."""
    reads = {"balance": logged("losses", "balance"), "temperature": temperatures}
    rows = []
    for name in quantities:
        for point in cell.curve(reads.get(name) or evaluated(name)):
            step = int(point["step"])
            minutes = cell.over_seeds(lambda run, step=step: run.minutes_at(step))  # type: ignore[misc]
            found = {**point, "minutes": minutes and minutes.value}
            rows += _row(cell, name, found, series, temperature)
    return rows


def ends(cell: CellRecords, quantities: dict[str, Read], series: str, temperature: float) -> list[Row]:
    """Rows of single numbers over seeds with their intervals: `step` is empty."""
    rows = []
    for name, read in quantities.items():
        metric = cell.over_seeds(read)
        if metric is not None:
            found = {"mean": metric.value, "low": metric.low, "high": metric.high}
            rows += _row(cell, name, found, series, temperature)
    return rows


def _row(cell: CellRecords, name: str, found: Row, series: str, temperature: float) -> list[Row]:
    blank = dict.fromkeys(("step", "mean", "low", "high", "minutes"))
    named = {"cell": cell.name, "series": series, "temperature": temperature, "metric": name}
    return [named | blank | found | {"n": len(cell.runs), "run_ids": cell.run_ids}]


def last(metric: str) -> Read:
    """Of the last evaluation in training, whatever weights were best."""
    return lambda run: run.evaluations[-1].value(metric) if run.evaluations else None


def verdict(series: str, group: Sequence[tuple[float, CellRecords]]) -> list[Row]:
    """The best and the worst temperature of a series by the loss of their best weights; what seeds tell."""
    ranked = []
    for temperature, cell in group:
        metric = cell.over_seeds(final(LOSS))
        if metric is not None and metric.value is not None:
            ranked.append((metric.value, temperature, cell))
    ranked.sort(key=lambda item: item[:2])
    rows = []
    for name, (value, temperature, cell) in (("best", ranked[0]), ("worst", ranked[-1])):
        rows += _row(cell, f"table_{name}", {"mean": value}, series, temperature)
    apart = (ranked[-1][2], ranked[0][2])
    losses = [{run.row.seed: run.row.value(LOSS) for run in cell.runs} for cell in apart]
    if all(len(values) > 1 for values in losses) and (test := compare_seeds(*losses)).p is not None:
        difference = test.difference
        found = {"mean": difference.value, "low": difference.low, "high": difference.high}
        rows += _row(ranked[-1][2], "table_difference", found, series, ranked[-1][1])
        rows += _row(ranked[-1][2], "table_p", {"mean": test.p}, series, ranked[-1][1])
    return rows
