"""What a workload with gold answers must prove of its texts, at full size: no model is needed for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from latentbridge.data.config import ProblemsConfig
from latentbridge.data.problems import Problem, Split, answers_match, extract_answer, load_problems
from latentbridge.rehearsal.contract import Caught

# problems of a split whose prompts are read
_SAMPLE = 64
# what stands where no answer was found
_NOT_FOUND = "[invalid]"

# of some problems of a split: all that is read before each is answered
PromptTexts = Callable[[ProblemsConfig, Split, Sequence[Problem]], Sequence[str]]


def refuse_given_answers(configs: Sequence[ProblemsConfig], prompts: PromptTexts) -> str:
    """Gold is the solution's own number and differs; no prompt holds its solution, nor shows other problems.

    configs: of the real cells;  returns what was read, in words
    """
    distinct = list({config.model_dump_json(): config for config in configs}.values())
    for config in distinct:
        for split in ("eval", "train"):
            _refuse_given_answers(config, split, prompts)
    if answers_match(extract_answer(f"#### {_NOT_FOUND}"), _NOT_FOUND) or answers_match(None, None):
        raise Caught("an answer that was not found counts as right where the gold one was not found either")
    counts = sorted({config.few_shot for config in distinct})
    return f"prompts with {' and '.join(map(str, counts))} worked examples hold no solution that is asked for"


def _refuse_given_answers(config: ProblemsConfig, split: Split, prompts: PromptTexts) -> None:
    problems = load_problems(config, split)
    sample = problems[:: -(-len(problems) // _SAMPLE)]
    _refuse_wrong_gold(sample)
    texts = prompts(config, split, sample)
    for problem, text in zip(sample, texts, strict=True):
        for part in _parts(problem.answer):
            if part in text:
                raise Caught(f"the prompt of {split} problem {problem.index} holds its solution: {part!r}")
    # worked examples stand in every prompt; where there are none, no other problem needs to be looked for
    beside = texts[0].replace(sample[0].question, "", 1)
    for problem in problems if config.few_shot else sample:
        if problem.question in beside:
            raise Caught(
                f"{split} problem {problem.index} is a worked example in every prompt, with its answer"
            )


def _refuse_wrong_gold(problems: Sequence[Problem]) -> None:
    for problem in problems:
        if problem.gold != extract_answer(problem.answer):
            raise Caught(
                f"problem {problem.index}: gold is {problem.gold}, but its solution ends in "
                f"{extract_answer(problem.answer)}"
            )
    # two may agree by chance
    if len(problems) > 2 and len({problem.gold for problem in problems}) == 1:
        raise Caught(f"the gold answer of all {len(problems)} problems is {problems[0].gold}")


def _parts(solution: str) -> Iterator[str]:
    """A solution, and its reasoning: prompts may write the last line in another way."""
    yield solution.strip()
    if reasoning := solution.rsplit("####", 1)[0].strip():
        yield reasoning
