"""One face for all problem sets: what to read, what to answer, and how the answer is judged."""

from __future__ import annotations

from collections.abc import Sequence

from latentbridge.data import gsm8k
from latentbridge.data.config import GENERATED_TRAIN_EXAMPLES, ProblemsConfig
from latentbridge.data.problem import Problem, Split, answers_match, extract_answer
from latentbridge.data.word_problems import WordProblems

__all__ = [
    "Problem",
    "Split",
    "answer_text",
    "answers_match",
    "extract_answer",
    "load_problems",
    "prompt_text",
    "target_cue",
]


def load_problems(config: ProblemsConfig, split: Split) -> Sequence[Problem]:
    """The problems of one split; generated ones are made when asked for, so a million cost nothing."""
    count = config.train_examples if split == "train" else config.eval_examples
    if config.name == "gsm8k":
        return gsm8k.load_gsm8k(split, config.few_shot)[:count]
    return WordProblems(split, count or GENERATED_TRAIN_EXAMPLES, config.templates)


def prompt_text(problem: Problem, config: ProblemsConfig) -> str:
    """All that a model reads when it answers from text; always ends in question, newline, `target_cue`."""
    if config.name == "gsm8k":
        return f"{gsm8k.prefix(config.few_shot)}\n\nQ: {problem.question}\n{gsm8k.CUE}"
    return f"{problem.question}\n{target_cue(config)}"


def target_cue(config: ProblemsConfig) -> str:
    """The end of every prompt, which names no question; with soft tokens alone the target reads only this."""
    return gsm8k.CUE if config.name == "gsm8k" else "A: "


def answer_text(problem: Problem, config: ProblemsConfig) -> str:
    """The solution as it continues `prompt_text`: with the space that `Answer:` leaves to it, or without."""
    return f" {problem.answer}" if config.name == "gsm8k" else problem.answer
