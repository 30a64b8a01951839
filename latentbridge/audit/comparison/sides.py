"""What a person means by a side of a comparison, and whether two sides may be compared at all."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentbridge.audit.ablations import over_seeds, read_run
from latentbridge.audit.collect.table import published
from latentbridge.audit.eval_checks import shorten
from latentbridge.audit.records import RunRecords, setting
from latentbridge.audit.summary import CellRow
from latentbridge.errors import ConfigError
from latentbridge.rundir import RunDir, read_object

# splits of a text that metrics are of
EVALUATED = ("validation", "test")
FORMS = "name a launch, a cell as LAUNCH:CELL, a run folder or an archive"


@dataclass(frozen=True)
class Side:
    """One cell, or a single run of one.

    name: as a person typed it
    about: the metrics that its launch was made for: those of its spec's `compare`, else early stopping's
    """

    name: str
    about: tuple[str, ...]
    runs: dict[int, RunRecords]

    @property
    def paths(self) -> set[Path]:
        """Folders of its runs, whatever way a person took to them."""
        return {run.folder.path.resolve() for run in self.runs.values()}

    def cell(self, metrics: Sequence[str]) -> CellRow:
        """Its row over seeds with these metrics."""
        rows = [run.row for run in self.runs.values()]
        return CellRow(name=self.name, runs=rows, metrics={m: over_seeds(rows, m) for m in metrics})


@dataclass(frozen=True)
class Pair:
    """A side, the baseline that it is compared with, and what both could be compared by."""

    side: Side
    baseline: Side

    @property
    def seeds(self) -> list[int]:
        return sorted(self.side.runs)

    @property
    def runs(self) -> list[RunRecords]:
        """Of both, the side's first."""
        return [side.runs[seed] for side in (self.side, self.baseline) for seed in self.seeds]


def read_pairs(texts: Sequence[str]) -> list[Pair]:
    """Every later side with the first; launches of several cells are paired by the names of these."""
    if len(texts) < 2:
        raise ConfigError(f"a comparison takes two sides or more, the baseline first; {FORMS}")
    baseline, *others = (_read(text) for text in texts)
    pairs = []
    for text, sides in zip(texts[1:], others, strict=True):
        if len(sides) == len(baseline) == 1:
            pairs.append(Pair(*sides.values(), *baseline.values()))
            continue
        if differing := sorted(sides.keys() ^ baseline.keys()):
            raise ConfigError(
                f"{text} and {texts[0]} do not have the same cells: only one of them has "
                f"{shorten(differing)}. Name one cell of each: LAUNCH:CELL"
            )
        pairs += [Pair(side, baseline[name]) for name, side in sides.items()]
    _refuse_repeats(pairs)
    for pair in pairs:
        _check(pair)
    return pairs


def _refuse_repeats(pairs: Sequence[Pair]) -> None:
    """A side given twice would count twice in Holm's correction, and take from what others find."""
    seen: dict[Path, str] = {}
    for side in (pair.side for pair in pairs):
        again = next((seen[path] for path in side.paths if path in seen), None)
        if again is not None:
            raise ConfigError(
                f"{side.name} was given before, as {again}, and the correction for several claims would "
                "count it twice; name every side once"
            )
        seen |= dict.fromkeys(side.paths, side.name)


def _read(text: str) -> dict[str, Side]:
    """Sides by the name of their cell."""
    path = Path(text).absolute()
    if path.is_dir():
        return _read_folder(path, text.rstrip("/"))
    folder, _, cell = text.rpartition(":")
    if not folder or not (Path(folder) / "plan.json").exists():
        raise ConfigError(f"{text}: no such launch or run; {(folder and published(Path(folder))) or FORMS}")
    path = Path(folder).absolute()
    plan = read_object(path / "plan.json", "runs")
    names = dict.fromkeys(record["cell"] for record in plan["runs"])
    if cell not in names:
        near = difflib.get_close_matches(cell, names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(names)}"
        raise ConfigError(f"{folder}: it has no cell '{cell}'; {hint}")
    return {cell: _side(text, path, plan, cell)}


def _read_folder(path: Path, text: str) -> dict[str, Side]:
    if (path / "plan.json").exists():
        plan = read_object(path / "plan.json", "runs")
        names = dict.fromkeys(record["cell"] for record in plan["runs"])
        return {cell: _side(f"{text}:{cell}", path, plan, cell) for cell in names}
    plan = read_object(path.parent / "plan.json", "runs") if (path.parent / "plan.json").exists() else {}
    record = next((each for each in plan.get("runs", []) if Path(each["folder"]).name == path.name), None)
    if record is None:
        # repeated by `reproduce`, with the manifest of the original
        record = RunDir(path).read_manifest() | {"folder": path.name}
    if not record.keys() >= {"name", "cell", "seed", "id"}:
        what = "neither a launch nor a run (no plan.json, no manifest.json)"
        raise ConfigError(f"{path}: {what}; {published(path) or FORMS}")
    return {record["cell"]: _side(text, path.parent, plan | {"runs": [record]}, record["cell"])}


