"""Runs of the published systems, as a comparison sees them: `collect` reads their numbers, this sorts them.

A run is a folder with a log or with answers, or a line of a table. Runs whose paths differ in stamps and
seeds alone are a cell. It is called what `collect` calls it, or by the last part of its path, or by all of
it: whatever first tells it from the others.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latentbridge.audit.collect import ours
from latentbridge.audit.collect.rows import SEED_IN_NAME, Row
from latentbridge.audit.collect.table import TWIN, collect
from latentbridge.audit.comparison.answers import read_answers
from latentbridge.audit.comparison.runs import Run
from latentbridge.audit.eval_file import audit_file, is_eval_file, label_of
from latentbridge.audit.eval_jsonl import find_eval_files
from latentbridge.audit.records import Evaluation
from latentbridge.errors import DamageError
from latentbridge.metric import Metric, void
from latentbridge.rundir import PACKED, find_stored
from latentbridge.stamps import unstamped

# what the published systems' runs are known by
KNOWN_BY = (
    *("bridged_accuracy", "val_loss", "val_ppl", "ppl", "val_accuracy", "val_perplexity"),
    "best_val_loss",
)
# of evaluations, and of a run as a whole
_WHOLE = ("final", "run")
_CHOSEN = ("best", "peak")
# logs round to three decimals
_ROUNDED = 0.0005 + 1e-9


@dataclass
class _Found:
    """What a folder holds of one run; answers: its files of them, in the order of training."""

    place: Path
    rows: list[Row] = field(default_factory=list)
    answers: list[Path] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not self.answers and all(row.value is None for row in self.rows)


# runs with their seeds, by the name of their cell
_Cells = dict[str, list[tuple[int | None, _Found]]]


@dataclass(frozen=True)
class Published:
    """A folder of a published system, its runs by cell; a run is read when it is asked for.

    names: of cells, by every name that means one alone
    """

    root: Path
    cells: _Cells
    names: dict[str, str]
    unreadable: list[str]

    def runs(self, cell: str) -> list[Run]:
        """Of one cell, by seed."""
        return [self._run(cell, seed, found) for seed, found in self.cells[cell]]

    def _run(self, cell: str, seed: int | None, found: _Found) -> Run:
        own = [row for row in found.rows if self._file(row).parent == found.place]
        rows = own + [row for row in found.rows if self._file(row).parent != found.place]
        damage = self._damage(found)
        values, flags, labels = _values(rows)
        answers = found.answers[-1] if found.answers and not damage else None
        if answers is not None:
            counted = read_answers(answers).metrics()
            _refuse_disagreement(answers, counted, rows)
            values |= counted
            labels |= dict.fromkeys(counted, label_of(answers))
            flags |= {metric: _said_of(answers, metric, rows) for metric in counted}
        return Run(
            name=(Path(self.root.name) / found.place.relative_to(self.root)).as_posix(),
            cell=cell,
            seed=seed,
            metrics=values,
            place=found.place,
            answers=answers,
            evaluations=list(_in_training(rows)),
            damage=damage,
            is_published=True,
            config=next((f"{row.layout} {row.config} {row.seed}" for row in rows if row.config), None),
            settings=next((f"{row.layout} {row.config}" for row in rows if row.config), None),
            logs=list(dict.fromkeys(self._file(row) for row in own if row.value is not None)),
            sources=self._sources(rows, answers),
            flags=flags,
            labels=labels,
            findings=audit_file(answers).findings if answers is not None else (),
        )

    def _sources(self, rows: Sequence[Row], answers: Path | None) -> list[Path]:
        files = [find_stored(self._file(row)) for row in rows]
        return [path for path in dict.fromkeys((*files, answers)) if path]

    def _file(self, row: Row) -> Path:
        return self.root / row.source

    def _damage(self, found: _Found) -> list[str]:
        """What could not be read of a run's folder, or of a table that it stands in."""
        within = [f"{found.place}/", *(f"{self._file(row)}:" for row in found.rows)]
        return [text for text in self.unreadable if text.startswith(tuple(dict.fromkeys(within)))]


