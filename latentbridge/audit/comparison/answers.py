"""The answers of one evaluation by what was asked, ours and the published translator's alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentbridge.audit.collect.files import AGAIN, at_line, read_records
from latentbridge.audit.eval_checks import INVALID, as_text
from latentbridge.errors import DamageError
from latentbridge.metric import Metric, mean, proportion, void

# a question, its gold answer, and the how manieth of its kind it is: some sets ask one twice
Key = tuple[str, str, int]
# whose answers a metric counts, where the two are not of one name
EXTRACTED = {"source_alone": "source", "target_alone": "target"}
_ALONE = {name: metric for metric, name in EXTRACTED.items()}
_NEEDED = ("question", "gold_extracted")


@dataclass(frozen=True)
class Answers:
    """The records of one file, in its order; lines: where each of them stands."""

    path: Path
    records: dict[Key, dict[str, Any]] = field(default_factory=dict)
    lines: dict[Key, int] = field(default_factory=dict)

    def values(self, metric: str, keys: Iterable[Key]) -> list[float]:
        """A metric of each of these questions; DamageError names the first record that lacks it."""
        return [self._value(metric, key) for key in keys]

    def _value(self, metric: str, key: Key) -> float:
        try:
            return _read(self.records[key], metric)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else f"no number ({error})"
            text = f"no {metric} in this record, {what}, and a mean is of all of them or of none"
            raise at_line(self.path, self.lines[key], DamageError(text)) from None

    def metrics(self) -> dict[str, Metric]:
        """Every mean over these questions; void where a record lacks what it is of."""
        keys = dict.fromkeys(key for record in self.records.values() for key in record)
        names = dict.fromkeys(name for key in keys if (name := _metric_of(key)))
        return {name: self._mean(name) for name in names}

    def _mean(self, metric: str) -> Metric:
        try:
            values = self.values(metric, self.records)
        except DamageError as error:
            return void(str(error))
        if not metric.endswith("_accuracy"):
            return mean(values)
        if all(record["gold_extracted"] in INVALID for record in self.records.values()):
            return void("no record holds a gold answer")
        return proportion(round(sum(values)), len(values))


def is_over_questions(metric: str) -> bool:
    """Whether a metric is a mean over questions."""
    return metric.endswith(("_accuracy", "_nll"))


def read_answers(path: Path) -> Answers:
    """A file of answers, plain or NAME.gz; what is not whole is refused: a part is no evaluation."""
    found, seen = Answers(path), Counter[tuple[str, str]]()
    for number, record in read_records(path):
        if isinstance(record, DamageError):
            raise at_line(path, number, record)
        if lacking := [key for key in _NEEDED if key not in record]:
            text = f"a record without {' and '.join(lacking)}: questions are matched by what they ask"
            raise at_line(path, number, DamageError(text))
        asked = (str(record["question"]), str(as_text(record["gold_extracted"])))
        key = (*asked, seen[asked])
        seen[asked] += 1
        found.records[key], found.lines[key] = record, number
    if not found.records:
        raise DamageError(f"{path}: it holds no record; {AGAIN}")
    return found


def _read(record: dict[str, Any], metric: str) -> float:
    """KeyError, TypeError, ValueError or OverflowError where the record does not tell."""
    if not metric.endswith("_accuracy"):
        return float(record[metric])
    whose = metric.removesuffix("_accuracy")
    if (key := f"{whose}_match") in record:
        if record[key] not in (0, 1):
            raise ValueError(f"{key} is {record[key]!r}; true or false is needed")
        return float(record[key])
    # published records say what was answered, and not whether it is right
    answer = as_text(record[f"{EXTRACTED.get(whose, whose)}_extracted"])
    return float(answer not in INVALID and answer == as_text(record["gold_extracted"]))


def _metric_of(key: str) -> str | None:
    """The metric that a key of a record is read for; None: it is text, or of the question."""
    name, _, kind = key.rpartition("_")
    if kind == "nll":
        return key
    if kind == "match" or (kind == "extracted" and name != "gold"):
        return f"{_ALONE.get(name, name)}_accuracy"
    return None
