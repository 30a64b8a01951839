"""One problem, and how an answer to it is read and judged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "eval"]

# exactly one space, as the seed's published records were scored; a trailing dot stays part of the number
_ANSWER = re.compile(r"#### (-?[0-9.,]+)")


@dataclass(frozen=True)
class Problem:
    """A question, its worked solution ending in `#### N`, and N as text without thousands separators."""

    index: int
    question: str
    answer: str
    gold: str


def extract_answer(text: str) -> str | None:
    """The number after the first `#### `, commas removed and nothing else; None where there is none."""
    found = _ANSWER.search(text)
    return found.group(1).replace(",", "") if found else None


def answers_match(predicted: str | None, gold: str | None) -> bool:
    """Whether two extracted answers are the same text; an answer that was not found matches nothing."""
    return predicted is not None and predicted == gold
