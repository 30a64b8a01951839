"""The named terms of the loss, each from one micro-batch; every term is a mean over all ranks' batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from latentbridge.data.language_model import FrozenLM, to_device
from latentbridge.data.prefix import WORTH_SHARING, Prefix
from latentbridge.data.scoring import PackedAnswers, answer_states, packed_answer_states, token_nll
from latentbridge.train import distributed
from latentbridge.train.loop import LossTerm
from latentbridge.translator.config import LossesConfig, TeacherConfig, TranslatorConfig
from latentbridge.translator.layout import TargetInput
from latentbridge.translator.losses import (
    info_nce_per_row,
    kl_per_token,
    masked_mean,
    squared_error_per_row,
)
from latentbridge.translator.prompts import Padded, Prompts
from latentbridge.translator.teacher import Lesson, Teacher


@dataclass(frozen=True)
class Translated:
    """A micro-batch after the bridge.

    soft: (B, Q, Dt);  flow: (B,) the flow's error, where it was asked for
    answer: ids (B, A);  with_text: rows whose target also reads the whole prompt
    """

    indices: Sequence[int]
    soft: Tensor
    flow: Tensor | None
    answer: Padded
    lesson: Lesson | None
    with_text: Sequence[bool] | None


class Objectives:
    """Makes the loss terms of an update from what the bridge gave."""

    def __init__(
        self,
        config: TranslatorConfig,
        target: FrozenLM,
        prompts: Prompts,
        target_input: TargetInput,
        target_rms: float,
    ) -> None:
        self._config: LossesConfig = config.losses
        self._target, self._prompts, self._target_input = target, prompts, target_input
        self._target_rms = target_rms
        opening = prompts.target_frame.opening
        soft_tokens = config.model.soft_tokens
        self.teacher = Teacher(config.teacher or TeacherConfig(), soft_tokens, target, prompts, opening)
        self._question = Teacher(TeacherConfig(text="question"), soft_tokens, target, prompts, opening)

    def __call__(self, done: Translated, weights: dict[str, float]) -> dict[str, LossTerm]:
        """Terms by name; weights: the names asked for and what each weighs."""
        scored = _Scored(self._target, self._target_input, self._prompts, done)
        makers: dict[str, Callable[[Translated, _Scored], Tensor]] = {
            "lm": self._lm,
            "info_nce": self._info_nce,
            "kl": self._kl,
            "decode": self._decode,
            "format": self._format,
            "prompt_alignment": self._prompt_alignment,
            "token_alignment": self._token_alignment,
            "probe": self._probe,
            "flow": self._flow,
        }
        return {name: LossTerm(makers[name](done, scored), weight) for name, weight in weights.items()}

    def _lm(self, done: Translated, scored: _Scored) -> Tensor:
        """Nats per answer token."""
        return _mean_where(scored.nll, done.answer.mask)

    def _format(self, done: Translated, scored: _Scored) -> Tensor:
        """Nats per token of `####`: the seed counted replies without it, which has no gradient (D11)."""
        marker = self._prompts.marker.take(done.indices, "right").values.bool()
        return _mean_where(scored.nll, marker)

    def _decode(self, done: Translated, _: _Scored) -> Tensor:
        """Nats per answer token where the target reads the whole prompt too."""
        every = _Scored(self._target, self._target_input, self._prompts, done, [True] * len(done.indices))
        return _mean_where(every.nll, done.answer.mask)

    def _kl(self, done: Translated, scored: _Scored) -> Tensor:
        """Against the target that reads the whole prompt as text; nats a row."""
        tokens = self._config.kl.tokens
        ids, mask = (block[:, :tokens] for block in done.answer)
        with torch.no_grad():
            prompt, prefix = self._prompts.prompt, self._prefix
            if prefix is None:
                before = self._target_input(None, prompt.take(done.indices, "left"))
            else:
                own = prompt.take(done.indices, "left", skip=len(prompt.shared))
                before = Padded(self._target.embed(own.values), own.mask)
            states = answer_states(self._target, *before, ids, mask, after=prefix)
        packed = scored.packed
        lengths = [self._prompts.answer.lengths[index] for index in done.indices]
        # which of the packed tokens are early ones, known without asking the device
        early = [place < tokens for length in lengths for place in range(length)]
        chosen = to_device(torch.tensor([at for at, is_early in enumerate(early) if is_early]), states.device)
        teacher = self._target.head(states[packed.rows[chosen], packed.columns[chosen]])
        student = self._target.head(packed.states[chosen])
        return distributed.global_mean(kl_per_token(student, teacher).sum(), len(done.indices))

    @cached_property
    def _prefix(self) -> Prefix | None:
        """The target's opening and what all prompts begin with, read once for the teacher of `kl`."""
        shared = self._prompts.prompt.shared
        opening = torch.tensor(self._prompts.target_frame.opening, dtype=shared.dtype, device=shared.device)
        return Prefix(self._target, torch.cat([opening, shared])) if len(shared) >= WORTH_SHARING else None

    def _info_nce(self, done: Translated, _: _Scored) -> Tensor:
        """Negatives are the other questions of this forward, on all ranks, and some of the training set."""
        config, soft = self._config.info_nce, done.soft
        places = torch.arange(len(soft), device=soft.device)
        rows = to_device(torch.tensor(done.indices), soft.device)
        drawn = torch.randint(len(self._prompts), (config.negatives,))
        targets = distributed.gather_rows(self._mean_embedding(done.indices))  # (ranks * B, Dt)
        owners = distributed.gather_rows(rows)
        if config.negatives:
            targets = torch.cat([targets, self._mean_embedding(drawn.tolist())])
            owners = torch.cat([owners, to_device(drawn, soft.device)])
        own = places + distributed.rank() * len(soft)
        # the same problem drawn twice is no negative of itself
        twice = owners == rows[:, None]
        twice = twice.index_put((places, own), torch.zeros_like(places, dtype=torch.bool))
        return _mean(
            info_nce_per_row(soft.float().mean(dim=1), targets, own, config.temperature, ignore=twice)
        )

    def _mean_embedding(self, indices: Sequence[int]) -> Tensor:
        ids, mask = self._prompts.question.take(indices, "right")
        return masked_mean(self._target.embed(ids), mask)

    def _prompt_alignment(self, done: Translated, _: _Scored) -> Tensor:
        """Mean squared distance to the question's embeddings, place by place, in units of their scale."""
        return _mean(squared_error_per_row(self._in_units(done.soft), *self._question(done.indices)))

    def _token_alignment(self, done: Translated, _: _Scored) -> Tensor:
        """The same to the teacher's vectors."""
        assert done.lesson is not None
        return _mean(squared_error_per_row(self._in_units(done.soft), *done.lesson))

    def _probe(self, done: Translated, _: _Scored) -> Tensor:
        """Squared distance of the mean soft token to the question's mean embedding, in units of its scale."""
        targets = self._in_units(self._mean_embedding(done.indices))
        return _mean((self._in_units(done.soft).mean(dim=1) - targets).square().mean(dim=-1))

    def _flow(self, done: Translated, _: _Scored) -> Tensor:
        """Squared error of the velocity, which the seed detached (D4)."""
        assert done.flow is not None
        return _mean(done.flow)

    def _in_units(self, vectors: Tensor) -> Tensor:
        return vectors.float() / self._target_rms


