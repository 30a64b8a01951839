"""Questions with their worked solutions as token ids; what is scored are the solutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentbridge.data.config import ProblemsConfig
from latentbridge.data.language_model import FrozenLM, pad, to_device, token_ids
from latentbridge.data.problems import Problem, answer_text, prompt_text
from latentbridge.errors import ConfigError


def in_halves(problems: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """First and second half, each question once: generated ones may come again, 41 of 512 with one step."""
    distinct: dict[str, Problem] = {}
    for problem in problems:
        distinct.setdefault(problem.question, problem)
    kept, middle = list(distinct.values()), len(distinct) // 2
    return kept[:middle], kept[middle:]


@dataclass(frozen=True)
class Batch:
    """See `AdaptedModel.forward`; num_tokens: that are read;  answers: how many tokens of each are scored."""

    ids: Tensor
    real: Tensor
    places: Tensor
    targets: Tensor
    num_tokens: int
    answers: list[int]


class Examples:
    """Encoded once: `<bos>` where the tokenizer puts one, question, cue; worked solution, `<eos>`."""

    def __init__(self, lm: FrozenLM, problems: Sequence[Problem], config: ProblemsConfig) -> None:
        self._device = lm.device
        prompts = [prompt_text(problem, config) for problem in problems]
        answers = [answer_text(problem, config) for problem in problems]
        # apart, as they meet when a model answers: no piece may span the border of prompt and answer
        self.prompts = token_ids(lm.tokenizer, prompts, add_bos=True)
        self.answers = token_ids(lm.tokenizer, answers, add_bos=False, add_eos=True)
        self.num_bytes = [len(answer.encode()) for answer in answers]
        self._refuse_too_long(lm)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each, prompt and answer."""
        return [len(prompt) + len(answer) for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    def _refuse_too_long(self, lm: FrozenLM) -> None:
        limit = getattr(lm.model.config, "max_position_embeddings", None)
        longest = max(self.lengths)
        if limit is not None and longest > limit:
            raise ConfigError(
                f"a problem has {longest} tokens with its solution, but frozen.model reads {limit} at most; "
                "take other problems, or another base"
            )

    def take(self, indices: Sequence[int]) -> Batch:
        """Some of them side by side."""
        rows = [self.prompts[index] + self.answers[index] for index in indices]
        # the last token predicts nothing that is scored
        ids, mask = pad([row[:-1] for row in rows], "right")
        width = ids.shape[1]
        places: list[int] = []
        for number, index in enumerate(indices):
            # the one shift of labels: the last token of a prompt predicts the first of its answer
            first = number * width + len(self.prompts[index]) - 1
            places += range(first, first + len(self.answers[index]))
        targets = [token for index in indices for token in self.answers[index]]
        (real,) = mask.flatten().nonzero(as_tuple=True)
        blocks = (ids, real, torch.tensor(places), torch.tensor(targets))
        ids, real, at, next_ones = (to_device(block, self._device) for block in blocks)
        scored = [len(self.answers[index]) for index in indices]
        return Batch(ids, real, at, next_ones, int(mask.sum()), scored)
