"""Language modelling as the loop sees it: blocks of tokens in, nats per token out, two held-out texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.data.language_model import to_device
from latentbridge.data.text import Corpus, TextSplit
from latentbridge.job import Run
from latentbridge.lm.config import LmConfig
from latentbridge.lm.metrics import Window, metrics_of
from latentbridge.lm.model import Scored, build_model
from latentbridge.metric import Metric
from latentbridge.nn.decoder import MakeFfn
from latentbridge.rundir import write_json
from latentbridge.train import distributed
from latentbridge.train.flops import TRAINED, matrix_size
from latentbridge.train.loop import FINAL, LossTerm, begin, fit
from latentbridge.train.seeding import PassOrder


@dataclass(frozen=True)
class Batch:
    """blocks: (B, T + 1) int64;  num_tokens: that are read, and as many are scored."""

    blocks: Tensor
    num_tokens: int


class LanguageModeling:
    """The workload; one with other layers, or another model, overrides what stands below `make_model`."""

    def __init__(self, config: LmConfig, run: Run) -> None:
        self.config, self._run = config, run
        self.device = distributed.device()
        self.corpus = Corpus(config.text, run.folder.path.parent / "cache", config.seed)
        if run.is_main:
            write_json(run.folder.path / "text.json", self.corpus.facts())
        torch.manual_seed(config.seed)
        self.model: nn.Module = self.make_model().to(self.device)
        self.num_examples = self.corpus.num_blocks
        # an index tells the pass too, since each begins its blocks at another place
        self.order = PassOrder(config.seed, self.num_examples)
        self._matrices = self.matrices_per_token()

    def make_model(self) -> nn.Module:
        """Random weights from torch's current seed; called with blocks it returns what `Scored` holds."""
        text = self.config.text
        return build_model(self.config.model, self.corpus.vocab_size, text.context, self.make_ffn())

    def make_ffn(self) -> MakeFfn | None:
        """Makes each layer's feed-forward part; None: dense ones."""
        return None

    def extra_losses(self, extras: list[Any]) -> dict[str, LossTerm]:
        """Terms beside the language model's; extras: by layer, what its ffn says beside its output."""
        return {}

    def matrices_per_token(self) -> int:
        """Weights of all matrices that a token is multiplied with; not of experts that it does not meet."""
        return matrix_size(self.model)

    def observe(self, scored: Scored, blocks: Tensor, prefix: str) -> Any:
        """Plain data about one batch of an evaluation, which is alike whatever the number of ranks.

        prefix: "val" or "test", the text that it is of, as of the metrics
        """
        return None

    def extra_metrics(self, observed: list[Any], prefix: str) -> dict[str, Metric]:
        """Metrics of all that was observed in an evaluation, in the order of the text."""
        return {}

    def load_batch(self, indices: Sequence[int]) -> Batch:
        """Blocks of the training text."""
        blocks = to_device(self.corpus.train_windows(indices), self.device)
        return Batch(blocks, len(indices) * self.config.text.context)

    def begin_update(self, step: int) -> None:
        """Set what follows from the number of the update: here nothing."""

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, LossTerm]:
        """Mean nats per token, always apart from what else is asked of the model."""
        self.begin_update(step)
        return self.fixed_losses(model, batch)

    def fixed_losses(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        """`losses` after `begin_update`."""
        scored = Scored(*model(batch.blocks))
        return {"lm": LossTerm(mean_nats(scored), 1.0), **self.extra_losses(scored.extras)}

    def flops(self, batch: Batch, step: int) -> int:
        """Model FLOPs of forward and backward, see train/flops.py."""
        return TRAINED * self._matrices * batch.num_tokens

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        """val_*: of the validation text, by which the best weights are chosen;  test_*: at the end, of test.

        Without dropout, in the precision of training.
        """
        metrics = self._measure(model, "validation", "val")
        if label == FINAL:
            metrics |= self._measure(model, "test", "test")
        return metrics

    def heaviest(self, count: int) -> Sequence[int]:
        """Blocks all take the same memory."""
        return [number % self.num_examples for number in range(count)]

    def heaviest_steps(self, steps: int) -> Sequence[int]:
        """The first update: it has every term of the loss."""
        return [1]

    @torch.no_grad()
    def evaluate_heaviest(self, model: nn.Module) -> None:
        """One batch of an evaluation, of which the first is the largest."""
        starts = self.corpus.eval_windows("validation")[: self.config.eval.batch_size]
        model(to_device(self.corpus.take("validation", starts)[0], self.device))

    @torch.no_grad()
    def _measure(self, model: nn.Module, split: TextSplit, prefix: str) -> dict[str, Metric]:
        # cut before they are dealt to ranks: a window meets the same neighbours whatever their number
        starts, size = self.corpus.eval_windows(split), self.config.eval.batch_size
        batches = [starts[first : first + size] for first in range(0, len(starts), size)]
        dealt = list(distributed.deal(batches))
        windows: list[Window] = []
        observed: list[Any] = []
        for number, (own_starts, is_own) in enumerate(dealt):
            ids, num_bytes = self.corpus.take(split, own_starts)
            blocks = to_device(ids, self.device)
            scored = Scored(*model(blocks))
            if is_own:
                windows += _windows(scored, num_bytes)
                observed.append(self.observe(scored, blocks, prefix))
            self._run.progress("evaluation", number + 1, len(dealt))
        windows = distributed.gather_in_order(windows)
        observed = distributed.gather_in_order(observed)
        return metrics_of(windows, prefix) | self.extra_metrics(observed, prefix)


def mean_nats(scored: Scored) -> Tensor:
    """Nats per token over all ranks, with gradient."""
    return distributed.global_mean(scored.total, scored.nll.numel())


def _windows(scored: Scored, num_bytes: list[int]) -> list[Window]:
    assert scored.right is not None
    nats = scored.nll.double().sum(dim=1).tolist()
    right = scored.right.sum(dim=1).tolist()
    tokens = scored.nll.shape[1]
    return [Window(n, r, tokens, b) for n, r, b in zip(nats, right, num_bytes, strict=True)]


def train(config: LmConfig, run: Run) -> dict[str, Any] | None:
    """Train a dense language model."""
    begin(config, run)
    return fit(LanguageModeling(config, run), config, run)
