"""Audit of eval_samples_step_*.jsonl: how many answers, how many invalid, how many right, and what is wrong.

summarize_eval_jsonl PATH...            files, run folders or whole archives; no torch, a second for 340 MB
summarize_eval_jsonl --json PATH...     --csv: the same as a table; --strict: every finding is exit code 1

Files that an archive keeps compressed, as NAME.jsonl.gz, are read too.
One line per file, `{path} -> total={n} invalid={i} gold_match={g}`, then what follows from it, indented:
  total       lines that hold a record
  invalid     bridged_extracted is null, empty or "[invalid]"
  gold_match  not invalid, and equal to gold_extracted as text: "2." is not "2", and invalid never matches
  sample      how the first valid answer begins
  !           a finding: lines that are no record, gaps, copies of other files, collapse, echoes, n, no final
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

from latentbridge.audit.eval_checks import counted
from latentbridge.audit.eval_file import EvalFile, audit_file, is_eval_file, label_of
from latentbridge.rundir import walk_folders

# a second process takes 0.05 s to start; so much takes one 0.15 s to read
PARALLEL_BYTES = 32 * 2**20
MAX_PROCESSES = 4


def find_eval_files(path: Path) -> list[Path]:
    """Evaluation files at or below `path`: folder by folder, and in the order of training inside each."""
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    unlisted: list[OSError] = []
    for folder, _, names in walk_folders(path, unlisted.append):
        found += sorted((folder / name for name in names if is_eval_file(name)), key=_step_order)
    # a folder that may not be listed is a finding, as a file that may not be read is
    return found + [Path(error.filename) for error in unlisted]


def _step_order(path: Path) -> tuple[float, str, str]:
    """250 before 1000, words after numbers; "final" comes last."""
    label = label_of(path)
    if label.isdecimal():
        return float(label), label, path.name
    return float("inf"), "\uffff" if label == "final" else label, path.name


def audit_trees(paths: Iterable[Path]) -> Iterator[tuple[Path, list[EvalFile]]]:
    """Audit every evaluation file at or below each path: one folder at a time, with the path it belongs to.

    Files of a folder are held against one another too, and all files against those before them. A path
    without any file comes with an empty list.
    """
    folders: list[tuple[Path, list[Path]]] = []
    for path in paths:
        groups = [list(files) for _, files in groupby(find_eval_files(path), key=lambda file: file.parent)]
        folders += [(path, files) for files in groups or [[]]]
    audited = _audit([file for _, files in folders for file in files])
    first_with: dict[bytes, Path] = {}
    for path, files in folders:
        audits = list(islice(audited, len(files)))
        for audit in audits:
            first = first_with.setdefault(audit.digest, audit.path)
            if audit.total and first != audit.path:
                audit.identical_to = first
        if audits:
            _compare(audits, is_whole=path.is_dir())
        yield path, audits


def _compare(audits: Sequence[EvalFile], is_whole: bool) -> None:
    """Add what the files of one folder say about one another; is_whole: all that it has are here."""
    longest = max(audits, key=lambda audit: audit.total)
    for audit in audits:
        if audit.total < longest.total and not audit.unread:
            fewer = longest.total - audit.total
            audit.problems.append(
                f"{fewer} record{'s' * (fewer > 1)} fewer than {longest.path.name} beside it"
            )
    if is_whole and all(audit.label != "final" for audit in audits):
        audits[-1].problems.append("the last of its folder: a final evaluation is missing")


def _audit(files: Sequence[Path]) -> Iterator[EvalFile]:
    """Each file's audit in their order; by several processes where there is enough to read."""
    processes = min(os.cpu_count() or 1, MAX_PROCESSES, len(files))
    if processes < 2 or sum(map(_size, files)) < PARALLEL_BYTES:
        yield from map(audit_file, files)
        return
    from concurrent.futures import ProcessPoolExecutor

    pool = ProcessPoolExecutor(processes, initializer=_leave_ctrl_c_to_the_parent)
    try:
        yield from pool.map(audit_file, files)
    finally:
        pool.shutdown(cancel_futures=True)


def _size(file: Path) -> int:
    """In bytes; 0 of a link to nothing, which its audit names."""
    return file.stat().st_size if file.exists() else 0


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def main(argv: list[str] | None = None) -> int:
    """Print every path's audit.

    0: sound, 1: a path holds nothing, a file is unread, a line malformed or (--strict) anything is found;
    2: no such path.
    """
    parser = argparse.ArgumentParser(prog="summarize_eval_jsonl", description=__doc__.split("\n", 1)[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="file, run folder or archive")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON list instead of text")
    form.add_argument("--csv", action="store_true", help="print a table, one row per file")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on every finding")
    options = parser.parse_args(argv)
    for path in options.paths:
        if not path.exists():
            parser.error(f"{path}: no such file or folder")

    if isinstance(sys.stdout, io.TextIOWrapper):
        # a folder name may hold bytes that this terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _report(options)
    except BrokenPipeError:  # `| head` has seen enough; the flush at exit must not complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")


def _report(options: argparse.Namespace) -> int:
    seen: list[EvalFile] = []
    records: Counter[Path] = Counter()
    for path, audits in audit_trees(options.paths):
        seen += audits
        records[path] += sum(audit.total for audit in audits)
        if not (options.json or options.csv):
            for audit in audits:
                print(*audit.lines(), sep="\n", flush=True)
    empty = [path for path in dict.fromkeys(options.paths) if not records[path]]
    if options.json:
        print(json.dumps([audit.as_record() for audit in seen], indent=1, ensure_ascii=False), flush=True)
    elif options.csv:
        _print_table(seen)
    elif len(seen) > 1:
        print(*_totals(seen), sep="\n", flush=True)
    for path in empty:
        print(f"{path}: no evaluation record here (eval_samples_step_*.jsonl)", file=sys.stderr)
    is_bad = any(audit.malformed or audit.unread or (options.strict and audit.findings) for audit in seen)
    return int(bool(empty or is_bad))


def _print_table(seen: Sequence[EvalFile]) -> None:
    """One row per file; what is a list in JSON is its count here, or its items in one cell."""
    blank = EvalFile(Path()).as_record()
    writer = csv.DictWriter(sys.stdout, blank, lineterminator="\n")
    writer.writeheader()
    for audit in seen:
        lists = {"malformed": len(audit.malformed), "problems": "; ".join(audit.problems)}
        writer.writerow(audit.as_record() | lists)
    sys.stdout.flush()


def _totals(seen: Sequence[EvalFile]) -> Iterator[str]:
    """All files together; accuracies of different runs are not added up."""
    total, invalid, right = (
        sum(getattr(audit, name) for audit in seen) for name in ("total", "invalid", "gold_match")
    )
    copies = [audit for audit in seen if audit.identical_to]
    damaged = [audit for audit in seen if audit.malformed]
    findings = sum(len(audit.findings) for audit in seen)
    yield f"    all {len(seen)} files: total={total} invalid={invalid} gold_match={right}"
    lengths = Counter(audit.total for audit in seen if not audit.unread)
    if len(lengths) > 1:
        yield "    n differs: " + ", ".join(
            f"{count} of {n} records" for n, count in sorted(lengths.items(), reverse=True)
        )
    lines = sum(len(audit.malformed) for audit in damaged)
    yield (
        f"    {counted(range(findings), 'finding')}: {counted(range(lines), 'malformed line')} in "
        f"{counted(damaged, 'file')}, {counted(copies, 'copy', 'copies')} of another file"
    )
