"""One eval_samples_step_*.jsonl, counted in one pass: answers, invalid ones, right ones, what is wrong."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from latentbridge.audit.eval_checks import INVALID, Checks, as_text, counted, ranges
from latentbridge.metric import Metric, proportion, void
from latentbridge.rundir import NOT_GZIP, open_stored

MODELS = ("bridged", "source", "target")
SAMPLE_LINES, SAMPLE_CHARACTERS = 3, 200
_FILE_NAME = re.compile(r"eval_samples_step_(.+)\.jsonl(?:\.gz)?")
# no line of a file
_UNREAD = b"\0"
_AGAIN = "copy the file again from where it was written"


@dataclass
class Answers:
    """Counts of one model's answers; records without its key are not in n."""

    n: int = 0
    invalid: int = 0
    gold_match: int = 0

    def add(self, answer: object, gold: object) -> bool:
        """Count one answer, and say whether it is one; both as `as_text` gives them."""
        valid = answer not in INVALID
        self.n += 1
        self.invalid += not valid
        self.gold_match += valid and answer == gold
        return valid

    @property
    def accuracy(self) -> Metric:
        """gold_match / n with its Wilson interval; void where there is no answer to count."""
        return proportion(self.gold_match, self.n)


@dataclass
class EvalFile:
    """Counts over one evaluation file; grows with the number of answers, never with their text."""

    path: Path
    total: int = 0
    answers: dict[str, Answers] = field(default_factory=lambda: {model: Answers() for model in MODELS})
    golds: int = 0  # records that hold a gold answer
    malformed: list[int] = field(default_factory=list)  # line numbers, from 1
    unread: str = ""  # why the disk does not give it; empty where it does
    problems: list[str] = field(default_factory=list)
    # the first valid generation, cut; of a file without any, the first generation
    sample: str | None = None
    digest: bytes = b""  # sha256 of the whole content, uncompressed
    identical_to: Path | None = None

    @property
    def invalid(self) -> int:
        """Records whose bridged answer is none; one without the key has none."""
        return self.total - self.answers["bridged"].n + self.answers["bridged"].invalid

    @property
    def gold_match(self) -> int:
        """Records whose bridged answer is the gold one, as text."""
        return self.answers["bridged"].gold_match

    @property
    def accuracy(self) -> Metric:
        """gold_match / total with its Wilson interval; void where the file holds no record, or no gold."""
        return self._of_gold(proportion(self.gold_match, self.total))

    def _of_gold(self, accuracy: Metric) -> Metric:
        return void("no record holds a gold answer") if self.total and not self.golds else accuracy

    @property
    def label(self) -> str:
        """What its name says it is of: an update count, or "final"."""
        return label_of(self.path)

    @property
    def findings(self) -> list[str]:
        """All that is wrong with it, in words."""
        if self.identical_to is None:
            return self.problems
        same = f"byte for byte the same as {self.identical_to}: not an independent sample"
        return [same, *self.problems]

    def as_record(self) -> dict[str, Any]:
        """Plain data, as `--json` and `--csv` print it; an accuracy of null is void."""
        record: dict[str, Any] = {
            "path": str(self.path),
            "label": self.label,
            "total": self.total,
            "invalid": self.invalid,
            "gold_match": self.gold_match,
            "accuracy": self.accuracy.value,
            "low": self.accuracy.low,
            "high": self.accuracy.high,
        }
        for model in ("source", "target"):
            accuracy = self._of_gold(self.answers[model].accuracy)
            record |= {
                f"{model}_n": accuracy.n,
                f"{model}_accuracy": accuracy.value,
                f"{model}_low": accuracy.low,
                f"{model}_high": accuracy.high,
            }
        return record | {
            "malformed": self.malformed,
            "problems": self.problems,
            "identical_to": self.identical_to and str(self.identical_to),
            "sample": self.sample,
        }

    def lines(self) -> Iterator[str]:
        """What people read about this file."""
        counts = f"total={self.total} invalid={self.invalid} gold_match={self.gold_match}"
        yield f"{self.path} -> {'unread' if self.unread else counts}"
        if self.total:
            yield f"    accuracy {', '.join(self._accuracies())} (95 % Wilson, n={self.total})"
        if self.sample is not None:
            yield f"    sample: {self.sample}"
        yield from (f"    ! {finding}" for finding in self.findings)

    def _accuracies(self) -> Iterator[str]:
        yield f"bridged {self.accuracy}"
        for model in ("source", "target"):
            accuracy = self._of_gold(self.answers[model].accuracy)
            if accuracy.n:
                yield f"{model} {accuracy}" + (f" of {accuracy.n}" if accuracy.n < self.total else "")


