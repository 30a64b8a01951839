"""Finds every file that is known, has it read, and marks what is not independent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from latentbridge.audit.collect import latentwire, mixtures, ours
from latentbridge.audit.collect.rows import Row
from latentbridge.audit.eval_checks import counted
from latentbridge.errors import LatentbridgeError
from latentbridge.rundir import find_stored, open_stored

if TYPE_CHECKING:
    import pandas as pd

Reader = Callable[[Path, Row], Iterator[Row]]
READERS: dict[str, Reader] = {
    "train.log": latentwire.read_train_log,
    "summary.log": latentwire.read_summary_log,
    "ablation_results.json": latentwire.read_ablations,
    "metrics.json": mixtures.read_metrics,
    "training_results.json": mixtures.read_training_results,
    "*_summary.csv": mixtures.read_summary_csv,
    "train_log.jsonl": mixtures.read_train_log,
}
# of a launch of ours: its code, and what is made from its runs' own files
LAUNCH_PARTS = ("code", "cache", "figures", "ledger")


@dataclass
class Collection:
    """What a folder holds; `unreadable` names files that look known and could not be read, and why."""

    rows: list[Row] = field(default_factory=list)
    files: int = 0
    unreadable: list[str] = field(default_factory=list)

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
            flags = dict.fromkeys(flag for row in own for flag in row.flags if flag.startswith("identical"))
            yield from (f"    ! {flag}" for flag in flags)
        gone = sum(row.void is not None for row in self.rows)
        sizes = {"file": self.files, "run": len(by_run), "row": len(self.rows)}
        counts = (counted(range(size), word) for word, size in sizes.items())
        yield f"{', '.join(counts)}, {gone} void; {len(self.unreadable)} unreadable"


def collect(root: Path) -> Collection:
    """Read every known file at or below `root`, in the order of names."""
    found = Collection()
    first_file: dict[tuple[str, bytes], str] = {}
    first_run: dict[tuple[str, str], str] = {}
    for path, reader in _find(root):
        source = str(path.relative_to(root))
        folder = path.parent.relative_to(root).as_posix()
        start = Row(source=source, layout="", run=root.absolute().name if folder == "." else folder)
        try:
            rows = list(reader(path, start))
            # a run that died early has no file yet, and is no copy of another such
            copy_of = (
                first_file.setdefault((path.name, _digest(path)), source) if find_stored(path) else source
            )
        except (LatentbridgeError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, LatentbridgeError) else repr(error)
            found.unreadable.append(reason if str(path) in reason else f"{path}: {reason}")
            continue
        flag = () if copy_of == source else (f"identical file to {copy_of}",)
        found.rows += [replace(row, flags=row.flags + flag + _twin(row, first_run)) for row in rows]
        found.files += 1
    return found


def _twin(row: Row, first_run: dict[tuple[str, str], str]) -> tuple[str, ...]:
    """The run that had the same settings before, in words: another run of them is no other experiment."""
    if row.config is None:
        return ()
    first = first_run.setdefault((row.layout, row.config), row.run)
    return () if first == row.run else (f"identical config to {first}",)


def _digest(path: Path) -> bytes:
    """Of its content: a compressed file is the same as a plain one."""
    with open_stored(find_stored(path) or path) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").digest()


def _find(root: Path) -> Iterator[tuple[Path, Reader]]:
    for name, below, names in os.walk(root, onerror=_refuse):
        folder = Path(name)
        below.sort()
        if ours.is_run(folder):
            below.clear()
            yield folder / "metrics.jsonl", ours.read_run
            continue
        if "plan.json" in names and "spec.yaml" in names:
            below[:] = [part for part in below if part not in LAUNCH_PARTS]
            continue
        for file in sorted(names):
            reader = _reader_of(file)
            if reader:
                yield folder / file, reader


def _refuse(error: OSError) -> None:
    raise error


def _reader_of(name: str, readers: Sequence[str] = tuple(READERS)) -> Reader | None:
    return next((READERS[pattern] for pattern in readers if fnmatch(name, pattern)), None)
