"""Launches and archives as papers ask for them: cells by name, means over seeds, verdicts, and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from latentbridge.audit.ablations import judge
from latentbridge.audit.records import CellRecords, Records, read_records
from latentbridge.audit.verdicts import Verdict
from latentbridge.config import did_you_mean, listed
from latentbridge.errors import ConfigError, DamageError
from latentbridge.launch.archive import SUMS, read_sums
from latentbridge.launch.record import find_target
from latentbridge.metric import Metric
from latentbridge.paper.trace import Source
from latentbridge.rundir import find_stored, hash_file
from latentbridge.stamps import unstamped


@dataclass(frozen=True)
class Found:
    """A verdict between two cells; stated: the spec asked for it before the run, and p is corrected."""

    verdict: Verdict
    stated: bool


class LaunchResults:
    """One launch, or the archive of one."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.plan = find_target(folder)[0].plan

    @cached_property
    def records(self) -> Records:
        """All that its runs logged."""
        return read_records(self.folder)

    @cached_property
    def _sums(self) -> dict[str, str]:
        return read_sums(self.folder)[0] if (self.folder / SUMS).exists() else {}

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return {}

    def sources(self, cell: CellRecords, file: str) -> list[Source]:
        """A file of every run of a cell; one that an archive knows by another checksum is refused."""
        found = []
        for run in cell.runs:
            # in an archive it may be there as NAME.gz alone, under whose name the sums have it
            stored = find_stored(self.folder / run.row.name / file)
            name = f"{run.row.name}/{stored.name if stored else file}"
            if name not in self._hashes:
                self._hashes[name] = self._hash(name)
            launch = self.folder.name
            found.append(
                Source(f"{launch}/{run.row.name}", run.row.id, f"{launch}/{name}", self._hashes[name])
            )
        return found

    def _hash(self, name: str) -> str:
        found = hash_file(self.folder / name)
        if self._sums.get(name, found) != found:
            raise DamageError(
                f"{self.folder / name}: changed since it was preserved ({SUMS} has {self._sums[name][:12]}, "
                f"the file {found[:12]}); no number of it may be printed. `latentbridge verify` tells more"
            )
        return found

    @property
    def comment(self) -> str:
        """What the spec says above its first key: what is asked, and what was expected; empty if nothing."""
        spec = self.folder / "spec.yaml"
        lines = spec.read_text(encoding="utf-8").splitlines() if spec.exists() else []
        above = takewhile(lambda line: line.startswith("#"), lines)
        return " ".join(line.removeprefix("#").strip() for line in above)

    @property
    def stated(self) -> Sequence[Verdict]:
        """What the spec asked for before the run, less what could not be decided."""
        return [verdict for verdict in self.records.summary.verdicts if not verdict.is_void]

    def verdict(self, cell: str, baseline: str, metric: str) -> Found:
        """As the spec stated it, else one that nobody announced, with an uncorrected p."""
        for verdict in self.records.summary.verdicts:
            if (verdict.cell, verdict.baseline, verdict.metric) == (cell, baseline, metric):
                return Found(verdict, stated=True)
        asked: dict[str, Any] = {"baseline": baseline, "against": [cell], "metric": metric}
        return Found(judge([asked], self.records.summary.cells)[0], stated=False)


class Results:
    """The launches of one paper; a template names a cell `cell`, or of several launches `launch:cell`.

    A launch has the name of its spec; where two have one name, that of its folder
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.launches: dict[str, LaunchResults] = {}
        often = Counter(unstamped(folder.absolute().name) for folder in folders)
        for folder in map(Path.absolute, folders):
            short = unstamped(folder.name)
            name = short if often[short] == 1 else folder.name
            if name in self.launches:
                raise ConfigError(
                    f"{folder}: a second launch called '{name}'; cells of both would have one name. "
                    "Fill one paper from one of them"
                )
            self.launches[name] = LaunchResults(folder, name)

    def launch(self, name: str | None) -> LaunchResults:
        """By its name; the only one needs none."""
        known = tuple(self.launches)
        if name is None and len(known) == 1:
            return self.launches[known[0]]
        if name in self.launches:
            return self.launches[name]
        if name is None:
            raise ConfigError(f"say which launch; one of {listed(known)}")
        raise ConfigError(f"no launch '{name}'; {did_you_mean(name, known)}Known: {listed(known)}")

    def cell(self, address: str) -> tuple[LaunchResults, CellRecords]:
        """`cell` or `launch:cell`."""
        name, separator, cell = address.rpartition(":")
        launch = self.launch(name if separator else None)
        known = {found.name: found for found in launch.records.cells}
        if cell not in known:
            near = did_you_mean(cell, tuple(known))
            raise ConfigError(f"{launch.name} has no cell '{cell}'; {near}Known: {listed(known)}")
        return launch, known[cell]


def measured(cell: CellRecords, metric: str) -> Metric:
    """Mean over seeds of the final evaluation; one that is not there, or void, cannot be printed."""
    known = cell.row.metrics
    if metric not in known:
        near = did_you_mean(metric, tuple(known))
        raise ConfigError(f"{cell.name} has no metric '{metric}'; {near}Known: {listed(known)}")
    if known[metric].value is None:
        raise ConfigError(
            f"{metric} of {cell.name} is void ({known[metric].void}); finish what is missing, or leave it out"
        )
    return known[metric]
