"""Model FLOPs of a translator's update: of the bridge, the target, and a source that is read anew."""

from __future__ import annotations

from collections.abc import Sequence

from latentbridge.data.language_model import FrozenLM
from latentbridge.data.prefix import WORTH_SHARING
from latentbridge.train.flops import FORWARD, THROUGH, matrix_size
from latentbridge.translator.bridges import Bridge
from latentbridge.translator.config import TeacherConfig, TranslatorConfig
from latentbridge.translator.prompts import Prompts


class TranslatorFlops:
    """Counts by the lengths of the problems; what all prompts begin with is read once, and costs nothing."""

    def __init__(
        self,
        config: TranslatorConfig,
        bridge: Bridge,
        source: FrozenLM,
        target: FrozenLM,
        prompts: Prompts,
    ) -> None:
        self._config, self._bridge, self._prompts = config, bridge, prompts
        self._source_body = 0 if config.cache_source_states else matrix_size(source.model.base_model)
        self._target_body, self._head = matrix_size(target.model.base_model), int(target.head.weight.numel())
        self._opening = len(prompts.target_frame.opening)

    def __call__(self, indices: Sequence[int], step: int) -> int:
        """Of the forward and backward of these problems in update `step`."""
        weights = self._config.losses.weights_at(step)
        source = [self._prompts.source.lengths[index] for index in indices]
        total = self._source(source) + self._bridge.flops(len(indices), sum(source), "flow" in weights)
        answers = [self._prompts.answer.lengths[index] for index in indices]
        if {"lm", "format", "kl"} & set(weights):
            total += self._behind_soft_tokens(indices, answers, self._share_of_text(step))
        if {"lm", "format"} & set(weights):
            total += THROUGH * self._head * sum(answers)
        if "kl" in weights:
            total += self._kl(indices, answers)
        if "decode" in weights:
            total += self._behind_soft_tokens(indices, answers, 1.0) + THROUGH * self._head * sum(answers)
        if {"flow", "token_alignment"} & set(weights):
            total += self._teacher(indices)
        return total

    def _source(self, lengths: Sequence[int]) -> int:
        if not self._source_body:
            return 0
        shared = _worth_sharing(len(self._prompts.source.shared))
        return FORWARD * self._source_body * (sum(lengths) - shared * len(lengths))

    def _share_of_text(self, step: int) -> float:
        """Of the rows whose target reads the whole prompt; while a curriculum draws them, on average."""
        if self._config.prompt_mode == "soft_plus_text":
            return 1.0
        steps = self._config.text_curriculum_steps
        return 1 - (step - 1) / steps if step <= steps else 0.0

    def _behind_soft_tokens(self, indices: Sequence[int], answers: Sequence[int], share: float) -> int:
        """The target's body over opening, soft tokens, text, and all of the answer but its last token."""
        soft = self._config.model.soft_tokens if self._config.injection == "prepend" else 0
        prompts = sum(self._prompts.prompt.lengths[index] for index in indices)
        cues = self._prompts.cue.lengths[0] * len(indices)
        tokens = len(indices) * (self._opening + soft - 1) + sum(answers)
        return round(THROUGH * self._target_body * (tokens + share * prompts + (1 - share) * cues))

    def _kl(self, indices: Sequence[int], answers: Sequence[int]) -> int:
        """The teacher's forward, and both heads over the answer's first tokens."""
        early = [min(length, self._config.losses.kl.tokens) for length in answers]
        shared = _worth_sharing(len(self._prompts.prompt.shared))
        # a beginning that is read once holds the opening too
        before = -shared if shared else self._opening
        read = sum(self._prompts.prompt.lengths[index] + before - 1 for index in indices) + sum(early)
        return FORWARD * self._target_body * read + (FORWARD + THROUGH) * self._head * sum(early)

    def _teacher(self, indices: Sequence[int]) -> int:
        config = self._config.teacher or TeacherConfig()
        if config.layer == 0:
            return 0
        lengths: list[int] = getattr(self._prompts, config.text).lengths
        read = sum(self._opening + lengths[index] for index in indices)
        return FORWARD * self._target_body * read


def _worth_sharing(shared: int) -> int:
    return shared if shared >= WORTH_SHARING else 0