@dataclass(frozen=True)
class _Scored:
    """The answer behind the soft tokens, read once for all terms that ask for it."""

    target: FrozenLM
    target_input: TargetInput
    prompts: Prompts
    done: Translated
    with_text: Sequence[bool] | None = None

    @cached_property
    def packed(self) -> PackedAnswers:
        """What predicts each answer token."""
        indices, shown = self.done.indices, self.with_text or self.done.with_text
        before = self.target_input(self.done.soft, self.prompts.visible(indices, shown))
        texts = self.prompts.visible_lengths(indices, shown)
        width = self.target_input.length_before_text(self.done.soft)
        return packed_answer_states(
            self.target,
            before.values,
            width,
            texts,
            self.done.answer.values,
            [self.prompts.answer.lengths[index] for index in indices],
        )

    @cached_property
    def nll(self) -> Tensor:
        """(B, A) nats per answer token, 0 where a row has none."""
        packed, ids = self.packed, self.done.answer.values
        found = token_nll(self.target, packed.states, ids[packed.rows, packed.columns])
        return found.new_zeros(ids.shape).index_put((packed.rows, packed.columns), found)


def _mean_where(each: Tensor, mask: Tensor) -> Tensor:
    return distributed.global_mean((each * mask).sum(), mask.sum())


def _mean(per_row: Tensor) -> Tensor:
    return distributed.global_mean(per_row.sum(), len(per_row))
