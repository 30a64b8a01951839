"""Arithmetic word problems in the form of GSM8K, generated on demand: no file, no end, no overlap of splits.

A problem is a function of (templates, split, index) alone, so any process can make any slice of a million.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, overload

from latentbridge.data.problem import Problem, Split

# fmt: off
_NAMES = (
    "Amir", "Bella", "Carlos", "Daria", "Emil", "Freya", "Gus", "Hana", "Igor", "June", "Kofi", "Lena",
    "Milo", "Nadia", "Omar", "Petra", "Rosa", "Stefan", "Tess", "Ugo", "Viola", "Wes", "Yara", "Zoe",
)
_THINGS = (
    "beads", "bolts", "bricks", "candles", "coins", "cups", "feathers", "figs", "flags", "forks", "kites",
    "lemons", "magnets", "melons", "nails", "pebbles", "pens", "radishes", "ribbons", "rings", "seeds",
    "spoons", "tiles", "tulips",
)
# fmt: on

# one question in sixteen belongs to the evaluation, decided by its text: a split cannot leak into the other
_EVAL_SHARE = 16

Step = tuple[int, str, int]
_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": int.__add__,
    "-": int.__sub__,
    "*": int.__mul__,
    "/": int.__floordiv__,
}


class _Draw:
    """Choices taken in turn from 256 hashed bits, much cheaper than seeding a generator for each problem."""

    def __init__(self, key: str, largest_amount: int, largest_factor: int) -> None:
        self._bits = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=32).digest(), "little")
        self.largest_amount = largest_amount
        self.largest_factor = largest_factor

    def below(self, count: int) -> int:
        self._bits, choice = divmod(self._bits, count)
        return choice

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def amount(self, low: int = 2) -> int:
        return self.between(low, self.largest_amount)

    def factor(self) -> int:
        return self.between(2, self.largest_factor)

    def name(self) -> str:
        return _NAMES[self.below(len(_NAMES))]

    def two_names(self) -> tuple[str, str]:
        first = self.below(len(_NAMES))
        second = (first + 1 + self.below(len(_NAMES) - 1)) % len(_NAMES)
        return _NAMES[first], _NAMES[second]

    def things(self) -> str:
        return _THINGS[self.below(len(_THINGS))]


Template = Callable[[_Draw], tuple[str, Sequence[Step]]]


def _before_and_after_lunch(draw: _Draw) -> tuple[str, Sequence[Step]]:
    who, things, x, y = draw.name(), draw.things(), draw.amount(), draw.amount()
    question = (
        f"{who} sorted {x} {things} before lunch and {y} {things} after lunch. "
        f"How many {things} did {who} sort that day?"
    )
    return question, [(x, "+", y)]


def _crate(draw: _Draw) -> tuple[str, Sequence[Step]]:
    things, x = draw.things(), draw.amount(low=4)
    y = draw.between(2, x - 2)
    question = f"A crate holds {x} {things}. Workers unload {y} of them. How many {things} stay in the crate?"
    return question, [(x, "-", y)]


def _parcels(draw: _Draw) -> tuple[str, Sequence[Step]]:
    who, things, x, y = draw.name(), draw.things(), draw.factor(), draw.factor()
    question = f"{who} ties up {x} parcels of {y} {things} each. How many {things} does {who} need?"
    return question, [(x, "*", y)]


def _shelves(draw: _Draw) -> tuple[str, Sequence[Step]]:
    who, things, each, y = draw.name(), draw.things(), draw.factor(), draw.factor()
    question = (
        f"{who} spreads {each * y} {things} evenly over {y} shelves. How many {things} lie on one shelf?"
    )
    return question, [(each * y, "/", y)]


def _fewer_than(draw: _Draw) -> tuple[str, Sequence[Step]]:
    (who, other), things, x, y = draw.two_names(), draw.things(), draw.amount(), draw.amount()
    question = f"{who} owns {x} {things}, {y} fewer than {other}. How many {things} does {other} own?"
    return question, [(x, "+", y)]


def _change(draw: _Draw) -> tuple[str, Sequence[Step]]:
    who, x = draw.name(), draw.amount(low=4)
    y = draw.between(2, x - 2)
    question = (
        f"{who} pays a bill of {y} dollars with {x} dollars in cash. How many dollars come back to {who}?"
    )
    return question, [(x, "-", y)]


def _times_as_many(draw: _Draw) -> tuple[str, Sequence[Step]]:
    (who, other), things, x, y = draw.two_names(), draw.things(), draw.between(2, 40), draw.between(2, 4)
    question = (
        f"{who} made {x} {things}, {other} {y} times as many. How many {things} did the two make together?"
    )
    return question, [(x, "*", y), (x, "+", x * y)]


def _broken_on_trays(draw: _Draw) -> tuple[str, Sequence[Step]]:
    things, x, y = draw.things(), draw.factor(), draw.factor()
    z = draw.between(2, x * y - 2)
    question = (
        f"A shop receives {x} trays with {y} {things} on every tray, but {z} {things} are broken. "
        f"How many {things} are whole?"
    )
    return question, [(x, "*", y), (x * y, "-", z)]


def _pooled_and_shared(draw: _Draw) -> tuple[str, Sequence[Step]]:
    (who, other), things, each, z = draw.two_names(), draw.things(), draw.factor(), draw.factor()
    x = draw.between(2, each * z - 2)
    y = each * z - x
    question = (
        f"{who} brings {x} {things} and {other} brings {y}. They deal all of them out to {z} children. "
        f"How many {things} does a child get?"
    )
    return question, [(x, "+", y), (x + y, "/", z)]


def _rest_into_jars(draw: _Draw) -> tuple[str, Sequence[Step]]:
    who, things, each, z = draw.name(), draw.things(), draw.factor(), draw.factor()
    y = draw.between(2, 50)
    x = each * z + y
    question = (
        f"Of {x} {things}, {who} gives away {y} and puts the others into {z} jars, the same number in each. "
        f"How many {things} are in a jar?"
    )
    return question, [(x, "-", y), (x - y, "/", z)]


def _delivery(draw: _Draw) -> tuple[str, Sequence[Step]]:
    who, things, x, y, z = draw.name(), draw.things(), draw.factor(), draw.factor(), draw.amount()
    question = (
        f"{who} orders {x} boxes of {things} at {y} dollars a box. Delivery adds {z} dollars. "
        f"What does {who} pay in all?"
    )
    return question, [(x, "*", y), (x * y, "+", z)]


def _two_machines(draw: _Draw) -> tuple[str, Sequence[Step]]:
    things, x, z = draw.things(), draw.between(4, 20), draw.factor()
    y = draw.between(2, x - 2)
    question = (
        f"One machine turns out {x} {things} an hour, an older one {y}. "
        f"How many more {things} does the first make in {z} hours?"
    )
    return question, [(x, "-", y), (x - y, "*", z)]


_ONE_STEP: tuple[Template, ...] = (_before_and_after_lunch, _crate, _parcels, _shelves, _fewer_than, _change)
_TWO_STEP: tuple[Template, ...] = (
    _times_as_many,
    _broken_on_trays,
    _pooled_and_shared,
    _rest_into_jars,
    _delivery,
    _two_machines,
)


class WordProblems(Sequence[Problem]):
    """The generated problems of one split; each is made when it is asked for (about 10 microseconds)."""

    def __init__(self, split: Split, size: int, templates: Literal["all", "one_step"]) -> None:
        self._split: Split = split
        self._size = size
        self._key = f"{templates}/{split}"
        one_step = templates == "one_step"
        self._templates = _ONE_STEP if one_step else _ONE_STEP + _TWO_STEP
        # small numbers are a part of the large ones: whoever learnt `all` knows `one_step`
        self._largest = (20, 6) if one_step else (99, 12)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._size))]
        if not -self._size <= index < self._size:
            raise IndexError(f"problem {index} of {self._size}")
        return self._make(index % self._size)

    def _make(self, index: int) -> Problem:
        attempt = 0
        while True:
            draw = _Draw(f"{self._key}/{index}/{attempt}", *self._largest)
            question, steps = self._templates[draw.below(len(self._templates))](draw)
            if split_of(question) == self._split:
                return Problem(index, question, *_worked(steps))
            attempt += 1


def split_of(question: str) -> Split:
    """The only split a generated question can be in."""
    return "eval" if zlib.crc32(question.encode()) % _EVAL_SHARE == 0 else "train"


def _worked(steps: Sequence[Step]) -> tuple[str, str]:
    """The solution with every equation spelled out, and its result: `48/2=24 48+24=72 #### 72`, `72`."""
    words, result = [], 0
    for left, sign, right in steps:
        result = _OPERATIONS[sign](left, right)
        words.append(f"{left}{sign}{right}={result}")
    return f"{' '.join(words)} #### {result}", str(result)
