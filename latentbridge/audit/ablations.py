"""What a launch found: a row per run, a row per cell over its seeds, a verdict per comparison of the spec."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from latentbridge.audit.sharing import most_at_once
from latentbridge.audit.statistics.corrections import holm, outcome
from latentbridge.audit.statistics.seeds import compare_seeds, seed_mean
from latentbridge.audit.summary import CLAIM, CellRow, RunRow, Summary, gaps
from latentbridge.audit.table import render
from latentbridge.audit.verdicts import Verdict
from latentbridge.config import Tree, read_yaml
from latentbridge.errors import LatentbridgeError
from latentbridge.metric import Direction, Metric, best_of, better, void
from latentbridge.rundir import RunDir, read_jsonl, read_object, write_atomic, write_json

_SHARE = re.compile(r"(^|_)(accuracy|share)$")


def summarize(launch_folder: Path) -> Summary:
    """Read a launch, finished or not, and write its summary.json and summary.log."""
    summary = read_launch(launch_folder)
    write_json(launch_folder / "summary.json", summary.as_record())
    write_atomic(launch_folder / "summary.log", render(summary))
    return summary


def read_launch(launch_folder: Path) -> Summary:
    """The summary of a launch as its folder stands; writes nothing."""
    plan = read_object(launch_folder / "plan.json", "runs")
    runs = [read_run(record, launch_folder) for record in plan["runs"]]
    together = most_at_once(RunDir(launch_folder / Path(record["folder"]).name) for record in plan["runs"])
    runs = [replace(run, to_a_card=together.get(run.name, 1)) for run in runs]
    cells = []
    for name in dict.fromkeys(run.cell for run in runs):
        own = [run for run in runs if run.cell == name]
        names = dict.fromkeys(metric for run in own for metric in run.metrics)
        cells.append(CellRow(name=name, runs=own, metrics={m: over_seeds(own, m) for m in names}))
    verdicts = judge(plan.get("compare", []), cells)
    return Summary(
        launch=launch_folder.name,
        runs=runs,
        cells=cells,
        verdicts=verdicts,
        headline=_headline(verdicts, cells),
    )


def read_run(record: dict[str, Any], launch_folder: Path) -> RunRow:
    """One entry of plan.json with what its folder holds; a damaged file is named in `cause`, not raised."""
    # by name: a restored launch lies elsewhere than the plan says
    folder = RunDir(launch_folder / Path(record["folder"]).name)
    state = folder.state or ("unfinished" if folder.list_attempts() else "not started")
    found: dict[str, Any] = {}
    try:
        marker = folder.read_marker()
        found["cause"] = str(marker.get("cause") or marker.get("reason") or "")
        if folder.config.exists():
            found["config"] = read_yaml(folder.config, f"{folder.name}/config.yaml").values
        manifest = folder.read_manifest()
        found["warm_start"], found["backoff"] = manifest.get("warm_start"), manifest.get("backoff", 0)
        for evaluation in read_jsonl(folder.metrics_log):
            found["label"] = str(evaluation["label"])
            found["metrics"] = {k: Metric.from_record(v) for k, v in evaluation["metrics"].items()}
        if "text" in found.get("config", {}):
            logged = read_jsonl(folder.train_log)
            found["tokens_per_s"] = [r["tokens_per_s"] for r in logged if "tokens_per_s" in r]
    except (LatentbridgeError, KeyError, TypeError) as error:
        found |= {"cause": f"damaged: {error}", "label": None, "metrics": {}}
    plain = {key: record[key] for key in ("name", "cell", "seed", "id")}
    return RunRow(**plain, state=state, **found)


def over_seeds(runs: Sequence[RunRow], metric: str) -> Metric:
    """Mean over seeds with its interval; of a single seed its own; void, with names, where one lacks it."""
    if reason := gaps(runs, metric):
        return void(reason)
    if len(runs) == 1:
        return runs[0].metrics[metric]
    return seed_mean([run.value(metric) for run in runs], share=bool(_SHARE.search(metric)))


def judge(comparisons: Sequence[dict[str, Any]], cells: Sequence[CellRow]) -> list[Verdict]:
    """won or lost only beyond the spread of the seeds, after Holm's correction over all comparisons.

    A metric of which neither less nor more is better claims nothing: it has no p, and counts for none.
    """
    by_name = {cell.name: cell for cell in cells}
    verdicts = [
        _compare(_side(by_name, side), _side(by_name, comparison["baseline"]), comparison["metric"])
        for comparison in comparisons
        for side in comparison["against"]
    ]
    corrected = iter(holm([verdict.p for verdict in verdicts if verdict.p is not None]))
    return [v if v.p is None else _decide(v, next(corrected)) for v in verdicts]


class _Side(NamedTuple):
    """Who is compared; void: why nobody could be chosen, chosen: why this one was."""

    name: str
    runs: Sequence[RunRow]
    chosen: str = ""
    void: str = ""


def _side(by_name: dict[str, CellRow], side: str | dict[str, str]) -> _Side:
    """A cell by name, or the best of several in the mean over seeds, of which none may be missing."""
    if isinstance(side, str):
        return _Side(side, by_name[side].runs if side in by_name else [])
    pattern, metric, mode = side["best_of"], side["metric"], side["mode"]
    cells = [by_name[name] for name in fnmatch.filter(by_name, pattern)]
    lacking = [f"{cell.name}: {why}" for cell in cells if (why := gaps(cell.runs, metric))]
    if lacking or not cells:
        why = "; ".join(lacking) or "there is no such cell"
        return _Side(pattern, [], void=f"nobody can say which of {pattern} is best by {metric}: {why}")
    scores = {cell.name: fmean(run.value(metric) for run in cell.runs) for cell in cells}
    best, why = best_of(scores, metric, mode)
    return _Side(best, by_name[best].runs, chosen=why + _at_an_end(cells, best))


def _at_an_end(cells: Sequence[CellRow], best: str) -> str:
    """Where the best has the least or the most of the one number that cells differ in, so in words."""
    settings = {cell.name: Tree(cell.runs[0].config, {}).flat() for cell in cells}
    keys = {key for each in settings.values() for key in each} - {"seed"}
    differing = [key for key in keys if len({str(each.get(key)) for each in settings.values()}) > 1]
    values = {name: each.get(differing[0]) for name, each in settings.items()} if len(differing) == 1 else {}
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    ordered = sorted(numbers.values())
    if not values or len(numbers) < len(values) or ordered[0] < numbers[best] < ordered[-1]:
        return ""
    tried = ", ".join(map(str, ordered))
    return f"; it is at an end of the {differing[0]} that were tried ({tried}), and beyond may be better"


def _compare(own: _Side, baseline: _Side, metric: str) -> Verdict:
    """own minus baseline with the uncorrected p, not yet decided; void where the seeds cannot tell."""
    sides = (baseline, own)
    verdict = Verdict(
        cell=own.name,
        baseline=baseline.name,
        metric=metric,
        outcome="void",
        difference=void(""),
        chosen=tuple(side.chosen for side in sides if side.chosen),
    )
    for side in reversed(sides):
        if reason := side.void or _cannot_tell(side, metric):
            return replace(verdict, difference=void(reason))
    test = compare_seeds(*({run.seed: run.value(metric) for run in side.runs} for side in (own, baseline)))
    verdict = replace(verdict, difference=test.difference, p=test.p, by=test.by)
    if test.p is None or better(metric):
        return verdict
    return replace(verdict, outcome="-", p=None)


def _cannot_tell(side: _Side, metric: str) -> str:
    """Why the seeds of a side have no spread to judge by; empty where they have."""
    if lacking := gaps(side.runs, metric):
        return f"{side.name}: {lacking}"
    if not side.runs:
        return f"{side.name}: no run"
    if len(side.runs) == 1:
        return f"{side.name}: one run tells nothing of the spread between runs"
    return ""


def _decide(verdict: Verdict, p: float) -> Verdict:
    direction = better(verdict.metric)
    assert verdict.difference.value is not None and direction is not None
    decided = outcome(verdict.difference.value, p, lower_is_better=direction == "lower")
    return replace(verdict, p=p, outcome=decided)


def _headline(verdicts: Sequence[Verdict], cells: Sequence[CellRow]) -> str:
    """The best cell on the metric that the launch is about: the first comparison's, else early stopping's."""
    stop = cells[0].runs[0].config.get("early_stop") if cells else None
    stop = stop if isinstance(stop, dict) else {}
    metric = verdicts[0].metric if verdicts else stop.get("metric")
    direction = _direction(metric, stop)
    measured = [(cell, cell.metrics[metric]) for cell in cells if metric in cell.metrics]
    ranked = sorted(
        (
            (found.value, cell.name, found)
            for cell, found in measured
            if found.value is not None and not (metric == CLAIM and cell.is_beyond)
        ),
        key=lambda item: item[0],
        reverse=direction == "higher",
    )
    if not ranked:
        return f"{metric} void in every cell" if metric else "nothing measured"
    if direction is None:
        return f"{metric} of {len(ranked)} cells, none of which it makes the best"
    return f"{metric} {ranked[0][2]} in {ranked[0][1]}, the best of {len(ranked)}"


def _direction(metric: str | None, stop: dict[str, Any]) -> Direction | None:
    """Which value is better: as the name says, else as early stopping by this metric was told."""
    if metric is None:
        return None
    told: Direction = "lower" if stop.get("mode") == "min" else "higher"
    return better(metric) or (told if stop.get("metric") == metric else None)
