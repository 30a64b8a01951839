"""The words of verdicts: one table for summaries, pages, papers and indexes."""

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from latentbridge.audit.verdicts import WORDS, Outcome, Verdict, difference_text, p_text
from latentbridge.metric import Metric, void

PACKAGE = Path(__file__).parents[2] / "latentbridge"
WON = Verdict(
    cell="softk",
    baseline="top1",
    metric="val_nll",
    outcome="won",
    difference=Metric(value=-0.25, n=3, low=-0.375, high=-0.125),
    p=0.01234,
    by="3 pairs",
)
VOID = replace(WON, outcome="void", p=None, by="", difference=void("softk: 1 seed;\n a spread takes 2"))


def test_every_outcome_has_words_of_its_own():
    assert {*WORDS} == {*get_args(Outcome)}
    for column in zip(*WORDS.values(), strict=True):
        assert len(set(column)) == len(WORDS)


def test_a_line_holds_who_against_whom_by_what_and_p():
    assert WON.line == "softk won against top1 (val_nll -0.250 [-0.375, -0.125], p 0.0123)"
    assert VOID.line == "softk void against top1 (val_nll void (softk: 1 seed; a spread takes 2))"
    assert replace(WON, outcome="-", p=None).line.endswith("-0.125])")


def test_a_void_sentence_says_why():
    """It said "too few seeds" whatever was missing."""
    assert VOID.sentence("the baseline") == (
        "It could not be judged against the baseline: softk: 1 seed; a spread takes 2"
    )
    assert WON.sentence("top1") == "It is better than top1, beyond the spread of the seeds"


@pytest.mark.parametrize("verdict", [WON, VOID, replace(WON, chosen=("top1 has the lowest",))])
def test_a_record_gives_the_verdict_again(verdict):
    assert Verdict.from_record(verdict.as_record()) == verdict


def test_no_p_and_no_difference_are_no_zeros():
    assert [p_text(None), p_text(0.00004321)] == ["-", "4.32e-05"]
    assert difference_text(VOID.difference) == "softk: 1 seed; a spread takes 2"


def test_the_words_stand_in_one_file():
    """They stood in five, each free to drift: tied in summaries was "they cannot tell", in papers another."""
    words = re.compile(r"cannot tell|neither better nor worse|not decided")
    files = [path for part in ("audit", "paper") for path in (PACKAGE / part).rglob("*.py")]
    said = {path.name for path in files for text in _strings(path) if words.search(text)}
    assert said - {"eval_checks.py"} == {"verdicts.py"}


def _strings(path: Path) -> list[str]:
    """Texts of a file that are no docstrings."""
    return re.findall(r'(?<!")"([^"\n]+)"(?!")', path.read_text())
