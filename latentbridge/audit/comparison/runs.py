"""A run as a comparison sees it, whoever wrote it: what it measured, what it answered, where it lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from latentbridge.audit.ablations import read_run
from latentbridge.audit.comparison.answers import Answers, read_answers
from latentbridge.audit.records import Evaluation, RunRecords, setting
from latentbridge.audit.summary import RunRow
from latentbridge.launch.archive import SUMS, list_files
from latentbridge.metric import Metric
from latentbridge.rundir import RunDir, find_stored, hash_file, hash_stored


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, ours or a published system's.

    name: as messages call it;  seed: None where its files do not tell
    metrics: its single values, of the final evaluation where there is one; n 0 where nothing tells it
    place: its folder, or the file of answers that is all of it
    answers: the file of answers that is compared
    """

    name: str
    cell: str
    seed: int | None
    metrics: Mapping[str, Metric]
    place: Path
    answers: Path | None = None
    # in training, by step
    evaluations: Sequence[Evaluation] = ()
    # why its numbers are not final: such a run is refused
    unended: str | None = None
    # what of its files could not be read: such a run is refused
    damage: Sequence[str] = ()
    # the metric by which the weights of the final evaluation were chosen
    chosen_by: str | None = None
    # text.json
    text: dict[str, Any] | None = None
    is_published: bool = False
    # equal where the same computation was asked for
    config: str | None = None
    # of a published run, equal where it is but for the seed
    settings: str | None = None
    # files of numbers that hold this run and no other
    logs: Sequence[Path] = ()
    # all files that its numbers were read from
    sources: Sequence[Path] = ()
    # by metric, why its value may mislead
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # by metric, the evaluation that its value is of, where it may be another than the final one
    labels: Mapping[str, str] = field(default_factory=dict)
    # what is wrong with its answers
    findings: Sequence[str] = ()

    @cached_property
    def asked(self) -> Answers:
        """What it was asked, and answered; only of a run that has answers."""
        assert self.answers is not None
        return read_answers(self.answers)

    @cached_property
    def contents(self) -> dict[str, str]:
        """Names of its files of answers and of numbers, by the sha256 of what they hold."""
        files = [*([self.answers] if self.answers else []), *self.logs]
        return {hash_stored(path): path.name for path in reversed(files)}

    def shares(self, other: Run) -> str:
        """A file that both have byte for byte, so that they are one run; empty where there is none."""
        return next((name for digest, name in self.contents.items() if digest in other.contents), "")

    @property
    def places(self) -> set[Path]:
        """All that it is known by, whatever way a person took to it."""
        return {path.resolve() for path in (self.place, self.answers) if path is not None}

    @property
    def changed(self) -> list[str]:
        """What was read of an archive and is not what was preserved there, in words."""
        places = (self.place, *self.place.parents)
        archive = next((place for place in places if (place / SUMS).is_file()), None)
        sums = list_files(archive) if archive else {}
        return [
            f"{path}: changed since it was preserved ({SUMS} has {sums[name][:12]}, the file {found[:12]})"
            for path in dict.fromkeys(self.sources)
            if archive and path.is_relative_to(archive)
            if (name := path.relative_to(archive).as_posix()) in sums
            if (found := hash_file(path)) != sums[name]
        ]

    def lacks(self, metric: str) -> str | None:
        """Why there is no value of a metric; None where there is one."""
        return self.metrics[metric].void if metric in self.metrics else "not measured"

    def value(self, metric: str) -> float:
        """Of a metric that it does not lack."""
        value = self.metrics[metric].value
        assert value is not None
        return value

    def in_training(self, metric: str) -> list[float]:
        """What evaluations in training gave."""
        return [value for found in self.evaluations if (value := found.value(metric)) is not None]

    def row(self, number: int) -> RunRow:
        """As verdicts by seeds take it; number: stands for a seed that is not told."""
        return RunRow(
            name=self.name,
            cell=self.cell,
            seed=number if self.seed is None else self.seed,
            id="",
            state="DONE",
            label="final",
            metrics=dict(self.metrics),
        )


def our_run(record: dict[str, Any], launch_folder: Path) -> Run:
    """One entry of our plan.json with what its folder holds."""
    folder = RunDir(launch_folder / Path(record["folder"]).name)
    row = read_run(record, launch_folder)
    records = RunRecords(row, folder)
    files = (find_stored(path) for path in (folder.metrics_log, folder.eval_samples("final")))
    return Run(
        name=f"{launch_folder.name}/{row.name}",
        cell=row.cell,
        seed=row.seed,
        metrics=row.metrics,
        place=folder.path,
        answers=find_stored(folder.eval_samples("final")),
        evaluations=records.evaluations,
        unended=row.unended,
        chosen_by=setting(row.config, "early_stop", "metric"),
        text=records.text,
        config=f"latentbridge {row.id}",
        sources=[path for path in files if path],
    )


def names_of(runs: Iterable[Run]) -> str:
    """The first of several by name, and how many more."""
    first, *others = runs
    return first.name + (f" (and {len(others)} more)" if others else "")
