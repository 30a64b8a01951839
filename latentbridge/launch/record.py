"""What a launch folder says it is: the read side of plan.json."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from latentbridge.config import ConfigT
from latentbridge.errors import ConfigError
from latentbridge.launch.cells.best_of import BestOf, resolve, resolved_config
from latentbridge.launch.cluster import Cluster, Resources
from latentbridge.launch.ledger import Ledger
from latentbridge.launch.slurm.limits import Limits
from latentbridge.launch.spec import Notify, Retry
from latentbridge.rundir import RunDir, read_json, read_object, write_atomic

PLAN = "plan.json"
LIMITS = "ledger/limits.json"


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run as the launcher and its worker need to know it."""

    name: str
    cell: str
    id: str
    seed: int
    job: str
    needs: tuple[str, ...]
    resources: Resources
    folder: RunDir
    # settings that wait for the result of other runs, by dotted key
    best_of: dict[str, BestOf]
    # runs of earlier launches that are the same experiment
    twins: tuple[RunDir, ...]


@dataclass(frozen=True)
class Launch:
    """One launch folder; its files are read when asked for."""

    path: Path

    @cached_property
    def plan(self) -> dict[str, Any]:
        """plan.json, whole."""
        if not (self.path / PLAN).exists():
            raise ConfigError(f"{self.path}: not a launch folder (it has no {PLAN}); {_elsewhere(self.path)}")
        return read_object(self.path / PLAN, "runs")

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def owner(self) -> int:
        """Who launched it, and has jobs of it in the queue, by number."""
        return os.stat(self.path / PLAN).st_uid

    @property
    def code(self) -> Path:
        """The copy of the code that its runs execute."""
        return self.path / "code"

    @cached_property
    def cluster(self) -> Cluster:
        return known(Cluster, self.plan["cluster"])

    @cached_property
    def retry(self) -> Retry:
        return known(Retry, self.plan["retry"])

    @cached_property
    def notify(self) -> Notify | None:
        """Who is told of its end; None: nobody."""
        return known(Notify, self.plan["notify"]) if self.plan.get("notify") else None

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.path)

    @property
    def is_slurm(self) -> bool:
        return self.cluster.executor == "slurm"

    @cached_property
    def limits(self) -> Limits | None:
        """What the cluster allowed when this was launched; None without SLURM."""
        file = self.path / LIMITS
        return Limits.from_record(read_json(file)) if file.exists() else None

    @property
    def hang_timeout_s(self) -> float | None:
        """Silence of all ranks that counts as a hang; None: any length is borne."""
        minutes = self.plan["hang_timeout_min"]
        return None if minutes is None else 60.0 * minutes

    @property
    def budget_gpu_hours(self) -> float | None:
        """What all runs together may use; None: no bound."""
        return self.plan["budget_gpu_hours"]  # type: ignore[no-any-return]

    @cached_property
    def runs(self) -> dict[str, PlannedRun]:
        """Every planned run by name, in the order of the spec."""
        return {name: self.run(name) for name in self._records}

    @cached_property
    def _records(self) -> dict[str, dict[str, Any]]:
        return {record["name"]: record for record in self.plan["runs"]}

    @property
    def run_names(self) -> list[str]:
        """Names of all planned runs, in the order of the spec."""
        return list(self._records)

    def run(self, name: str) -> PlannedRun:
        """One planned run; its worker need not build all ten thousand."""
        if name not in self._records:
            near = difflib.get_close_matches(name, self._records, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"{self.path}: it has no run '{name}'{hint}")
        return self._run(self._records[name])

    def _run(self, record: dict[str, Any]) -> PlannedRun:
        return PlannedRun(
            name=record["name"],
            cell=record["cell"],
            id=record["id"],
            seed=record["seed"],
            job=self.plan["job"],
            needs=tuple(record["needs"]),
            resources=known(Resources, record["resources"]),
            folder=RunDir(self.path / record["name"]),
            best_of={key: BestOf.model_validate(value) for key, value in record["best_of"].items()},
            twins=tuple(RunDir(self.path.parent / place) for place in record.get("twins", ())),
        )


def known(kind: type[ConfigT], record: dict[str, Any]) -> ConfigT:
    """A record less what a later version has added: nodes run the code of the launch, whoever writes here."""
    fields = {key: value for key, value in record.items() if key in kind.model_fields}
    if isinstance(fields.get("resources"), dict):
        fields["resources"] = known(Resources, fields["resources"])
    return kind.model_validate(fields)


def settle_config(launch: Launch, run: PlannedRun) -> None:
    """Put the winners' values where a run's config refers to its siblings, all of which are done by now."""
    manifest = run.folder.read_manifest() if run.best_of else {}
    if not run.best_of or "best_of" in manifest:
        return  # a later attempt goes on with what the first was given
    cells: dict[str, list[RunDir]] = {}
    for other in launch.runs.values():
        cells.setdefault(other.cell, []).append(other.folder)
    values, why = resolve(run.best_of, cells)
    write_atomic(run.folder.config, resolved_config(run.folder, values))
    run.folder.write_manifest(manifest | {"best_of": why})


def find_target(path: Path) -> tuple[Launch, list[str]]:
    """What a path on the command line means: a launch with all its runs, or one run of a launch."""
    path = path.absolute()
    if (path / PLAN).exists():
        launch = Launch(path)
        return launch, launch.run_names
    if (path.parent / PLAN).exists():
        launch = Launch(path.parent)
        return launch, [launch.run(path.name).name]
    raise ConfigError(f"{path}: neither a launch folder nor a run in one; {_elsewhere(path)}")


def _elsewhere(path: Path) -> str:
    """What to do with a folder that has no plan."""
    from latentbridge.audit.collect.table import published

    return published(path) or "name runs/LAUNCH or runs/LAUNCH/RUN"
