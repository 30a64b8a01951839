"""One evaluation: the bridge, and in the same units everything it must be told apart from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from latentbridge.data.cache import cached_json
from latentbridge.data.decoding import generate, release
from latentbridge.data.language_model import TOKENS_AT_ONCE, FrozenLM, hidden_states
from latentbridge.data.problems import prompt_text
from latentbridge.data.scoring import answer_nll
from latentbridge.job import Run
from latentbridge.metric import Metric
from latentbridge.rundir import write_atomic
from latentbridge.train import distributed
from latentbridge.translator.config import TranslatorConfig
from latentbridge.translator.inference import Inference
from latentbridge.translator.layout import TargetInput
from latentbridge.translator.metrics import Sample, metrics_of
from latentbridge.translator.prompts import Padded, Prompts, Tokens
from latentbridge.translator.states import SourceStates, digest, model_key

T = TypeVar("T")


class Evaluator:
    """Measures a bridge on the held-out problems, by all ranks together.

    Batches are cut before they are dealt to ranks: a row meets the same neighbours and padding whatever the
    number of ranks, so metrics and answers do not depend on it.
    """

    def __init__(
        self,
        config: TranslatorConfig,
        source: FrozenLM,
        target: FrozenLM,
        prompts: Prompts,
        states: SourceStates,
        target_input: TargetInput,
        soft_tokens: Callable[[nn.Module, Padded, Sequence[int]], Tensor],
        run: Run,
    ) -> None:
        """soft_tokens: (bridge, states, which problems) to vectors (B, Q, Dt)."""
        self._config, self._source, self._target = config, source, target
        self.prompts, self.states, self._run = prompts, states, run
        self._target_input, self._soft_tokens = target_input, soft_tokens
        size, count = config.eval.batch_size, len(prompts)
        self._batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        self._source_key = model_key(config.source.model, source)
        self._target_key = model_key(config.target.model, target)
        self._empty = self._states_of_no_question()
        self.inference = Inference(config, source, target, prompts, target_input, soft_tokens, run)

    def _states_of_no_question(self) -> Padded:
        nothing = replace(self.prompts.problems[0], question="")
        rows = self.prompts.source_frame.whole([prompt_text(nothing, self._config.problems)])
        ids, mask = Tokens(rows, self._source.device).take([0], "right")
        return Padded(hidden_states(self._source, ids, mask, self._config.source.layer), mask)

    @torch.no_grad()
    def __call__(self, bridge: nn.Module, label: str) -> dict[str, Metric]:
        """Metrics, the same on every rank; where answers are generated, rank 0 also writes them."""
        answered = label == "final" or self._config.eval.generate_every_eval
        dealt = list(distributed.deal(self._batches))
        if answered:
            self._have_source_answer([indices for indices, _ in dealt])
        samples: list[Sample] = []
        for number, (indices, is_own) in enumerate(dealt):
            batch = self._samples(bridge, indices, answered)
            samples += batch if is_own else []
            self._run.progress("evaluation", number + 1, len(dealt))
        release(self._source, self._target)
        samples = distributed.gather_in_order(samples)
        if answered and self._run.is_main:
            lines = [json.dumps(sample.as_record(label), ensure_ascii=False) for sample in samples]
            write_atomic(self._run.folder.eval_samples(label), "\n".join(lines) + "\n")
        metrics = metrics_of(samples, self._config.model.soft_tokens, self._config.prompt_mode)
        if label == "final" and self._config.eval.inference_examples:
            metrics |= self.inference(bridge)
        return metrics

    @torch.no_grad()
    def try_out(self, bridge: nn.Module) -> None:
        """One batch as the largest could be: the longest problems, and answers that do not end early."""
        totals = self.prompts.source.lengths
        size = min(self._config.eval.batch_size, len(totals))
        longest = sorted(range(len(totals)), key=totals.__getitem__, reverse=True)[:size]
        soft = self._soft_tokens(bridge, self.states.take(longest), longest)
        generate(
            self._target,
            *self._target_input(soft, self.prompts.visible(longest)),
            self._config.eval.max_new_tokens,
        )
        self._nll(self._target_input(None, self.prompts.prompt.take(longest, "left")), longest)
        release(self._target)

    def _samples(self, bridge: nn.Module, indices: range, answered: bool) -> list[Sample]:
        nll, answers = self._through_bridge(bridge, indices, answered)
        baseline_nll, baseline_answers = self._without_bridge(indices, answered)
        samples = []
        for row, index in enumerate(indices):
            problem = self.prompts.problems[index]
            samples.append(
                Sample(
                    index=index,
                    prompt=prompt_text(problem, self._config.problems),
                    solution=problem.answer,
                    gold=problem.gold,
                    question_tokens=self.prompts.question.lengths[index],
                    prompt_tokens=self.prompts.prompt.lengths[index],
                    nll={name: values[row] for name, values in (nll | baseline_nll).items()},
                    answers={name: texts[row] for name, texts in (answers | baseline_answers).items()},
                )
            )
        return samples

    def source_of(self, indices: range) -> dict[str, Padded]:
        """Source states of these problems, by each of BRIDGED."""
        count = len(self.prompts)
        hidden, mask = self._empty
        return {
            "bridged": self.states.take(indices),
            # the next problem's: a derangement, since no problem is its own neighbour
            "shuffled_source": self.states.take([(index + 1) % count for index in indices]),
            "no_source": Padded(hidden.expand(len(indices), -1, -1), mask.expand(len(indices), -1)),
        }

    def _through_bridge(
        self, bridge: nn.Module, indices: range, answered: bool
    ) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
        """Nats per answer token, and answers, with the right states, another problem's, and none's."""
        nll: dict[str, list[float]] = {}
        answers: dict[str, list[str]] = {}
        for name, read in self.source_of(indices).items():
            self._run.beat()
            soft = self._soft_tokens(bridge, read, indices)
            before = self._target_input(soft, self.prompts.visible(indices))
            nll[name] = self._nll(before, indices)
            if answered:
                answers[name] = generate(self._target, *before, self._config.eval.max_new_tokens)
        return nll, answers

    def _without_bridge(
        self, indices: range, answered: bool
    ) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
        """What no training changes; computed once for all evaluations, attempts and runs of a launch."""
        texts = {
            "no_context": self.prompts.cue.take([0] * len(indices), "left"),
            "full_text": self.prompts.prompt.take(indices, "left"),
            "cut_text": self.prompts.cut_prompt.take(indices, "left"),
        }
        answer = digest(self.prompts.answer.take(indices, "right"))
        nll = {}
        for name, text in texts.items():
            key = {"what": "nll", "model": self._target_key, "text": digest(text), "answer": answer}
            nll[name] = self._cached(key, partial(self._nll, self._target_input(None, text), indices))
        if not answered:
            return nll, {}
        from_source = self._source_answers(self.prompts.source.take(indices, "left"))
        return nll, {
            "source_alone": from_source,
            "target_alone": self._target_answers(texts["full_text"]),
            "cut_text": self._target_answers(texts["cut_text"]),
            "cascade": self._target_answers(self.prompts.relayed(from_source, indices)),
        }

    def _have_source_answer(self, batches: Sequence[range]) -> None:
        """Cache what the source answers; a parked one is woken once, and only where something is missing."""
        with ExitStack() as until_done:
            wake = cache(lambda: until_done.enter_context(self._source.awake()))
            for indices in batches:
                self._source_answers(self.prompts.source.take(indices, "left"), wake)
        release(self._source)

    def _source_answers(self, text: Padded, wake: Callable[[], None] = lambda: None) -> list[str]:
        longest = self._config.eval.max_new_tokens
        key = {"what": "answers", "model": self._source_key, "text": digest(text), "max_new_tokens": longest}

        def answer() -> list[str]:
            wake()
            return generate(self._source, self._source.embed(text.values), text.mask, longest)

        return self._cached(key, answer)

    def _target_answers(self, text: Padded) -> list[str]:
        longest = self._config.eval.max_new_tokens
        key = {"what": "answers", "model": self._target_key, "text": digest(text), "max_new_tokens": longest}
        return self._cached(key, lambda: generate(self._target, *self._target_input(None, text), longest))

    def _cached(self, key: dict[str, Any], compute: Callable[[], list[T]]) -> list[T]:
        self._run.beat()
        return cached_json(self._run.folder.path.parent / "cache", key, compute)

    def _nll(self, before: Padded, indices: Sequence[int]) -> list[float]:
        """Nats per answer token, of a few rows at a time: whole prompts are long."""
        answer = self.prompts.answer.take(indices, "right")
        rows = max(1, TOKENS_AT_ONCE // (before.mask.shape[1] + answer.mask.shape[1]))
        found: list[float] = []
        for start in range(0, len(indices), rows):
            part = slice(start, start + rows)
            blocks = (*before, *answer)
            total, count = answer_nll(self._target, *(block[part] for block in blocks))
            found += (total / count).tolist()
        return found