def _side(name: str, folder: Path, plan: dict[str, Any], cell: str) -> Side:
    runs = {}
    for record in plan["runs"]:
        if record["cell"] == cell:
            place = RunDir(folder / Path(record["folder"]).name)
            runs[record["seed"]] = RunRecords(read_run(record, folder), place)
    about = tuple(comparison["metric"] for comparison in plan.get("compare", []))
    if not about:
        watched = setting(next(iter(runs.values())).row.config, "early_stop", "metric")
        about = (watched,) if watched else ()
    return Side(name, tuple(dict.fromkeys(about)), runs)


def _check(pair: Pair) -> None:
    """Refuse what cannot be compared: a cell with itself, other seeds, runs without an end, other texts."""
    side, baseline = pair.side, pair.baseline
    if side.paths & baseline.paths:
        raise ConfigError(f"{side.name} is compared with itself; name two cells")
    if differing := side.runs.keys() ^ baseline.runs.keys():
        lacking = [
            f"{one.name} lacks seed {', '.join(map(str, sorted(other.runs.keys() - one.runs.keys())))}"
            for one, other in ((side, baseline), (baseline, side))
            if other.runs.keys() - one.runs.keys()
        ]
        raise ConfigError(
            f"{len(differing)} seeds have no partner: {'; '.join(lacking)}. Means over other seeds do not "
            "compare: add the seed to `seeds` of that spec and launch it again, or compare two run folders"
        )
    ended = [(run, _lacks_end(run)) for run in pair.runs]
    if lines := [f"{run.folder.path.parent.name}/{run.row.name} {why}" for run, why in ended if why]:
        raise ConfigError(
            f"{'; '.join(lines)}. What is left is not averaged: `latentbridge explain` says what a run "
            "waits for, `latentbridge retry` starts a failed one again"
        )
    _check_text(pair)


def _lacks_end(run: RunRecords) -> str | None:
    row = run.row
    if row.state == "DONE" and row.label == "final":
        return None
    found = row.state if row.state != "DONE" else "has no final evaluation"
    return found + (f" ({row.cause})" if row.cause else "")


def _check_text(pair: Pair) -> None:
    """Language models must have been read the same text, as far as its size and its files tell."""
    first, *others = pair.runs
    for run in others:
        for split in EVALUATED:
            sizes, files = (
                [setting(each.text, "splits", split, key) for each in (first, run)]
                for key in ("bytes", "sha256")
            )
            found = None
            if None not in sizes and sizes[0] != sizes[1]:
                found = f"has {sizes[0]:,} bytes, that of {run.row.name} {sizes[1]:,}"
            elif None not in files and files[0] != files[1]:
                found = f"is cut from files of sha256 {_brief(files[0])}, that of {run.row.name} from "
                found += _brief(files[1])
            if found:
                raise ConfigError(
                    f"the {split} text of {first.row.name} {found}: they were read other texts. Launch both "
                    "on one text"
                )


def _brief(digests: Sequence[str]) -> str:
    return " ".join(digest[:12] for digest in digests)


def texts_not_told(pair: Pair) -> list[str]:
    """Runs whose text could not be held against the first's by its content, in words."""
    first, *others = pair.runs
    found = []
    if silent := [run for run in others if (run.text is None) != (first.text is None)]:
        found.append(f"only one of {_both(first, silent)} says what text it was read (text.json)")
    known = [run for run in others if first.text is not None and run.text is not None]
    if alike := [run for run in known if not _tell_files((first.text, run.text))]:
        found.append(
            f"the texts of {_both(first, alike)} are of one size, which is all that is known: an older "
            "text.json does not say which files a split is cut from"
        )
    return found


def _both(first: RunRecords, others: Sequence[RunRecords]) -> str:
    """Two runs by name, and how many more."""
    names = [f"{run.folder.path.parent.name}/{run.row.name}" for run in (first, others[0])]
    return " and ".join(names) + (f" (and {len(others) - 1} more)" if len(others) > 1 else "")


def _tell_files(texts: Sequence[dict[str, Any] | None]) -> bool:
    """Whether the content of what was evaluated is known to be one, by split or as a whole."""
    if all(setting(text, "splits", split, "sha256") for text in texts for split in EVALUATED):
        return True
    # files of runs before their splits told of them
    first, second = (setting(text, "sha256") for text in texts)
    return first is not None and first == second
