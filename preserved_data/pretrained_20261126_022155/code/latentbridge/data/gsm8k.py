"""GSM8K (Cobbe et al. 2021), bundled, with the seed's 8-shot prompt."""

from __future__ import annotations

import gzip
import json
import random
from functools import cache

from latentbridge.data.assets import ASSETS
from latentbridge.data.config import GSM8K_SIZES
from latentbridge.data.problem import Problem, Split, extract_answer
from latentbridge.errors import RunError

# wording and sampling seed of the published 8-shot runs, kept to the byte so that scores compare with theirs
_HEADER = "Answer the following questions step by step and end with '#### <number>'."
_EXAMPLES_SEED = 42
CUE = "A: Let's think step by step.\n\nAnswer:"


def load_gsm8k(split: Split, few_shot: int) -> list[Problem]:
    """Every problem of a split in the original order, less those the prompt itself gives away."""
    shown = example_indices(few_shot) if split == "train" else []
    return [problem for problem in _read(split) if problem.index not in shown]


def example_indices(few_shot: int) -> list[int]:
    """Which training problems serve as worked examples, in the order they are shown."""
    return random.Random(_EXAMPLES_SEED).sample(range(GSM8K_SIZES["train"]), few_shot)


@cache
def prefix(few_shot: int) -> str:
    """What stands before the first character of `Q: `: the header line and the worked examples."""
    train = _read("train")
    parts = [_HEADER]
    for index in example_indices(few_shot):
        reasoning, final = train[index].answer.rsplit("####", 1)
        parts.append(f"Q: {train[index].question}\nA: {reasoning.strip()}\n#### {final.strip()}")
    return "\n\n".join(parts)


@cache
def _read(split: Split) -> tuple[Problem, ...]:
    path = ASSETS / "gsm8k" / ("train.jsonl.gz" if split == "train" else "test.jsonl.gz")
    problems = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for index, line in enumerate(file):
            row = json.loads(line)
            gold = extract_answer(row["answer"])
            if gold is None:
                raise RunError(
                    f"{path}:{index + 1}: the solution has no '#### number'; reinstall the package"
                )
            problems.append(Problem(index, row["question"], row["answer"], gold))
    return tuple(problems)
