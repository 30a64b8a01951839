"""Sibling references: a setting that takes the value with which other cells of the spec did best.

optim.lr: {best_of: "lr_*", metric: answer_nll, mode: min}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field

from latentbridge.config import Config, read_yaml, to_yaml
from latentbridge.errors import RunError
from latentbridge.metric import best_of
from latentbridge.rundir import RunDir, read_jsonl


class Reference(Config):
    """The best of several cells: as a setting its value of the same one, in a comparison the cell itself."""

    best_of: str = Field(min_length=1, description="names of cells, with * and ? as in file names")
    metric: str = Field(min_length=1, description="a metric of their final evaluation, e.g. answer_nll")
    mode: Literal["min", "max"] = Field(description="min or max, whichever of the metric is best")

    def __str__(self) -> str:
        return f"best {self.metric} ({self.mode}) of {self.best_of}"


class BestOf(Reference):
    """A reference whose cells are known, in the order of the spec; on a tie the first one wins."""

    # strict tuples refuse the lists of a JSON file
    candidates: Annotated[tuple[str, ...], Field(strict=False)]


def as_written(value: Any) -> Any:
    """A setting as plain data, references spelled as in the spec."""
    if isinstance(value, Reference):
        return value.model_dump(include={"best_of", "metric", "mode"})
    if isinstance(value, dict):
        return {key: as_written(inner) for key, inner in value.items()}
    return [as_written(inner) for inner in value] if isinstance(value, list) else value


def resolve(
    references: Mapping[str, BestOf], runs: Mapping[str, Sequence[RunDir]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The winners' values by dotted key, and in words why they won.

    references: by dotted key;  runs: every run (seed) of each candidate, by name of the cell
    RunError names the run that is not done, or has no final value of the metric.
    """
    values, why = {}, {}
    for key, reference in references.items():
        scores = {cell: _score(runs[cell], reference.metric) for cell in reference.candidates}
        best, why[key] = best_of(scores, reference.metric, reference.mode)
        values[key] = setting(read_yaml(runs[best][0].config).values, key)
    return values, why


def resolved_config(run: RunDir, values: Mapping[str, Any]) -> str:
    """The text of a run's config.yaml with the winners' values where its references stand."""
    settings = read_yaml(run.config).values
    for key, value in values.items():
        settings = put(settings, key, value)
    return to_yaml(settings)


def setting(settings: Any, key: str) -> Any:
    """The setting at a dotted key; KeyError where there is none."""
    for part in key.split("."):
        if not isinstance(settings, dict):
            raise KeyError(key)
        settings = settings[part]
    return settings


def put(settings: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of nested settings with the one at a dotted key replaced whole."""
    head, _, rest = key.partition(".")
    return {**settings, head: put(settings[head], rest, value) if rest else value}


def _score(runs: Sequence[RunDir], metric: str) -> float:
    """The mean over a cell's seeds of the metric's final value."""
    return fmean(_final_value(run, metric) for run in runs)


def _final_value(run: RunDir, metric: str) -> float:
    def refuse(found: str) -> RunError:
        return RunError(f"{run.path}: {found}, so nobody can say whether it is best; run it again")

    if not run.is_done:
        raise refuse(f"it is {run.state or 'unfinished'}, not DONE")
    evaluations = list(read_jsonl(run.metrics_log))
    if not evaluations or evaluations[-1]["label"] != "final":
        raise refuse("it has no final evaluation")
    metrics = evaluations[-1]["metrics"]
    if metric not in metrics:
        raise refuse(f"its final evaluation has no '{metric}' but {', '.join(sorted(metrics))}")
    record = metrics[metric]
    if record.get("value") is None:
        raise refuse(f"its '{metric}' is void ({record['void']})")
    return float(record["value"])
