"""Prompts, extraction and matching; names of the seed's faults where they have one."""

from __future__ import annotations

import hashlib

import pytest

from latentbridge.config import Origin, Tree, build
from latentbridge.data import gsm8k
from latentbridge.data.config import ProblemsConfig
from latentbridge.data.problems import (
    answer_text,
    answers_match,
    extract_answer,
    load_problems,
    prompt_text,
    target_cue,
)
from latentbridge.errors import ConfigError

EIGHT_SHOT = ProblemsConfig(name="gsm8k", few_shot=8, eval_examples=3)


def test_the_eight_shot_prefix_is_the_seeds_to_the_byte():
    prefix = gsm8k.prefix(8)

    assert gsm8k.example_indices(8) == [5238, 912, 204, 6074, 2253, 2006, 1828, 1143]
    assert len(prefix) == 4249
    assert hashlib.sha256(prefix.encode()).hexdigest() == (
        "12ce8f6693526206b3a2bbdbbab294eb7d6aa649c5ab1017ca66a5f7dbfcc79b"
    )


def test_gsm8k_is_whole_and_in_the_official_order():
    held_out = load_problems(ProblemsConfig(name="gsm8k", eval_examples=1319), "eval")

    assert len(held_out) == 1319
    assert len(load_problems(ProblemsConfig(name="gsm8k"), "train")) == 7473
    assert held_out[0].question.startswith("Janet’s ducks lay 16 eggs per day.")
    assert [p.gold for p in held_out[:3]] == ["18", "3", "70000"]


def test_training_never_sees_a_question_whose_solution_the_prompt_shows():
    train = load_problems(EIGHT_SHOT, "train")

    assert len(train) == 7473 - 8
    assert not {p.index for p in train} & set(gsm8k.example_indices(8))
    assert not any(p.question in gsm8k.prefix(8) for p in train)


@pytest.mark.parametrize("config", [EIGHT_SHOT, ProblemsConfig(eval_examples=3)], ids=lambda c: c.name)
def test_a_prompt_ends_in_its_question_and_the_cue(config):
    for problem in load_problems(config, "eval"):
        prompt = prompt_text(problem, config)

        assert prompt.endswith(f"{problem.question}\n{target_cue(config)}")
        assert answer_text(problem, config).strip() == problem.answer


def test_gold_from_the_exemplar_is_never_taken():
    # the seed read gold off prompt + solution, so every problem's gold was the first exemplar's 12
    problem = load_problems(EIGHT_SHOT, "eval")[1]
    whole = prompt_text(problem, EIGHT_SHOT) + answer_text(problem, EIGHT_SHOT)

    assert extract_answer(whole) == "12"
    assert problem.gold == "3"


def test_invalid_never_equals_invalid():
    assert not answers_match(extract_answer("no marker"), extract_answer("none here either"))
    assert not answers_match(None, "7")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4+5=9 #### 9", "9"),
        ("#### 1,234", "1234"),
        ("#### -3.5 dollars", "-3.5"),
        ("#### 2.", "2."),
        ("#### 12\n#### 13", "12"),
        ("####12", None),
        ("####  12", None),
        ("#### twelve", None),
        ("the answer is 12", None),
    ],
)
def test_an_answer_is_the_first_number_after_the_marker_and_one_space(text, number):
    assert extract_answer(text) == number


def test_the_record_with_a_trailing_dot_does_not_match():
    # one of the seed's 29,400 records: `2.` against `2` is a miss, as published
    assert not answers_match(extract_answer("#### 2."), "2")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"few_shot": 8}, "few_shot"),
        ({"name": "gsm8k", "templates": "one_step"}, "templates"),
        ({"name": "gsm8k", "eval_examples": 1320}, "eval_examples"),
        ({"name": "gsm8k", "few_shot": 8, "train_examples": 7466}, "train_examples"),
    ],
)
def test_impossible_problem_sets_are_refused(values, word):
    with pytest.raises(ConfigError, match=word):
        build(ProblemsConfig, Tree(values, {(): Origin("some.yaml", 1)}))
