"""What a launch found: a row per run, a row per cell over its seeds, a verdict per comparison of the spec."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from latentbridge.audit.statistics import has_spread, holm, seed_mean, welch
from latentbridge.audit.summary import CLAIM, CellRow, RunRow, Summary, Verdict, gaps
from latentbridge.audit.table import render
from latentbridge.config import read_yaml
from latentbridge.errors import LatentbridgeError
from latentbridge.metric import Metric, void
from latentbridge.rundir import RunDir, read_json, read_jsonl, write_atomic, write_json

SIGNIFICANCE = 0.05
_SHARE = re.compile(r"(^|_)accuracy$")
_LOWER_IS_BETTER = re.compile(
    # seconds, but no rate
    r"(^|_)(nll|loss|perplexity|bits_per_byte|(?<!per_)s|kv_mib|demand_cv|max_vio|dead_experts|gini|drop_rate)$"
)


def summarize(launch_folder: Path) -> Summary:
    """Read a launch, finished or not, and write its summary.json and summary.log."""
    summary = read_launch(launch_folder)
    write_json(launch_folder / "summary.json", summary.as_record())
    write_atomic(launch_folder / "summary.log", render(summary))
    return summary


def read_launch(launch_folder: Path) -> Summary:
    """The summary of a launch as its folder stands; writes nothing."""
    plan = read_json(launch_folder / "plan.json")
    runs = [read_run(record, launch_folder) for record in plan["runs"]]
    cells = []
    for name in dict.fromkeys(run.cell for run in runs):
        own = [run for run in runs if run.cell == name]
        names = dict.fromkeys(metric for run in own for metric in run.metrics)
        cells.append(CellRow(name=name, runs=own, metrics={m: _over_seeds(own, m) for m in names}))
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


def _over_seeds(runs: Sequence[RunRow], metric: str) -> Metric:
    if reason := gaps(runs, metric):
        return void(reason)
    if len(runs) == 1:
        return runs[0].metrics[metric]
    return seed_mean([run.value(metric) for run in runs], share=bool(_SHARE.search(metric)))


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a loss; told from the last word of its name."""
    return bool(_LOWER_IS_BETTER.search(metric))


def judge(comparisons: Sequence[dict[str, Any]], cells: Sequence[CellRow]) -> list[Verdict]:
    """won or lost only beyond the spread of the seeds, after Holm's correction over all comparisons."""
    by_name = {cell.name: cell for cell in cells}
    verdicts = [
        _compare(by_name, name, comparison["baseline"], comparison["metric"])
        for comparison in comparisons
        for name in comparison["against"]
    ]
    corrected = iter(holm([verdict.p for verdict in verdicts if verdict.p is not None]))
    return [v if v.p is None else _decide(v, next(corrected)) for v in verdicts]


def _compare(by_name: dict[str, CellRow], name: str, baseline: str, metric: str) -> Verdict:
    """name minus baseline with the uncorrected p, not yet decided; void where the seeds cannot tell."""
    samples: list[list[float]] = []
    reason, p = "", None
    for side in (name, baseline):
        runs = by_name[side].runs if side in by_name else []
        if lacking := gaps(runs, metric):
            reason = reason or f"{side}: {lacking}"
        elif len(runs) < 2:
            reason = reason or f"{side}: {len(runs)} seeds; a spread takes 2 or more"
        else:
            samples.append([run.value(metric) for run in runs])
    if not reason and not any(has_spread(values) for values in samples):
        reason = "in each cell all seeds gave one value; there is no spread to judge by"
    difference = void(reason)
    if not reason:
        difference, p = welch(*samples)
    return Verdict(cell=name, baseline=baseline, metric=metric, outcome="void", difference=difference, p=p)


def _decide(verdict: Verdict, p: float) -> Verdict:
    assert verdict.difference.value is not None
    better = (verdict.difference.value < 0) == lower_is_better(verdict.metric)
    outcome: Literal["won", "tied", "lost"] = "tied" if p >= SIGNIFICANCE else "won" if better else "lost"
    return replace(verdict, p=p, outcome=outcome)


def _headline(verdicts: Sequence[Verdict], cells: Sequence[CellRow]) -> str:
    """The best cell on the metric that the launch is about: the first comparison's, else early stopping's."""
    stop = cells[0].runs[0].config.get("early_stop") if cells else None
    metric = verdicts[0].metric if verdicts else stop.get("metric") if isinstance(stop, dict) else None
    measured = [(cell, cell.metrics[metric]) for cell in cells if metric in cell.metrics]
    ranked = sorted(
        (
            (found.value, cell.name, found)
            for cell, found in measured
            if found.value is not None and not (metric == CLAIM and cell.is_beyond)
        ),
        key=lambda item: item[0],
        reverse=not lower_is_better(metric or ""),
    )
    if not ranked:
        return f"{metric} void in every cell" if metric else "nothing measured"
    return f"{metric} {ranked[0][2]} in {ranked[0][1]}, the best of {len(ranked)}"
