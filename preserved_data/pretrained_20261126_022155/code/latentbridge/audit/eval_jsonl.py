"""Audit of eval_samples_step_*.jsonl: how many answers, how many invalid, how many right, and what is wrong.

summarize_eval_jsonl PATH...            files, run folders or whole archives; no torch, a second for 200 MB
summarize_eval_jsonl --json PATH...

One line per file, `{path} -> total={n} invalid={i} gold_match={g}`, then what follows from it, indented:
  total       lines that hold a record
  invalid     bridged_extracted is null, empty or "[invalid]"
  gold_match  not invalid, and equal to gold_extracted as text: "2." is not "2", and invalid never matches
A file with the same bytes as an earlier one names it: the two are one sample, not two.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from latentbridge.audit.eval_checks import Checks, counted, ranges
from latentbridge.metric import Metric, proportion

INVALID = (None, "", "[invalid]")
_FILE_NAME = re.compile(r"eval_samples_step_(.+)\.jsonl")


@dataclass
class EvalFile:
    """Counts over one evaluation file; grows with the number of answers, never with their text."""

    path: Path
    total: int = 0
    invalid: int = 0
    gold_match: int = 0
    malformed: list[int] = field(default_factory=list)  # line numbers, from 1
    problems: list[str] = field(default_factory=list)
    digest: bytes = b""  # sha256 of the whole file
    identical_to: Path | None = None

    @property
    def accuracy(self) -> Metric:
        """gold_match / total with its Wilson interval; void where the file holds no record."""
        return proportion(self.gold_match, self.total)

    def as_record(self) -> dict[str, Any]:
        """Plain data, as `--json` prints it; accuracy null means void."""
        accuracy = self.accuracy
        return {
            "path": str(self.path),
            "total": self.total,
            "invalid": self.invalid,
            "gold_match": self.gold_match,
            "accuracy": accuracy.value,
            "low": accuracy.low,
            "high": accuracy.high,
            "malformed": self.malformed,
            "problems": self.problems,
            "identical_to": self.identical_to and str(self.identical_to),
        }

    def lines(self) -> Iterator[str]:
        """What people read about this file."""
        yield f"{self.path} -> total={self.total} invalid={self.invalid} gold_match={self.gold_match}"
        if self.total:
            yield f"    accuracy {self.accuracy} (95 % Wilson, n={self.total})"
        if self.identical_to:
            yield f"    ! byte for byte the same as {self.identical_to}: not an independent sample"
        yield from (f"    ! {problem}" for problem in self.problems)


def audit_file(path: Path) -> EvalFile:
    """Count one evaluation file in one pass, holding one line at a time."""
    audit, checks, torn, digest = EvalFile(path), Checks(), False, hashlib.sha256()
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                audit.malformed.append(number)
                torn = not line.endswith(b"\n")
                continue
            predicted, gold = record.get("bridged_extracted"), record.get("gold_extracted")
            valid = predicted not in INVALID
            audit.total += 1
            audit.invalid += not valid
            audit.gold_match += valid and predicted == gold
            checks.add(number, record, valid)
    audit.digest = digest.digest()
    audit.problems += _name_malformed(audit.malformed, torn)
    audit.problems += checks.problems() if audit.total else ["no record in this file"]
    return audit


def _name_malformed(numbers: list[int], torn: bool) -> Iterator[str]:
    whole = numbers[:-1] if torn else numbers
    if whole:
        yield f"{counted(whole, 'line')} not a JSON record: {ranges(whole)}"
    if torn:
        yield f"line {numbers[-1]} is cut off: the file ends inside it"


def find_eval_files(path: Path) -> list[Path]:
    """Evaluation files at or below `path`: folder by folder, and in the order of training inside each."""
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    for folder, below, names in os.walk(path, onerror=_refuse):
        below.sort()
        found += sorted((Path(folder, n) for n in names if _FILE_NAME.fullmatch(n)), key=_step_order)
    return found


def _refuse(error: OSError) -> None:
    raise error


def _step_order(path: Path) -> tuple[float, str]:
    """250 before 1000, words after numbers; "final" comes last."""
    found = _FILE_NAME.fullmatch(path.name)
    label = found.group(1) if found else path.name
    if label.isdecimal():
        return float(label), label
    return float("inf"), "\uffff" if label == "final" else label


def audit_tree(path: Path) -> Iterator[EvalFile]:
    """Audit every evaluation file at or below `path`, each folder's files against one another too."""
    for _, files in groupby(find_eval_files(path), key=lambda file: file.parent):
        audits = [audit_file(file) for file in files]
        longest = max(audits, key=lambda audit: audit.total)
        for audit in audits:
            if audit.total < longest.total:
                audit.problems.append(
                    f"{longest.total - audit.total} records fewer than {longest.path.name} beside it"
                )
            yield audit


def main(argv: list[str] | None = None) -> int:
    """Print every path's audit; 0: sound, 1: a path holds nothing or a line is malformed, 2: no such path."""
    parser = argparse.ArgumentParser(prog="summarize_eval_jsonl", description=__doc__.split("\n", 1)[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="file, run folder or archive")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of text")
    options = parser.parse_args(argv)
    for path in options.paths:
        if not path.exists():
            parser.error(f"{path}: no such file or folder")

    if isinstance(sys.stdout, io.TextIOWrapper):
        # a folder name may hold bytes that this terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _report(options.paths, options.json)
    except BrokenPipeError:  # `| head` has seen enough; the flush at exit must not complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")


def _report(paths: list[Path], as_json: bool) -> int:
    code, records = 0, []
    first_with: dict[bytes, Path] = {}
    for path in paths:
        empty = True
        for audit in audit_tree(path):
            empty = empty and not audit.total
            first = first_with.setdefault(audit.digest, audit.path)
            if audit.total and first != audit.path:
                audit.identical_to = first
            code = max(code, int(bool(audit.malformed)))
            records.append(audit.as_record())
            if not as_json:
                print(*audit.lines(), sep="\n", flush=True)
        if empty:
            print(f"{path}: no evaluation record here (eval_samples_step_*.jsonl)", file=sys.stderr)
            code = 1
    if as_json:
        print(json.dumps(records, indent=1, ensure_ascii=False), flush=True)
    return code
