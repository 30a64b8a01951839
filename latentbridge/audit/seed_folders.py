"""Runs of the published systems in a folder: how each ended, and its last numbers; writes nothing.

latentwire          train.log, and its answers in eval_samples_step_*.jsonl
moe-routing-bench   train_log.jsonl, hparams.json
blueberry           metrics.json or training_results.json
A run is the folder that holds such a file, wherever it lies, as `collect` reads it, or answers alone.
Answers are counted anew; where a log has an accuracy and no answers, the accuracy is void. Tables are no
runs, and are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from latentbridge.audit.collect.rows import SEVERAL_RUNS, WITH_BALANCE, Row
from latentbridge.audit.collect.table import collect
from latentbridge.audit.eval_file import EvalFile
from latentbridge.audit.eval_jsonl import audit_trees
from latentbridge.metric import Metric, void
from latentbridge.rundir import read_json

ANSWERS = "bridged_accuracy"
# of each kind of file the numbers that a run is known by
METRICS = {
    "train.log": (ANSWERS,),
    "train_log.jsonl": ("val_loss", "ppl", "bpc"),
    "metrics.json": ("val_loss", "val_accuracy", "val_perplexity"),
    "training_results.json": ("best_val_loss",),
}


@dataclass
class SeedRun:
    """One run as it was found."""

    name: str  # its folder, relative to what was read
    layout: str
    is_finished: bool
    why: str  # what says so
    metrics: dict[str, Metric] = field(default_factory=dict)


@dataclass
class SeedFolder:
    """What was found, and what could not be read: file, and what is wrong with it."""

    runs: list[SeedRun] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def layout(self) -> str:
        """The layouts of its runs; `unknown` where there is none."""
        return ", ".join(sorted({run.layout for run in self.runs})) or "unknown"


def read_seed_folder(folder: Path) -> SeedFolder:
    """Every run at or below a folder."""
    collected = collect(folder)
    found = SeedFolder(unread=[reason.replace(f"{folder}/", "") for reason in collected.unreadable])
    answers = {audits[0].path.parent: audits for _, audits in audit_trees([folder]) if audits}
    for audit in chain.from_iterable(answers.values()):
        if why := _lost(audit):
            found.unread.append(f"{audit.path.relative_to(folder)}: {why}")
    by_file: dict[str, list[Row]] = {}
    for row in collected.rows:
        by_file.setdefault(row.source, []).append(row)
    for source, rows in by_file.items():
        path = folder / source
        if path.name in METRICS:
            name = str(Path(source).parent)
            found.runs.append(
                SeedRun(name, rows[0].layout, *_ending(path, rows), _numbers(path, rows, answers))
            )
    known = {(folder / source).parent for source in by_file}
    found.runs += [_without_log(folder, place, answers[place]) for place in answers.keys() - known]
    found.runs.sort(key=lambda run: run.name)
    return found


def _without_log(folder: Path, place: Path, audits: Sequence[EvalFile]) -> SeedRun:
    """A run of which nothing but answers is left."""
    is_finished = any(audit.label == "final" for audit in audits)
    why = f"it has no log, and answers {'to the end' if is_finished else 'without the final ones'}"
    return SeedRun(
        str(place.relative_to(folder)), "latentwire", is_finished, why, {ANSWERS: _recount(audits)}
    )


def _lost(audit: EvalFile) -> str:
    """What of a file of answers could not be counted; empty where all was."""
    if audit.malformed:
        return f"no JSON record in lines {', '.join(map(str, audit.malformed[:5]))}"
    return audit.unread or ("" if audit.total else "no record in this file")


def _ending(path: Path, rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether a run came to its end, and what says so."""
    if rows[0].void == SEVERAL_RUNS:
        return False, "steps start again within the log"
    if path.name == "train.log":
        if any(row.label == "final" for row in _evaluations(rows)):
            return True, "its log has the final evaluation"
        return False, str(rows[-1].void)
    if path.name != "train_log.jsonl":
        return True, "it has results, which are written at the end"
    planned, last = _planned_steps(path.with_name("hparams.json")), rows[-1].step or 0
    is_finished = last > 0 and (planned is None or last >= planned)
    return is_finished, f"its log ends at step {last} of {planned or 'an unknown number'}"


def _planned_steps(hparams: Path) -> int | None:
    """None where nothing tells."""
    planned = read_json(hparams).get("max_steps") if hparams.exists() else None
    return planned if type(planned) is int else None


def _numbers(path: Path, rows: Sequence[Row], answers: dict[Path, list[EvalFile]]) -> dict[str, Metric]:
    """What a run is known by: of a training log its answers counted anew, of others their last numbers."""
    if path.name != "train.log":
        return _last(path, rows)
    if audits := answers.get(path.parent):
        return {ANSWERS: _recount(audits)}
    return {ANSWERS: void(f"{len(_evaluations(rows))} logged accuracies without an answer to count")}


def _recount(audits: Sequence[EvalFile]) -> Metric:
    """The accuracy of the final answers, whatever a log says; of a part of them there is none."""
    final = next((audit for audit in audits if audit.label == "final"), None)
    if final is None:
        return void(f"no final evaluation; {audits[-1].path.name} is the last")
    lost = _lost(final)
    return void(f"{final.path.name}: {lost}") if lost else final.accuracy


def _evaluations(rows: Sequence[Row]) -> list[Row]:
    """One row of every evaluation that a log has: it always says what the target alone does."""
    return [row for row in rows if row.metric == "target_alone_accuracy"]


def _last(path: Path, rows: Sequence[Row]) -> dict[str, Metric]:
    """The last of each number; one without an interval each, void where it is none."""
    last = {row.metric: row for row in rows if row.label in ("final", "best", rows[-1].label)}
    return {
        name: _metric(last[name]) if name in last else _absent(path, name, last)
        for name in METRICS[path.name]
    }


def _absent(path: Path, name: str, found: Collection[str]) -> Metric:
    """Why there is no such number; a loss that `collect` calls a total is there, and is another."""
    is_total = name.replace("loss", "total_loss") in found
    return void(WITH_BALANCE if is_total and "loss" in name else f"not in {path.name}")


def _metric(row: Row) -> Metric:
    return void(row.void) if row.void else Metric(value=row.value, n=row.n or 1)
