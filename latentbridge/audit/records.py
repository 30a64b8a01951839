"""What figures and exports read: a launch's summary, and of each run what it logged; writes nothing."""

from __future__ import annotations

import copy
import json
import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from latentbridge.audit.ablations import read_launch
from latentbridge.audit.statistics.seeds import seed_mean
from latentbridge.audit.summary import CellRow, RunRow, Summary, gaps
from latentbridge.capacity.rows import ROWS
from latentbridge.errors import DamageError, LatentbridgeError
from latentbridge.metric import Metric
from latentbridge.rundir import RunDir, read_json, read_jsonl

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of weights in training; the final one, of the best weights, is in the run's row."""

    step: int
    metrics: dict[str, Metric]

    def value(self, metric: str) -> float | None:
        """None where it was not measured, or is void."""
        return self.metrics[metric].value if metric in self.metrics else None


class RunRecords:
    """One run; files are read when they are asked for, and a damaged one counts as missing."""

    def __init__(self, row: RunRow, folder: RunDir) -> None:
        self.row, self.folder = row, folder

    def setting(self, *keys: str) -> Any:
        """A value of the run's config; None where there is none."""
        return setting(self.row.config, *keys)

    @cached_property
    def updates(self) -> list[dict[str, Any]]:
        """Records of train.jsonl."""
        return _unless_damaged(lambda: list(_with_steps(self.folder.train_log))) or []

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """All but the final one, by step."""
        records = _unless_damaged(lambda: list(read_jsonl(self.folder.metrics_log))) or []
        return [
            Evaluation(record["step"], {k: Metric.from_record(v) for k, v in record["metrics"].items()})
            for record in records
            if str(record["label"]).isdigit()
        ]

    @cached_property
    def experts(self) -> list[dict[str, Any]]:
        """RUN/experts.jsonl: of each evaluation, loads by text and layer; the final one comes last."""
        return _unless_damaged(lambda: list(read_jsonl(self.folder.path / "experts.jsonl"))) or []

    def loads(self, text: str) -> list[list[float]]:
        """(L, E) of the last evaluation of a text, "val" or "test"; empty where there is none."""
        found: list[list[float]] = (self.experts[-1] if self.experts else {}).get("load", {}).get(text, [])
        return found

    @cached_property
    def specialisation(self) -> dict[str, Any] | None:
        """RUN/specialisation.json, see lm/specialisation.describe."""
        return self._json("specialisation.json")

    @cached_property
    def text(self) -> dict[str, Any] | None:
        """RUN/text.json: sizes of the text that was trained on and evaluated on; None where there is none."""
        return self._json("text.json")

    @cached_property
    def capacity(self) -> list[dict[str, Any]]:
        """RUN/capacity.jsonl: what a capacity limit drops and costs."""
        return _unless_damaged(lambda: list(read_jsonl(self.folder.path / ROWS))) or []

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.folder.path / name
        return _unless_damaged(lambda: dict(read_json(path))) if path.exists() else None

    @property
    def tokens_per_s(self) -> float | None:
        """Median over the log's records but the first, which pays for the start; evaluation is not in it."""
        rates = [record["tokens_per_s"] for record in self.updates if "tokens_per_s" in record]
        return statistics.median(rates[1:] or rates) if rates else None

    def minutes_at(self, step: int) -> float | None:
        """Of training alone, until after this update; between two that were logged, in proportion."""
        before, seconds = 0, 0.0
        for record in self.updates:
            if record["step"] >= step:
                share = (step - before) / (record["step"] - before)
                return float(seconds + share * (record["elapsed_s"] - seconds)) / 60
            before, seconds = record["step"], record["elapsed_s"]
        return None

    def update_at(self, step: int) -> dict[str, Any] | None:
        """The record of train.jsonl whose means are of this update too."""
        return next((record for record in self.updates if record["step"] >= step), None)


