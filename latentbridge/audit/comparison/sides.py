"""What a person means by a side of a comparison: cells, runs and files by the words that name them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from latentbridge.audit.ablations import over_seeds
from latentbridge.audit.comparison.published import Published, read_file, read_folder
from latentbridge.audit.comparison.runs import Run, our_run
from latentbridge.audit.eval_checks import shorten
from latentbridge.audit.eval_file import is_eval_file
from latentbridge.audit.summary import CellRow
from latentbridge.errors import ConfigError, DamageError
from latentbridge.rundir import RunDir, read_object

FORMS = (
    "name a launch, a run or an archive of ours, a folder of a published system, a cell of one as "
    "FOLDER:CELL, or a file of answers (eval_samples_step_*.jsonl)"
)


@dataclass(frozen=True)
class Side:
    """One cell, or a single run of one.

    name: as a person typed it
    about: the metrics that its launch was made for: those of its spec's `compare`, else early stopping's
    runs: by seed
    """

    name: str
    about: tuple[str, ...]
    runs: Sequence[Run]

    @property
    def places(self) -> set[Path]:
        """Of all its runs."""
        return {place for run in self.runs for place in run.places}

    def cell(self, metrics: Sequence[str]) -> CellRow:
        """Its row over seeds with these metrics."""
        rows = [run.row(number) for number, run in enumerate(self.runs)]
        return CellRow(name=self.name, runs=rows, metrics={m: over_seeds(rows, m) for m in metrics})


@dataclass(frozen=True)
class Pair:
    """A side, the baseline that it is compared with, and what both could be compared by."""

    side: Side
    baseline: Side

    @cached_property
    def matched(self) -> list[tuple[Run, Run]]:
        """Runs of one seed, the side's first; two single runs of whatever seed."""
        return list(zip(self.side.runs, self.baseline.runs, strict=True))

    @property
    def seeds(self) -> list[int | None]:
        """Of each matched pair; None where it is not one, or not told."""
        return [mine.seed if mine.seed == its.seed else None for mine, its in self.matched]

    @property
    def runs(self) -> list[Run]:
        """Of both, the side's first."""
        return [*self.side.runs, *self.baseline.runs]

    @property
    def has_answers(self) -> bool:
        """Whether there is a file of answers of every run."""
        return all(run.answers for run in self.runs)

    @property
    def is_ours(self) -> bool:
        """Whether nothing in it is of a published system."""
        return not any(run.is_published for run in self.runs)


def pair_up(texts: Sequence[str]) -> list[Pair]:
    """Every later side with the first; launches of several cells are paired by the names of these."""
    if len(texts) < 2:
        raise ConfigError(f"a comparison takes two sides or more, the baseline first; {FORMS}")
    baseline, *others = _told_apart(texts, [_read(text) for text in texts])
    pairs = []
    for text, sides in zip(texts[1:], others, strict=True):
        if len(sides) == len(baseline) == 1:
            pairs.append(Pair(*sides.values(), *baseline.values()))
            continue
        if differing := sorted(sides.keys() ^ baseline.keys()):
            raise ConfigError(
                f"{text} and {texts[0]} do not have the same cells: only one of them has "
                f"{shorten(differing)}. Name one cell of each: FOLDER:CELL"
            )
        pairs += [Pair(side, baseline[name]) for name, side in sides.items()]
    return pairs


def _told_apart(texts: Sequence[str], read: Sequence[dict[str, Side]]) -> Iterator[dict[str, Side]]:
    """The sides as they were read; of runs of one name in two places, the name says where."""
    places: dict[str, set[Path]] = {}
    for run in (run for sides in read for side in sides.values() for run in side.runs):
        places.setdefault(run.name, set()).add(run.place)
    for text, sides in zip(texts, read, strict=True):
        for cell, side in sides.items():
            runs = [
                run if len(places[run.name]) == 1 else replace(run, name=f"{run.name} of {text}")
                for run in side.runs
            ]
            sides[cell] = replace(side, runs=runs)
        yield sides