def read_folder(root: Path) -> Published:
    """All runs of the published systems at or below a folder; none where it holds only ours, or nothing."""
    collected = collect(root)
    found: dict[Path, _Found] = {}
    for row in collected.rows:
        if row.layout != "latentbridge":
            place = _place(root, row)
            found.setdefault(place, _Found(place)).rows.append(row)
    for path in find_eval_files(root):
        # of a file that is there compressed too, the plain one, as everywhere
        stored = find_stored(path.with_name(path.name.removesuffix(PACKED))) or path
        if path == stored and is_eval_file(path.name) and not _is_ours(root, path.parent):
            found.setdefault(path.parent, _Found(path.parent)).answers.append(path)
    # a suite's own log says nothing of the runs below it, nor a void line of a table of its namesake
    above = {parent for place in found for parent in place.parents}
    known = {run.place.name for run in found.values() if not run.is_empty}
    runs = [
        run
        for run in found.values()
        if not run.is_empty
        or (run.place not in above and (run.place.is_dir() or run.place.name not in known))
    ]
    return Published(root, *_named(_cells(root, runs)), collected.unreadable)


def read_file(path: Path, text: str) -> Run:
    """One file of answers, of whatever evaluation its name says."""
    label = label_of(path)
    return Run(
        name=text,
        cell=label,
        seed=None,
        metrics=read_answers(path).metrics(),
        place=path,
        answers=path,
        is_published=True,
        sources=[path],
        findings=audit_file(path).findings,
    )


def _place(root: Path, row: Row) -> Path:
    """A row's folder; of a line of a table, one that is not there, beside the table."""
    base = (root / row.source).parent
    start = root.name if base == root else base.relative_to(root).as_posix()
    return base / row.run[len(start) :].lstrip("/")


def _is_ours(root: Path, folder: Path) -> bool:
    """Whether answers lie in a run or a launch of ours, whose other files nothing here reads."""
    between = [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]
    return any(ours.is_run(place) or (place / "plan.json").exists() for place in between)


def _cells(root: Path, runs: Sequence[_Found]) -> _Cells:
    """By path without stamps and seeds; runs that this leaves with one seed, by path as it is."""
    grouped: _Cells = {}
    for run in runs:
        told = next((row.seed for row in run.rows if row.seed is not None), None)
        seed, name = _without_seed(run.place.relative_to(root).parts or (root.name,), told)
        grouped.setdefault(name or unstamped(root.name), []).append((seed, run))
    cells: _Cells = {}
    for name, own in grouped.items():
        seeds = [seed for seed, _ in own]
        if len(own) == 1 or (None not in seeds and len(set(seeds)) == len(seeds)):
            cells[name] = sorted(own, key=lambda item: item[0] or 0)
        else:
            cells |= {run.place.relative_to(root).as_posix(): [(seed, run)] for seed, run in own}
    return cells


def _named(cells: _Cells) -> tuple[_Cells, dict[str, str]]:
    """Cells by the first name that means one alone, and all such names."""
    forms: dict[str, dict[str, None]] = {}
    for name, own in cells.items():
        told = dict.fromkeys(row.cell for _, run in own for row in run.rows if row.cell)
        forms[name] = dict.fromkeys((*(told if len(told) == 1 else ()), name.rpartition("/")[2], name))
    uses = Counter(form for own in forms.values() for form in own)
    names = {name: next((form for form in own if uses[form] == 1), name) for name, own in forms.items()}
    means = {form: names[name] for name, own in forms.items() for form in own if uses[form] == 1}
    return {names[name]: own for name, own in cells.items()}, means


