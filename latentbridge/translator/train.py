"""The translator as the loop sees it: a bridge to train between two models that never change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.data.language_model import FrozenLM, load_frozen
from latentbridge.data.problems import load_problems
from latentbridge.errors import ConfigError
from latentbridge.job import Run
from latentbridge.metric import Metric
from latentbridge.train import distributed
from latentbridge.train.loop import LossTerm, begin, fit
from latentbridge.train.seeding import seeded_normal
from latentbridge.translator.bridges import build_bridge, embedding_rms
from latentbridge.translator.config import TranslatorConfig
from latentbridge.translator.evaluate import Evaluator
from latentbridge.translator.flops import TranslatorFlops
from latentbridge.translator.layout import TargetInput, refuse_too_long
from latentbridge.translator.objectives import Objectives, Translated
from latentbridge.translator.prompts import Padded, ProblemSets, Prompts
from latentbridge.translator.states import LiveStates, SourceStates, StoredStates, model_key
from latentbridge.translator.warm_start import warm_start


@dataclass(frozen=True)
class Batch:
    """Some problems as both models see them; num_tokens: what the source and the answers have together."""

    indices: Sequence[int]
    source: Padded
    answer: Padded
    num_tokens: int


class Translation:
    """The workload: source states -> bridge -> soft tokens -> answer of the target."""

    def __init__(
        self,
        config: TranslatorConfig,
        run: Run,
        problems: ProblemSets = load_problems,
        models: Callable[[str, torch.dtype, torch.device], FrozenLM] = load_frozen,
    ) -> None:
        """problems, models: where both come from."""
        self.config = config
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        self.source = models(config.source.model, dtype, distributed.device())
        self.target = models(config.target.model, dtype, distributed.device())
        self.prompts = Prompts(config, "train", self.source, self.target, problems)
        held_out = Prompts(config, "eval", self.source, self.target, problems)
        self._refuse_too_long(held_out)
        self.num_examples = len(self.prompts)
        target_rms = embedding_rms(self.target.embedding)
        torch.manual_seed(config.seed)
        self.bridge = build_bridge(config.model, self.source.hidden_size, self.target.hidden_size, target_rms)
        self.model: nn.Module = self.bridge
        self.warm_start = warm_start(self.bridge, config.warm_start) if config.warm_start else None
        self.target_input = TargetInput(config, self.target, self.prompts.target_frame.opening)
        self.objectives = Objectives(config, self.target, self.prompts, self.target_input, target_rms)
        self._flops = TranslatorFlops(config, self.bridge, self.source, self.target, self.prompts)
        self.evaluator = Evaluator(
            config,
            self.source,
            self.target,
            held_out,
            self._states(held_out, run),
            self.target_input,
            self.soft_tokens,
            run,
        )
        self.states = self._states(self.prompts, run)
        if config.cache_source_states:
            # what training needs of the source is on disk now, and its memory buys a larger batch
            self.source.park()

    def _states(self, prompts: Prompts, run: Run) -> SourceStates:
        live = LiveStates(self.source, self.config.source.layer, prompts.source)
        if not self.config.cache_source_states:
            return live
        key = {"model": model_key(self.config.source.model, self.source), "layer": self.config.source.layer}
        return StoredStates(
            live,
            prompts.source,
            run.folder.path.parent / "cache",
            key,
            lambda done, total: run.progress("source states", done, total),
        )

    def _refuse_too_long(self, held_out: Prompts) -> None:
        reply, soft = self.config.eval.max_new_tokens, self.config.model.soft_tokens
        self._refuse_unread_soft_tokens(held_out)
        refuse_too_long(self.source, max(self.prompts.source.lengths), "source: a training prompt")
        refuse_too_long(self.source, max(held_out.source.lengths) + reply, "source: a prompt with its answer")
        opening = len(held_out.target_frame.opening)
        longest = opening + max(held_out.prompt.lengths) + reply
        refuse_too_long(self.target, longest, "target: a prompt with its answer")
        for prompts, answer in ((self.prompts, max(self.prompts.answer.lengths)), (held_out, reply)):
            # the cascade reads a reply of the source where soft tokens would stand
            length = opening + max(soft, reply) + prompts.longest_visible + answer
            refuse_too_long(self.target, length, "target: soft tokens, text and answer")

    def _refuse_unread_soft_tokens(self, held_out: Prompts) -> None:
        if self.config.injection == "prepend":
            return
        shows_text = self.config.prompt_mode == "soft_plus_text"
        places = min(min((p.prompt if shows_text else p.cue).lengths) for p in (self.prompts, held_out))
        if places < self.config.model.soft_tokens:
            raise ConfigError(
                f"injection is adapter and model.soft_tokens {self.config.model.soft_tokens}, but the target "
                f"reads as few as {places} tokens of text to add them to, so the rest would reach nothing; "
                "write fewer soft_tokens, prompt_mode: soft_plus_text, or injection: prepend"
            )

    def load_batch(self, indices: Sequence[int]) -> Batch:
        """Source states and answers of these problems."""
        tables = (self.prompts.source, self.prompts.answer)
        return Batch(
            indices=indices,
            source=self.states.take(indices),
            answer=self.prompts.answer.take(indices, "right"),
            num_tokens=sum(table.lengths[index] for table in tables for index in indices),
        )

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, LossTerm]:
        """The terms that count in this update; see `Objectives`."""
        weights = self.config.losses.weights_at(step)
        lesson, flow = None, None
        if {"flow", "token_alignment"} & set(weights):
            lesson = self.objectives.teacher(batch.indices)
        if not self.bridge.draws_noise:
            soft = model(*batch.source)  # (B, Q, Dt)
        else:
            noise = torch.randn(len(batch.indices), *self.bridge.soft_shape, device=distributed.device())
            if "flow" in weights:
                soft, flow = model(*batch.source, noise, lesson)
            else:
                soft = model(*batch.source, noise)
        with_text = self._with_text(batch.indices, step)
        done = Translated(batch.indices, soft, flow, batch.answer, lesson, with_text)
        return self.objectives(done, weights)

    def _with_text(self, indices: Sequence[int], step: int) -> list[bool] | None:
        """Which rows still show the text, while the curriculum takes it away."""
        steps = self.config.text_curriculum_steps
        if step > steps:
            return None
        share = 1 - (step - 1) / steps
        return (torch.rand(len(indices)) < share).tolist()

    @torch.no_grad()
    def soft_tokens(self, model: nn.Module, source: Padded, indices: Sequence[int]) -> Tensor:
        """Soft tokens (B, Q, Dt) in an evaluation, where a problem's noise is its own in any batch."""
        extra = []
        if self.bridge.draws_noise:
            shape, seed = self.bridge.soft_shape, self.config.seed
            noise = torch.stack([seeded_normal(shape, seed, "evaluate", index) for index in indices])
            extra = [noise.to(distributed.device())]
        soft: Tensor = model(*source, *extra)
        return soft

    def flops(self, batch: Batch, step: int) -> int:
        """See `TranslatorFlops`."""
        return self._flops(batch.indices, step)

    def heaviest(self, count: int) -> Sequence[int]:
        """The problems with the most tokens."""
        tables = (self.prompts.source, self.prompts.prompt, self.prompts.answer)
        totals = [sum(lengths) for lengths in zip(*(table.lengths for table in tables), strict=True)]
        longest = sorted(range(len(totals)), key=totals.__getitem__, reverse=True)
        return [longest[place % len(longest)] for place in range(count)]

    def heaviest_steps(self, steps: int) -> Sequence[int]:
        """The last one, the last with `decode`, and the first, whose rows show the text in a curriculum."""
        found = [steps]
        if self.config.losses.decode.weight:
            found.append(steps - steps % self.config.losses.decode.every)
        if self.config.text_curriculum_steps:
            found.append(1)
        return sorted({step for step in found if self.config.losses.weights_at(step)})

    def evaluate_heaviest(self, model: nn.Module) -> None:
        """See `Evaluator.try_out`."""
        self.evaluator.try_out(model)

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        """See `Evaluator`."""
        return self.evaluator(model, label)


def train(config: TranslatorConfig, run: Run) -> dict[str, Any] | None:
    """Train a bridge; RUN/checkpoints/best/model.safetensors is what it comes to."""
    begin(config, run)
    workload = Translation(config, run)
    summary = fit(workload, config, run)
    if summary is not None and workload.warm_start is not None:
        summary["warm_start"] = workload.warm_start
    return summary