def _read(text: str) -> dict[str, Side]:
    """Sides by the name of their cell."""
    path = Path(text).absolute()
    if path.is_dir():
        return _read_folder(path, text.rstrip("/"))
    if path.is_file():
        if not is_eval_file(path.name):
            raise ConfigError(
                f"{text}: no file of answers, which are called eval_samples_step_LABEL.jsonl; {FORMS}"
            )
        run = read_file(path, text)
        return {run.cell: Side(text, (), [run])}
    parts = text.split(":")
    # either may hold colons too
    cuts = ((":".join(parts[:cut]), ":".join(parts[cut:])) for cut in range(len(parts) - 1, 0, -1))
    folder, cell = next((pair for pair in cuts if pair[0] and Path(pair[0]).is_dir()), ("", ""))
    path = Path(folder).absolute()
    if not folder:
        raise ConfigError(f"{text}: no such launch, run, folder or file; {FORMS}")
    if (path / "plan.json").exists():
        plan = read_object(path / "plan.json", "runs")
        _refuse_unknown(folder, cell, (record["cell"] for record in plan["runs"]))
        return {cell: _our_side(text, path, plan, cell)}
    found = _published(path, folder)
    cell = found.names.get(cell, cell)
    _refuse_unknown(folder, cell, found.cells, found.unreadable)
    return {cell: Side(text, (), found.runs(cell))}


def _refuse_unknown(folder: str, cell: str, known: Iterable[str], unreadable: Sequence[str] = ()) -> None:
    names = list(dict.fromkeys(known))
    if cell in names:
        return
    near = difflib.get_close_matches(cell, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(names)}"
    if several := [name for name in names if name.endswith(f"/{cell}")]:
        hint = f"several end in that name: {', '.join(several)}"
    lost = f" Not all of it could be read: {'; '.join(unreadable)}" if unreadable else ""
    raise ConfigError(f"{folder}: it has no cell '{cell}'; {hint}{lost}")


def _published(path: Path, text: str) -> Published:
    """A folder of runs that are not ours."""
    found = read_folder(path)
    if not found.cells and found.unreadable:
        raise DamageError(f"{text}: nothing of it could be read: {'; '.join(found.unreadable)}")
    if not found.cells:
        what = "neither a launch nor a run (no plan.json, no manifest.json), nor a published system's numbers"
        raise ConfigError(f"{path}: {what}; {FORMS}")
    return found


def _read_folder(path: Path, text: str) -> dict[str, Side]:
    if (path / "plan.json").exists():
        plan = read_object(path / "plan.json", "runs")
        names = dict.fromkeys(record["cell"] for record in plan["runs"])
        return {cell: _our_side(f"{text}:{cell}", path, plan, cell) for cell in names}
    plan = read_object(path.parent / "plan.json", "runs") if (path.parent / "plan.json").exists() else {}
    record = next((each for each in plan.get("runs", []) if Path(each["folder"]).name == path.name), None)
    if record is None:
        # repeated by `reproduce`, with the manifest of the original
        record = RunDir(path).read_manifest() | {"folder": path.name}
    if record.keys() >= {"name", "cell", "seed", "id"}:
        return {record["cell"]: _our_side(text, path.parent, plan | {"runs": [record]}, record["cell"])}
    found = _published(path, text)
    if len(found.cells) == 1:
        return {cell: Side(text, (), found.runs(cell)) for cell in found.cells}
    return {cell: Side(f"{text}:{cell}", (), found.runs(cell)) for cell in found.cells}


def _our_side(name: str, folder: Path, plan: Mapping[str, Any], cell: str) -> Side:
    records = sorted(
        (each for each in plan["runs"] if each["cell"] == cell), key=lambda record: record["seed"]
    )
    runs = [our_run(record, folder) for record in records]
    about = tuple(comparison["metric"] for comparison in plan.get("compare", []))
    if not about:
        about = (runs[0].chosen_by,) if runs[0].chosen_by else ()
    return Side(name, tuple(dict.fromkeys(about)), runs)
