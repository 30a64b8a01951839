"""Finds every file that is known, has it read, and marks what is not independent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from latentbridge.audit.collect import (
    benches,
    hybrids,
    inference,
    latentwire,
    layer_routing,
    mixtures,
    ours,
    reports,
)
from latentbridge.audit.collect.files import AGAIN
from latentbridge.audit.collect.rows import Row
from latentbridge.audit.eval_checks import counted, shorten
from latentbridge.audit.eval_jsonl import find_eval_files
from latentbridge.errors import ConfigError, DamageError, LatentbridgeError
from latentbridge.rundir import PACKED, find_stored, hash_stored, walk_folders

if TYPE_CHECKING:
    import pandas as pd

# what is wrong with one line costs that line; raised, it costs the file
Reader = Callable[[Path, Row], Iterator[Row | DamageError]]
READERS: dict[str, Reader] = {
    "train.log": latentwire.read_train_log,
    "summary.log": latentwire.read_summary_log,
    "ablation_results.json": latentwire.read_ablations,
    "inference_aggregate.json": inference.read_aggregate,
    "inference_per_sample.jsonl": inference.read_samples,
    "metrics.json": mixtures.read_metrics,
    "experiment_summary.json": reports.read_experiments,
    "summary_report.json": reports.read_summary_report,
    "specialization_report.json": reports.read_specialization_report,
    "architecture_comparison_summary.json": hybrids.read_architectures,
    "lr_ablation*_summary.json": hybrids.read_learning_rates,
    "training_results.json": layer_routing.read_training_results,
    "train_history.json": layer_routing.read_train_history,
    "val_history.json": layer_routing.read_val_history,
    "*_summary.csv": mixtures.read_summary_csv,
    "train_log.jsonl": mixtures.read_train_log,
    "*capacity*.jsonl": benches.read_bench,
    "*pack*.jsonl": benches.read_bench,
    "*moe_layer*.jsonl": benches.read_bench,
}
# what may hold results; of those, what a reader takes from beside its own file, answers, which
# `summarize_eval_jsonl` counts, and what `import` writes beside what it copied
RESULTS = ("*.json", "*.jsonl", "*.csv", "*.log", "*.gz")
READ_ELSEWHERE = ("hparams.json", "eval_samples_step_*", "archive.json")
MOST_NAMED = 5
# of a launch of ours: its code, and what is made from its runs' own files
LAUNCH_PARTS = ("code", "cache", "figures", "ledger")

# flags of what is not independent, which are shown by run
TWIN = "identical"
MOST_REASONS = 8


@dataclass
class Collection:
    """What a folder holds.

    unreadable: files that look known and could not be read, and why;  unknown: what nothing here reads
    """

    rows: list[Row] = field(default_factory=list)
    files: int = 0
    unreadable: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def frame(self) -> pd.DataFrame:
        """The tidy table: one row per run, metric and evaluation."""
        import pandas as pd

        columns = [item.name for item in fields(Row)]
        records = [{**vars(row), "flags": "; ".join(row.flags) or None} for row in self.rows]
        frame = pd.DataFrame(records, columns=columns)
        whole = dict.fromkeys(("seed", "step", "n"), "Int64")
        return frame.astype(whole | dict.fromkeys(("value", "low", "high"), "float64"))

    def lines(self) -> Iterator[str]:
        """What people read: a line per run with what is void and why it may not count, then the totals."""
        by_run: dict[str, list[Row]] = {}
        for row in self.rows:
            by_run.setdefault(row.run, []).append(row)
        for run, own in by_run.items():
            gone = sum(row.void is not None for row in own)
            yield f"{own[0].layout:18} {run}: {len(own)} rows" + (f", {gone} void" if gone else "")
            flags = dict.fromkeys(flag for row in own for flag in row.flags if flag.startswith(TWIN))
            yield from (f"    ! {flag}" for flag in flags)
        yield from self._reasons()
        if self.unknown:
            yield f"of no kind that is read here: {shorten(self.unknown, MOST_NAMED)}"
        gone = sum(row.void is not None for row in self.rows)
        sizes = {"file": self.files, "run": len(by_run), "row": len(self.rows)}
        counts = (counted(range(size), word) for word, size in sizes.items())
        yield f"{', '.join(counts)}, {gone} void; {len(self.unreadable)} unreadable"

    def _reasons(self) -> Iterator[str]:
        """Why rows are void or may mislead, the most common reasons first, each with how many it is of."""
        void = Counter(row.void for row in self.rows if row.void is not None)
        flags = Counter(flag for row in self.rows for flag in row.flags if not flag.startswith(TWIN))
        for mark, counts in (("void:", void), ("!", flags)):
            for reason, count in counts.most_common(MOST_REASONS):
                yield f"    {mark} {reason} ({counted(range(count), 'row')})"
            if len(counts) > MOST_REASONS:
                others = counted(range(len(counts) - MOST_REASONS), "other reason")
                yield f"    {mark} {others}, in the table of --csv"


def collect(root: Path) -> Collection:
    """Read every known file at or below `root`, in the order of names."""
    found = Collection()
    first_file: dict[tuple[str, str], str] = {}
    first_run: dict[tuple[str, str, int | None], str] = {}
    for path, reader in _find(root, found.unreadable):
        source = str(path.relative_to(root))
        if reader is None:
            found.unknown.append(source)
            continue
        folder = path.parent.relative_to(root).as_posix()
        start = Row(source=source, layout="", run=root.absolute().name if folder == "." else folder)
        try:
            read = list(reader(path, start))
            # a run that died early has no file yet, and is no copy of another such
            copy_of = (
                first_file.setdefault((path.name, hash_stored(path)), source) if find_stored(path) else source
            )
        except (LatentbridgeError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            found.unreadable.append(_named(path, error))
            continue
        found.unreadable += [_named(path, item) for item in read if isinstance(item, DamageError)]
        rows = [item for item in read if isinstance(item, Row)]
        if read and not rows:
            continue
        flag = () if copy_of == source else (f"{TWIN} file to {copy_of}",)
        found.rows += [replace(row, flags=row.flags + flag + _twin(row, first_run)) for row in rows]
        found.files += 1
    return found


def _named(path: Path, error: Exception) -> str:
    """What is wrong with a file, with its path."""
    if not isinstance(error, LatentbridgeError):
        return f"{path}: not what a {path.name} holds ({error!r}); {AGAIN}"
    return str(error) if str(path) in str(error) else f"{path}: {error}"


def _twin(row: Row, first_run: dict[tuple[str, str, int | None], str]) -> tuple[str, ...]:
    """The run that had the same settings before, in words: another run of them is no other experiment."""
    if row.config is None:
        return ()
    first = first_run.setdefault((row.layout, row.config, row.seed), row.run)
    return () if first == row.run else (f"{TWIN} config to {first}",)


def _find(root: Path, unlisted: list[str]) -> Iterator[tuple[Path, Reader | None]]:
    """Files and what reads them; None: nothing, though they may hold results."""
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; name one that holds runs, an archive, or many")

    def skip(error: OSError) -> None:
        why = f"cannot be listed ({error.strerror}); mend its rights, or move it"
        unlisted.append(f"{error.filename}: {why}")

    for folder, below, names in walk_folders(root, skip):
        if ours.is_run(folder):
            below.clear()
            yield folder / "metrics.jsonl", ours.read_run
            continue
        if "plan.json" in names and "spec.yaml" in names:
            below[:] = [part for part in below if part not in LAUNCH_PARTS]
            continue
        for file in sorted({name.removesuffix(PACKED) for name in names}):
            reader = _reader_of(file)
            if reader or (_is_any(file, RESULTS) and not _is_any(file, READ_ELSEWHERE)):
                yield folder / file, reader


def _reader_of(name: str) -> Reader | None:
    return next((reader for pattern, reader in READERS.items() if fnmatch(name, pattern)), None)


def _is_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def published(path: Path) -> str:
    """What else to do with a folder of a published system's results, in words; empty of any other folder."""
    readers = {reader for _, reader in _find(path, []) if reader} if path.is_dir() else set()
    if ours.read_run in readers or not (readers or (path.is_dir() and find_eval_files(path))):
        return ""
    return (
        "it holds a published system's results: `latentbridge collect` makes a table of them, "
        "`summarize_eval_jsonl` counts answers, `latentbridge compare` sets runs beside one another, "
        "`latentbridge import` archives them"
    )