def _without_seed(parts: Sequence[str], told: int | None) -> tuple[int | None, str]:
    """The seed, as files or else the name tell it, and the path without it and without stamps."""
    pattern = SEED_IN_NAME
    if told is not None:
        pattern = re.compile(rf"(?:^|[-_])(?:seed[-_=]?|[sS])({told})(?=$|[-_])")
    seed, kept = told, []
    for part in map(unstamped, parts):
        if found := pattern.search(part):
            seed = int(next(filter(None, found.groups())))
            part = (part[: found.start()] + part[found.end() :]).strip("-_")
        if part:
            kept.append(part)
    return seed, "/".join(kept)


def _values(rows: Sequence[Row]) -> tuple[dict[str, Metric], dict[str, list[str]], dict[str, str]]:
    """Single values, flags and evaluations: the final one, else the last; rows: the run's own first."""
    chosen: dict[str, Row] = {}
    flags: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.label in (*_WHOLE, *_CHOSEN):
            is_named = row.label in _WHOLE or row.metric.startswith(row.label)
            name = row.metric if is_named else f"{row.label}_{row.metric}"
            first = chosen.setdefault(name, row)
            if _denies(row, first):
                flags[name].append(f"{row.source} says {row.value:.4g}; {first.source} is compared")
    whole = set(chosen)
    for row in rows:
        if row.metric not in whole and row.label not in _CHOSEN:
            before = chosen.get(row.metric)
            if before is None or (row.step or 0) > (before.step or 0):
                chosen[row.metric] = row
    for name, row in chosen.items():
        flags[name] += [flag for flag in row.flags if not flag.startswith(TWIN)]
        if name not in whole and row.step is not None:
            flags[name].append(f"no final evaluation; step {row.step:,} is compared")
    labels = {name: "final" if name in whole else str(row.label) for name, row in chosen.items()}
    return {name: _metric(row) for name, row in chosen.items()}, flags, labels


def _denies(row: Row, other: Row) -> bool:
    """Whether two files give one value of a run differently, beyond how they round."""
    if row.value is None or other.value is None:
        return False
    return not math.isclose(row.value, other.value, rel_tol=1e-3, abs_tol=_ROUNDED)


def _metric(row: Row) -> Metric:
    if row.void is not None:
        return void(row.void)
    return Metric(value=row.value, n=row.n or 0, low=row.low, high=row.high)


def _in_training(rows: Sequence[Row]) -> Iterator[Evaluation]:
    """By step, without that of untrained weights."""
    steps: dict[int, dict[str, Metric]] = {}
    for row in rows:
        if row.step and row.label == str(row.step):
            steps.setdefault(row.step, {}).setdefault(row.metric, _metric(row))
    yield from (Evaluation(step, steps[step]) for step in sorted(steps))


def _said_of(answers: Path, metric: str, rows: Sequence[Row]) -> list[str]:
    """What to say of a mean over answers: that they are not the final ones, that their log is not trusted."""
    label, said = label_of(answers), []
    if label != "final":
        has_final = any(row.label == "final" and row.value is not None for row in rows)
        what = "the answers of its final evaluation are gone" if has_final else "no final evaluation"
        said.append(f"{what}; step {label} is compared")
    beside = [row for row in rows if (row.label, row.metric) == (label, metric)]
    return said + [f"its log's is void: {row.void}" for row in beside if row.void is not None]


def _refuse_disagreement(answers: Path, counted: dict[str, Metric], rows: Sequence[Row]) -> None:
    """A log and the answers beside it are of one evaluation, or one of the two is of another run."""
    for row in rows:
        found = counted.get(row.metric, void("")).value
        if row.label != label_of(answers) or row.value is None or found is None:
            continue
        if abs(row.value - found) > _ROUNDED:
            raise DamageError(
                f"{answers}: its records give {row.metric} {found:.4f}, {Path(row.source).name} says "
                f"{row.value:.3f}; they are not of one evaluation. Copy both again from where they were "
                "written, or name the file of answers alone"
            )
