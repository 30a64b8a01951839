"""The translator as the loop sees it: a bridge to train between two models that never change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.data.language_model import answer_logits, load_frozen
from latentbridge.job import Run
from latentbridge.metric import Metric
from latentbridge.train import distributed
from latentbridge.train.loop import LossTerm, begin, fit
from latentbridge.translator.config import TranslatorConfig
from latentbridge.translator.evaluate import Evaluator
from latentbridge.translator.losses import info_nce_per_row, kl_per_row, masked_mean, token_nll
from latentbridge.translator.model import GatedBridge, embedding_rms
from latentbridge.translator.prompts import Padded, Prompts, refuse_too_long, target_input
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

    def __init__(self, config: TranslatorConfig, run: Run) -> None:
        self.config = config
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        self.source = load_frozen(config.source.model, dtype, distributed.device())
        self.target = load_frozen(config.target.model, dtype, distributed.device())
        self.prompts = Prompts(config, "train", self.source, self.target)
        held_out = Prompts(config, "eval", self.source, self.target)
        self._refuse_too_long(held_out)
        self.num_examples = len(self.prompts)
        self.evaluator = Evaluator(
            config, self.source, self.target, held_out, self._states(held_out, run), run
        )
        self.states = self._states(self.prompts, run)
        torch.manual_seed(config.seed)
        bridge = GatedBridge(
            config.model,
            self.source.hidden_size,
            self.target.hidden_size,
            embedding_rms(self.target.embedding),
        )
        self.model: nn.Module = bridge
        self.warm_start = warm_start(bridge, config.warm_start) if config.warm_start else None

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
        refuse_too_long(self.source, max(self.prompts.source.lengths), "source: a training prompt")
        refuse_too_long(self.source, max(held_out.source.lengths) + reply, "source: a prompt with its answer")
        longest = 1 + max(held_out.prompt.lengths) + reply
        refuse_too_long(self.target, longest, "target: a prompt with its answer")
        for prompts, answer in ((self.prompts, max(self.prompts.answer.lengths)), (held_out, reply)):
            length = 1 + soft + max(prompts.visible_table.lengths) + answer
            refuse_too_long(self.target, length, "target: soft tokens, text and answer")

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
        """lm: nats per answer token;  info_nce and kl: nats per problem; means over all ranks' batches."""
        losses = self.config.losses
        soft = model(*batch.source)  # (B, Q, Dt)
        terms = {}
        with_kl = losses.kl.weight > 0 and step > losses.kl.start_step
        if losses.lm.weight > 0 or with_kl:
            before = target_input(self.target, soft, self.prompts.visible(batch.indices))
            logits = answer_logits(self.target, *before, *batch.answer)  # (B, A, V)
        if losses.lm.weight > 0:
            nll = token_nll(logits, batch.answer.values) * batch.answer.mask
            mean = distributed.global_mean(nll.sum(), batch.answer.mask.sum())
            terms["lm"] = LossTerm(mean, losses.lm.weight)
        if losses.info_nce.weight > 0 and step > losses.info_nce.start_step:
            terms["info_nce"] = LossTerm(self._info_nce(soft, batch), losses.info_nce.weight)
        if with_kl:
            terms["kl"] = LossTerm(self._kl(logits, batch), losses.kl.weight)
        return terms

    def _info_nce(self, soft: Tensor, batch: Batch) -> Tensor:
        """The other problems of this forward, on all ranks, are the negatives."""
        ids, mask = self.prompts.question.take(batch.indices, "right")
        targets = distributed.gather_rows(masked_mean(self.target.embed(ids), mask))  # (ranks * B, Dt)
        own = torch.arange(len(soft), device=soft.device) + distributed.rank() * len(soft)
        temperature = self.config.losses.info_nce.temperature
        each = info_nce_per_row(soft.float().mean(dim=1), targets, own, temperature)
        return distributed.global_mean(each.sum(), len(each))

    def _kl(self, logits: Tensor, batch: Batch) -> Tensor:
        """Against the target that reads the whole prompt as text."""
        tokens = self.config.losses.kl.tokens
        ids, mask = (block[:, :tokens] for block in batch.answer)
        with torch.no_grad():
            before = target_input(self.target, None, self.prompts.prompt.take(batch.indices, "left"))
            teacher = answer_logits(self.target, *before, ids, mask)
        each = kl_per_row(logits[:, :tokens], teacher, mask)
        return distributed.global_mean(each.sum(), len(each))

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