@dataclass(frozen=True)
class CellRecords:
    """One cell over its seeds."""

    row: CellRow
    runs: list[RunRecords]

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def run_ids(self) -> str:
        return " ".join(run.row.id for run in self.runs)

    @property
    def config(self) -> dict[str, Any]:
        """Of the first seed that has one."""
        return next((run.row.config for run in self.runs if run.row.config), {})

    def setting(self, *keys: str) -> Any:
        """A value of the cell's config; None where there is none."""
        return setting(self.config, *keys)

    def settings_but(self, *dotted: str) -> str:
        """All that is set but the seed and these keys, as text: equal for cells that differ in them alone."""
        config = copy.deepcopy(self.config)
        for key in ("seed", *dotted):
            *above, last = key.split(".")
            if isinstance(inner := setting(config, *above), dict):
                inner.pop(last, None)
        return json.dumps(config, sort_keys=True, default=str)

    def gaps(self, metric: str) -> str:
        """Seeds that lack a final metric, and why; empty where none does."""
        return gaps(self.row.runs, metric)

    def over_seeds(self, read: Callable[[RunRecords], float | None]) -> Metric | None:
        """Mean of what each seed has, with its t interval; None where a seed has nothing."""
        values = [read(run) for run in self.runs]
        known = [value for value in values if value is not None]
        return seed_mean(known) if known and len(known) == len(values) else None

    def range_over_seeds(self, read: Callable[[RunRecords], float | None]) -> Metric | None:
        """The same with the least and the largest in place of the interval."""
        found = self.over_seeds(read)
        values = [value for run in self.runs if (value := read(run)) is not None]
        return found and replace(found, low=min(values), high=max(values))

    def curve(self, read: Callable[[RunRecords], dict[int, float]]) -> Iterator[dict[str, float]]:
        """step, mean, low, high: over seeds, low and high their range; at steps that all seeds have."""
        curves = [read(run) for run in self.runs]
        for step in sorted(set.intersection(*(set(found) for found in curves))) if curves else []:
            values = [found[step] for found in curves]
            mean = statistics.fmean(values)
            yield {"step": step, "mean": mean, "low": min(values), "high": max(values)}


@dataclass(frozen=True)
class Records:
    """A launch, finished or not."""

    summary: Summary
    cells: list[CellRecords]

    @property
    def mixtures(self) -> list[CellRecords]:
        """Cells whose feed-forward layers are mixtures of experts."""
        return [cell for cell in self.cells if isinstance(cell.setting("mixture"), dict)]

    @property
    def layer_routing(self) -> list[CellRecords]:
        """Cells whose layers read by gated delta, by softmax, or as a token is routed."""
        return [cell for cell in self.cells if cell.setting("mixers")]


def read_records(launch_folder: Path) -> Records:
    """Everything of a launch that figures may ask for."""
    summary = read_launch(launch_folder)
    cells = [
        CellRecords(cell, [RunRecords(run, RunDir(launch_folder / run.name)) for run in cell.runs])
        for cell in summary.cells
    ]
    return Records(summary, cells)


def evaluated(metric: str) -> Callable[[RunRecords], dict[int, float]]:
    """A metric of evaluations by step, for `CellRecords.curve`."""

    def read(run: RunRecords) -> dict[int, float]:
        found = {evaluation.step: evaluation.value(metric) for evaluation in run.evaluations}
        return {step: value for step, value in found.items() if value is not None}

    return read


def logged(*keys: str) -> Callable[[RunRecords], dict[int, float]]:
    """A value of train.jsonl by step, for `CellRecords.curve`."""

    def read(run: RunRecords) -> dict[int, float]:
        found = {record["step"]: setting(record, *keys) for record in run.updates}
        return {step: value for step, value in found.items() if value is not None}

    return read


def final(metric: str) -> Callable[[RunRecords], float | None]:
    """A metric of the final evaluation, for `CellRecords.over_seeds`."""
    return lambda run: None if run.row.lacks(metric) else run.row.value(metric)


def setting(tree: Any, *keys: str) -> Any:
    """A value of nested mappings; None where a key is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def shares(load: Sequence[float]) -> list[float]:
    """Of a layer's pairs, by expert; empty where nobody has any."""
    total = sum(load)
    return [value / total for value in load] if total else []


def _with_steps(path: Path) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(read_jsonl(path), start=1):
        if "step" not in record:
            raise DamageError(f"{path}:{number}: a record without a step; the file was damaged")
        yield record


def _unless_damaged(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (LatentbridgeError, KeyError, TypeError) as error:
        log.warning("left out of figures: %s", error)
        return None