def label_of(path: Path) -> str:
    """`250` of eval_samples_step_250.jsonl; of any other name, the name."""
    found = _FILE_NAME.fullmatch(path.name)
    return found.group(1) if found else path.name


def is_eval_file(name: str) -> bool:
    """Whether a file of this name holds the answers of an evaluation."""
    return _FILE_NAME.fullmatch(name) is not None


def audit_file(path: Path) -> EvalFile:
    """Count one evaluation file, plain or NAME.gz; one that the disk does not give is a finding."""
    try:
        return _audit_file(path)
    except OSError as error:
        why = f"cannot be read ({error.strerror}); mend the link or the rights, or remove it"
        return EvalFile(path, unread=why, problems=[why])


def _audit_file(path: Path) -> EvalFile:
    """In one pass, holding one line at a time."""
    audit, checks, torn, digest = EvalFile(path), Checks(label_of(path)), "", hashlib.sha256()
    has_valid_sample = False
    with open_stored(path) as file:
        for number, line in enumerate(_lines(file), start=1):
            digest.update(line)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                audit.malformed.append(number)
                torn = _cut_off(line)
                continue
            audit.total += 1
            valid = _count(audit, record)
            checks.add(number, record, valid)
            if audit.sample is None or (valid and not has_valid_sample):
                audit.sample, has_valid_sample = _shorten(record.get("bridged_full")), valid
    audit.digest = digest.digest()
    audit.problems += _name_malformed(audit.malformed, torn)
    audit.problems += checks.problems() if audit.total else ["no record in this file"]
    return audit


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of a file; in place of what gzip cannot read, one that is no record."""
    try:
        yield from file
    except NOT_GZIP:
        yield _UNREAD


def _count(audit: EvalFile, record: dict[str, Any]) -> bool:
    """Count the answers of a record, and say whether the bridged one is valid."""
    gold, valid = as_text(record.get("gold_extracted")), False
    audit.golds += gold not in INVALID
    for model, key in _KEYS:
        if key in record:
            is_answer = audit.answers[model].add(as_text(record[key]), gold)
            valid = valid or (is_answer and model == "bridged")
    return valid


_KEYS = [(model, f"{model}_extracted") for model in MODELS]


def _shorten(text: object) -> str | None:
    if not isinstance(text, str):
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    joined = " / ".join(lines[:SAMPLE_LINES])
    is_cut = len(lines) > SAMPLE_LINES or len(joined) > SAMPLE_CHARACTERS
    return joined[:SAMPLE_CHARACTERS] + (" ..." if is_cut else "")


def _cut_off(line: bytes) -> str:
    """Why a line is not there to its end; empty where it is."""
    if line.endswith(b"\n"):
        return ""
    return "gzip cannot read on" if line == _UNREAD else "the file ends inside it"


def _name_malformed(numbers: list[int], torn: str) -> Iterator[str]:
    whole = numbers[:-1] if torn else numbers
    if whole:
        yield f"{counted(whole, 'line')} not a JSON record: {ranges(whole)}; {_AGAIN}"
    if torn:
        yield f"line {numbers[-1]} is cut off: {torn}; {_AGAIN}"
