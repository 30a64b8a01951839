"""What a launch folder says it is: the read side of plan.json."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from latentbridge.errors import ConfigError
from latentbridge.launch.cluster import Cluster, Resources
from latentbridge.launch.spec import Retry
from latentbridge.rundir import RunDir, read_json

PLAN = "plan.json"


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


@dataclass(frozen=True)
class Launch:
    """One launch folder; its files are read when asked for."""

    path: Path

    @cached_property
    def plan(self) -> dict[str, Any]:
        """plan.json, whole."""
        if not (self.path / PLAN).exists():
            raise ConfigError(f"{self.path}: not a launch folder (it has no {PLAN}); name one of runs/")
        return dict(read_json(self.path / PLAN))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def code(self) -> Path:
        """The copy of the code that its runs execute."""
        return self.path / "code"

    @cached_property
    def cluster(self) -> Cluster:
        return Cluster.model_validate(self.plan["cluster"])

    @cached_property
    def retry(self) -> Retry:
        return Retry.model_validate(self.plan["retry"])

    @cached_property
    def runs(self) -> dict[str, PlannedRun]:
        """Every planned run by name, in the order of the spec."""
        return {record["name"]: self._run(record) for record in self.plan["runs"]}

    def _run(self, record: dict[str, Any]) -> PlannedRun:
        return PlannedRun(
            name=record["name"],
            cell=record["cell"],
            id=record["id"],
            seed=record["seed"],
            job=self.plan["job"],
            needs=tuple(record["needs"]),
            resources=Resources.model_validate(record["resources"]),
            folder=RunDir(self.path / record["name"]),
        )
