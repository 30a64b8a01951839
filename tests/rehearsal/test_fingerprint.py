from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from latentbridge.rehearsal import fingerprint
from latentbridge.rehearsal.fingerprint import Fingerprint


@pytest.fixture
def looked(monkeypatch) -> list[str]:
    """Parts that were looked at, where a stage is a text of one letter a part."""
    seen: list[str] = []

    def parts(stage: Any, _: Any) -> Iterator[str]:
        for part in stage:
            seen.append(part)
            yield part

    monkeypatch.setattr(fingerprint, "_parts", parts)
    return seen


def of(parts: str) -> Any:
    return Fingerprint(parts, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "same"), [("abc", True), ("abd", False), ("ab", False), ("abcd", False), ("", False)]
)
def test_two_fingerprints_are_equal_where_every_part_is(looked, other: str, same: bool):
    assert (of("abc") == of(other)) is same
    assert (of(other) == of("abc")) is same


def test_nothing_is_looked_at_behind_the_first_difference_nor_twice(looked):
    """An update or an evaluation takes a tenth of a second; most pairs differ before."""
    known = of("abcdef")

    assert known != of("axcdef")
    assert looked == ["a", "a", "b", "x"]
    looked.clear()
    assert known != of("abx")
    assert looked == ["a", "b", "c", "x"]
