"""What can be wrong with records that parse: indices, collapse, echoes, answers unlike their text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from typing import Any

INVALID = (None, "", "[invalid]")
REQUIRED = ("index", "question", "gold_extracted", "bridged_full", "bridged_extracted")
_ANSWER = re.compile(r"#### (\-?[0-9\.\,]+)")
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)")

# one answer this common, and this many times as common as in the gold answers, is a collapsed model
CONSTANT_SHARE, CONSTANT_EXCESS, CONSTANT_MIN_ANSWERS = 0.25, 3.0, 10
# an opening line shorter than this ("Q:") may well be repeated by an honest answer
ECHO_MIN_CHARACTERS = 24


class Checks:
    """Looks at one file's records one by one; keeps numbers and short answers, never the long texts."""

    def __init__(self, label: str) -> None:
        """label: of which evaluation the file's name says that it is."""
        self.label = label
        self.strangers: Counter[str] = Counter()
        self.indices: Counter[int] = Counter()
        self.answers: Counter[str] = Counter()
        self.golds: Counter[str] = Counter()
        self.lacking: Counter[str] = Counter()
        self.bad_index: list[int] = []
        self.echoed: list[int] = []
        self.rewritten: list[int] = []
        self.numeric: list[str] = []
        self.goldless: list[int] = []
        self.as_numbers: list[int] = []

    def add(self, number: int, record: dict[str, Any], valid: bool) -> None:
        """Look at the record of line `number`; valid: it holds an answer."""
        text, question, index = (str(record.get(key)) for key in ("bridged_full", "question", "index"))
        stored = [record.get(key) for key in ("bridged_extracted", "gold_extracted")]
        predicted, gold = (str(as_text(answer)) for answer in stored)
        if any(type(answer) in (int, float) for answer in stored):
            self.as_numbers.append(number)
        if "gold_extracted" in record and as_text(stored[1]) in INVALID:
            self.goldless.append(number)
        self.lacking.update(key for key in REQUIRED if key not in record)
        self.golds[gold] += 1
        if str(record.get("eval_step", self.label)) != self.label:
            self.strangers[str(record["eval_step"])] += 1
        if type(record.get("index")) is int:
            self.indices[record["index"]] += 1
        else:
            self.bad_index.append(number)
        opening = question.split("\n", 1)[0]
        if len(opening) >= ECHO_MIN_CHARACTERS and opening in text:
            self.echoed.append(number)
        if "bridged_full" in record and _extract(text) != (predicted if valid else None):
            self.rewritten.append(number)
        if valid:
            self.answers[predicted] += 1
            if predicted != gold and _same_number(predicted, gold):
                self.numeric.append(f"index {index} ('{predicted}' vs '{gold}')")

    def problems(self) -> Iterator[str]:
        """Every finding in words, the gravest first."""
        for key, count in self.lacking.items():
            yield f"{count} record{'s' * (count > 1)} without the key '{key}'"
        if self.bad_index and "index" not in self.lacking:
            yield f"index is not an integer in line {ranges(self.bad_index)}"
        if self.goldless:
            lines = ranges(self.goldless)
            yield f"{counted(self.goldless, 'record')} without a gold answer, never right: line {lines}"
        if self.as_numbers:
            yield (
                f"{counted(self.as_numbers, 'record')} with answers stored as numbers, compared as text: "
                f"line {ranges(self.as_numbers)}"
            )
        for step, count in self.strangers.items():
            yield f"{count} record{'s' * (count > 1)} of evaluation '{step}', in a file of '{self.label}'"
        repeated = [index for index, count in self.indices.items() if count > 1]
        if repeated:
            yield f"{counted(repeated, 'index', 'indices')} more than once: {ranges(repeated)}"
        gaps = list(_gaps(self.indices))
        if gaps:
            yield f"indices missing: {shorten(gaps)}"
        yield from self._constants()
        if self.echoed:
            yield f"{counted(self.echoed, 'answer')} echoing the prompt: line {ranges(self.echoed)}"
        if self.rewritten:
            yield (
                f"{counted(self.rewritten, 'stored answer')} unlike the first '#### number' of bridged_full: "
                f"line {ranges(self.rewritten)}"
            )
        if self.numeric:
            yield (
                f"{counted(self.numeric, 'answer')} equal as a number, not as text, so not counted: "
                f"{shorten(self.numeric)}"
            )

    def _constants(self) -> Iterator[str]:
        total = self.golds.total()
        gold, count = self.golds.most_common(1)[0]
        if total >= CONSTANT_MIN_ANSWERS and count == total:
            yield f"the gold answer is '{gold}' in every record: this file cannot tell right from wrong"
            return
        if self.answers.total() < CONSTANT_MIN_ANSWERS:
            return
        answer, count = self.answers.most_common(1)[0]
        if count / total >= max(CONSTANT_SHARE, CONSTANT_EXCESS * self.golds[answer] / total):
            own = self.golds[answer]
            yield f"{count} of {total} answers are '{answer}' (gold: {own} of {total}): a collapsed model"


def as_text(answer: object) -> object:
    """An answer as it is compared: a number as its digits, NaN as none."""
    if type(answer) is int:
        return str(answer)
    if not isinstance(answer, float):
        return answer
    if answer.is_integer():
        return str(int(answer))
    return None if math.isnan(answer) else str(answer)


def _extract(text: str) -> str | None:
    found = _ANSWER.search(text)
    # "#### ," is a marker without a number
    return found.group(1).replace(",", "") or None if found else None


def _same_number(first: str, second: str) -> bool:
    return all(_NUMBER.fullmatch(text) for text in (first, second)) and float(first) == float(second)


def _gaps(indices: Iterable[int]) -> Iterator[str]:
    """Runs of absent indices below the highest one, as text; the first index of a file is 0."""
    expected = 0
    for index in sorted(indices):
        if index > expected:
            yield _span(expected, index - 1)
        expected = index + 1


def ranges(numbers: Iterable[int]) -> str:
    """`3, 7-9` for 3 7 8 9."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return shorten([_span(first, last) for first, last in runs])


def counted(items: Sized, one: str, many: str | None = None) -> str:
    """`1 line`, `2 lines`."""
    return f"{len(items)} {one if len(items) == 1 else many or one + 's'}"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def shorten(items: list[str], limit: int = 8) -> str:
    """The first few by name, the others by number."""
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
