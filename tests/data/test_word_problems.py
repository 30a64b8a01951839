"""Generated problems: right sums, splits that cannot overlap, and the same problem for the same index."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from latentbridge.data.config import ProblemsConfig
from latentbridge.data.problems import answers_match, extract_answer, load_problems
from latentbridge.data.word_problems import WordProblems, split_of

ALL = ("train", "eval")


def test_every_equation_holds_and_the_last_result_is_the_answer():
    for problem in WordProblems("train", 3000, "all"):
        *equations, marker, final = problem.answer.split(" ")
        for equation in equations:
            left, result = equation.split("=")
            assert eval(left) == int(result), problem.answer
        assert marker == "####"
        assert final == result == problem.gold == extract_answer(problem.answer)


def test_a_solution_uses_only_the_numbers_of_its_question_and_earlier_results():
    for problem in WordProblems("train", 3000, "all"):
        known = set(re.findall(r"\d+", problem.question))
        for left, right, result in re.findall(r"(\d+)[-+*/](\d+)=(\d+)", problem.answer):
            assert {left, right} <= known, problem
            known.add(result)


def test_two_known_problems_read_as_written_here():
    problems = WordProblems("train", 5, "all")

    assert problems[0].question == (
        "Kofi spreads 9 coins evenly over 3 shelves. How many coins lie on one shelf?"
    )
    assert problems[0].answer == "9/3=3 #### 3"
    assert problems[1].answer == "8*2=16 16+58=74 #### 74"


@pytest.mark.parametrize("templates", ["all", "one_step"])
def test_no_evaluation_question_is_in_training_whatever_the_sizes(templates):
    train, held_out = (WordProblems(split, 2000, templates) for split in ALL)

    assert {split_of(p.question) for p in train} == {"train"}
    assert {split_of(p.question) for p in held_out} == {"eval"}


def test_one_step_problems_never_leak_into_training_on_all_templates():
    # the split is a property of the text alone, not of the setting that made it
    assert all(split_of(p.question) == "eval" for p in WordProblems("eval", 1000, "one_step"))


def test_one_step_problems_have_one_equation_and_small_numbers():
    for problem in WordProblems("train", 1000, "one_step"):
        assert problem.answer.count("=") == 1
        assert max(int(n) for n in re.findall(r"\d+", problem.question)) <= 36


def test_any_slice_of_a_million_is_made_on_demand():
    problems = load_problems(ProblemsConfig(), "train")

    assert len(problems) == 1_000_000
    assert problems[999_998:] == [problems[999_998], problems[-1]]
    assert problems[-1].index == 999_999
    with pytest.raises(IndexError):
        problems[1_000_000]


def test_another_process_with_another_hash_seed_makes_the_same_problems():
    code = (
        "from latentbridge.data.word_problems import WordProblems\n"
        "print(WordProblems('eval', 9, 'all')[7].question)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )

    assert other.stdout.strip() == WordProblems("eval", 9, "all")[7].question


def test_answers_vary_so_that_a_constant_cannot_score():
    golds = [p.gold for p in WordProblems("eval", 1024, "all")]

    assert max(golds.count(gold) for gold in set(golds)) < 0.06 * len(golds)


def test_the_gold_answer_is_almost_never_a_number_of_the_question():
    problems = WordProblems("eval", 1024, "all")
    copied = sum(p.gold in re.findall(r"\d+", p.question) for p in problems)

    assert copied < 0.08 * len(problems)
    assert answers_match(problems[0].gold, problems[0].gold)
