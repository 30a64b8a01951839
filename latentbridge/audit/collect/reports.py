"""What the published temperature study says of its runs together: its list of them, and two reports.

Numbers here are quoted: where the run's own metrics.json says another, they are of no run that is kept.
What the reports make of them is not read: a winner by the loss of untrained weights, and fixed sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentbridge.audit.collect.files import AGAIN, read_document, read_object
from latentbridge.audit.collect.mixtures import NOT_RECORDED
from latentbridge.audit.collect.rows import Row, numbered
from latentbridge.errors import DamageError
from latentbridge.rundir import find_stored

METRICS = "metrics.json"
# as the launcher and the analyses were called by default
RESULTS = Path("..", "results")
QUOTED = "quoted from the run's metrics.json"
OLDER = f"of another run of that name: its {METRICS} has another loss there"
UNCHECKED = "quoted: no metrics.json of the run is left to check it by"
LEAST = "the least of all evaluations, untrained weights among them"
SWALLOWED = "what failed was passed over, and the launcher's exit code was 0"
# of rounding in another place; reports hold every digit
SAME = 1e-6


def read_experiments(path: Path, row: Row) -> Iterator[Row]:
    """experiment_summary.json: how many runs were asked for and done; one without its results is void."""
    found = read_object(path, "experiments", "num_completed", "num_requested")
    row = replace(row, layout="blueberry").at("final")
    listed = found["experiments"]
    if not isinstance(listed, list):
        raise DamageError(f"{path}: experiments must be a list of names; {AGAIN}")
    names = [item if isinstance(item, str) else item["experiment_name"] for item in listed]
    done, asked = found["num_completed"], found["num_requested"]
    miscounted = "" if done == len(names) else f"the file lists {len(names)}, and says {done}"
    lost = (SWALLOWED,) if done != asked else ()
    yield row.having("experiments_completed", done, *lost, gone=miscounted)
    yield row.having("experiments_requested", asked)
    for name in names:
        if not find_stored(path.parent / name / METRICS):
            here = replace(row, run=f"{row.run}/{name}", cell=name)
            yield here.lacking("val_loss", f"listed as completed, and no {METRICS} is beside the list")


def read_summary_report(path: Path, row: Row) -> Iterator[Row]:
    """summary_report.json: the least loss of each temperature and schedule, and two runs' final numbers."""
    found = read_object(path, "experiment_overview", "best_results")
    names = found["experiment_overview"].get("experiment_names") or []
    temperatures = found.get("temperature_analysis") or {}
    tested, losses = (temperatures.get(key) or [] for key in ("tested_temperatures", "losses"))
    if len(tested) != len(losses):
        raise DamageError(f"{path}: {len(losses)} losses of {len(tested)} tested_temperatures; {AGAIN}")
    least = {_named(value, names): loss for value, loss in zip(tested, losses, strict=True)}
    least |= (found.get("schedule_analysis") or {}).get("losses") or {}
    for name, loss in least.items():
        yield _Quote(path, row, name, "best", loss).loss
    for best in found["best_results"].values():
        # null where none of its kind was run
        if best:
            quote = _Quote(path, row, best["experiment"], "final", best["final_loss"])
            yield quote.loss
            yield quote.having("val_accuracy", best["final_accuracy"])


def _named(temperature: Any, names: Sequence[str]) -> str:
    """The run at a temperature, which the list of losses does not name."""
    name = f"temp_{temperature}"
    return name if name in names else f"temperature={temperature}"


def read_specialization_report(path: Path, row: Row) -> Iterator[Row]:
    """specialization_report.json: final numbers of each run, its experts' loads and its routing entropy."""
    runs = read_object(path, "per_experiment")["per_experiment"]
    for name, found in runs.items():
        quote = _Quote(path, row, name, "final", found["final_loss"])
        yield quote.loss
        yield quote.having("val_accuracy", found["final_accuracy"])
        loads = found.get("expert_utilization") or {}
        for metric, share in numbered("expert_utilization", loads.get("distribution")):
            yield quote.having(metric, share)
        for key in ("std", "min", "max", "gini"):
            if key in loads:
                yield quote.having(f"expert_utilization_{key}", loads[key])
        entropy = found.get("routing_entropy") or {}
        gone = "" if any(entropy.values()) else NOT_RECORDED
        for key, value in entropy.items():
            yield quote.having(f"routing_entropy_{key}", value, gone)


class _Quote:
    """What a report says of one run; void where the run's own file has another loss at that place."""

    def __init__(self, path: Path, row: Row, name: str, label: str, loss: Any):
        kept = _kept(path.parent, name)
        own = kept.get(label)
        self._row = replace(row, layout="blueberry", run=f"{row.run}/{name}", cell=name).at(label)
        self._flags = (QUOTED if kept else UNCHECKED, *((LEAST,) if label == "best" else ()))
        self.loss = self._row.having("val_loss", loss, *self._flags)
        is_other = own is not None and self.loss.value is not None and abs(loss - own) > SAME * abs(own)
        self._other = OLDER if is_other else ""
        if is_other:
            self.loss = self._row.lacking("val_loss", self._other)

    def having(self, metric: str, value: Any, gone: str = "") -> Row:
        if self._other:
            return self._row.lacking(metric, self._other)
        return self._row.having(metric, value, *self._flags, gone=gone)


def _kept(folder: Path, name: str) -> dict[str, float]:
    """The best and the final loss of a run's own file, beside a report or where it was by default."""
    for place in (folder / name / METRICS, folder / RESULTS / name / METRICS):
        try:
            found = read_document(place) if find_stored(place) else None
            if found is not None:
                return {
                    "final": found["final_metrics"]["val_loss"],
                    "best": min(found["history"]["val_losses"]),
                }
        except (DamageError, AttributeError, KeyError, TypeError, ValueError):
            # its own reader says what is wrong with it
            continue
    return {}
