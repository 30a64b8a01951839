"""Adapters as the loop sees them: encoded problems in, nats per answer token out, the base never changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.data.language_model import FrozenLM, load_frozen
from latentbridge.data.problems import load_problems
from latentbridge.job import Run
from latentbridge.lm.balance import balance_over_ranks, counts_over_ranks
from latentbridge.lm.metrics import Window, metrics_of
from latentbridge.lm.routing_metrics import Observed, load_by_layer, routing_metrics
from latentbridge.metric import Metric
from latentbridge.perft.config import PerftConfig
from latentbridge.perft.examples import Batch, Examples, in_halves
from latentbridge.perft.model import AdaptedModel, Said
from latentbridge.rundir import write_json
from latentbridge.train import distributed
from latentbridge.train.flops import THROUGH, TRAINED
from latentbridge.train.loop import FINAL, LossTerm, begin, fit


class Perft:
    """The workload: problem -> frozen base with adapters -> nats of its worked solution."""

    def __init__(
        self,
        config: PerftConfig,
        run: Run,
        models: Callable[[str, torch.dtype, torch.device], FrozenLM] = load_frozen,
    ) -> None:
        """models: where the base comes from."""
        self.config, self._run = config, run
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        self.lm = models(config.frozen.model, dtype, distributed.device())
        self.examples = Examples(self.lm, load_problems(config.problems, "train"), config.problems)
        halves = in_halves(load_problems(config.problems, "eval"))
        # the problems that choose the best weights are never those that are reported
        self.held_out = {
            split: Examples(self.lm, half, config.problems)
            for split, half in zip(("val", "test"), halves, strict=True)
        }
        self.num_examples = len(self.examples)
        torch.manual_seed(config.seed)
        self.adapted = AdaptedModel(config.adapters, self.lm)
        self.model: nn.Module = self.adapted.to(distributed.device())
        self._counts = self.adapted.counts()
        self._base: dict[str, Metric] = {}
        self._loads: dict[str, list[list[float]]] = {}

    def load_batch(self, indices: Sequence[int]) -> Batch:
        """Training problems with their solutions."""
        return self.examples.take(indices)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, LossTerm]:
        """answer: mean nats per answer token, apart from what else is asked; prompts are not scored.

        The published loss was the sum, which held 0.01 K of the gate's balance against a larger top_k.
        """
        said = _read(model, batch)
        nats = distributed.global_mean(said.nll.sum(), len(said.nll))
        terms = {"answer": LossTerm(nats, 1.0)}
        if weight := self.config.adapters.balance:
            balance = balance_over_ranks(said.told, counts_over_ranks(said.told))
            terms["balance"] = LossTerm(balance, weight)
        return terms

    def flops(self, batch: Batch, step: int) -> int:
        """Model FLOPs of forward and backward, see train/flops.py."""
        each = THROUGH * self._counts["base_matrices"] + TRAINED * self._counts["activated"]
        return each * batch.num_tokens

    def heaviest(self, count: int) -> Sequence[int]:
        """The longest problems."""
        lengths = self.examples.lengths
        longest = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        return [longest[place % len(longest)] for place in range(count)]

    def heaviest_steps(self, steps: int) -> Sequence[int]:
        """The first update: it has every term of the loss."""
        return [1]

    @torch.no_grad()
    def evaluate_heaviest(self, model: nn.Module) -> None:
        """The longest problems of those that are held out."""
        examples = self.held_out["test"]
        longest = sorted(range(len(examples)), key=examples.lengths.__getitem__, reverse=True)
        _read(model, examples.take(longest[: self.config.eval.batch_size]))

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        """val_*: of the problems that choose the best weights;  test_*: at the end, of the others.

        base_nll is of the base without adapters. What adapters cost is told at the end; their loads go to
        RUN/adapters.json.
        """
        metrics = self._measure(model, "val")
        if label == FINAL:
            metrics |= self._measure(model, "test") | self._cost()
        if self._run.is_main:
            record = {"step": step, "parameters": self._counts, "load": self._loads}
            write_json(self._run.folder.path / "adapters.json", record)
        return metrics

    def _cost(self) -> dict[str, Metric]:
        """Share of all that a token meets: embedded adapters are K a token, routed ones top_k."""
        activated = self._counts["activated"]
        share = activated / (activated + self._counts["base_activated"])
        found = {
            "trained_parameters": float(self._counts["trained"]),
            "activated_parameters": float(activated),
            "activated_percent": 100 * share,
        }
        return {name: Metric(value=value, n=1) for name, value in found.items()}

    def _measure(self, model: nn.Module, split: str) -> dict[str, Metric]:
        if split not in self._base:
            # the same at every evaluation
            windows, _ = self._read_all(model, split, adapted=False)
            self._base[split] = metrics_of(windows, split)[f"{split}_nll"]
        windows, observed = self._read_all(model, split, adapted=True)
        metrics = metrics_of(windows, split) | {f"{split}_base_nll": self._base[split]}
        if self.config.adapters.variant == "routed":
            self._loads[split] = load_by_layer(observed)
            metrics |= routing_metrics(observed, split)
        return metrics

    @torch.no_grad()
    def _read_all(
        self, model: nn.Module, split: str, adapted: bool
    ) -> tuple[list[Window], list[list[Observed]]]:
        """Of each problem what it scored, and of each batch what the gates did, in order."""
        examples, size = self.held_out[split], self.config.eval.batch_size
        # cut before they are dealt to ranks: a problem meets the same neighbours whatever their number
        batches = [range(start, min(start + size, len(examples))) for start in range(0, len(examples), size)]
        dealt = list(distributed.deal(batches))
        windows: list[Window] = []
        observed: list[list[Observed]] = []
        for number, (part, is_own) in enumerate(dealt):
            batch = examples.take(part)
            said = _read(model, batch, adapted)
            if is_own:
                windows += _windows(said, batch, [examples.num_bytes[index] for index in part])
                observed.append([_observed(told, batch.num_tokens) for told in said.told])
            self._run.progress("evaluation", number + 1, len(dealt))
        return distributed.gather_in_order(windows), distributed.gather_in_order(observed)


def _read(model: nn.Module, batch: Batch, adapted: bool = True) -> Said:
    return Said(*model(batch.ids, batch.real, batch.places, batch.targets, adapted))


def _windows(said: Said, batch: Batch, num_bytes: list[int]) -> list[Window]:
    assert said.right is not None
    # copied once: a read of each problem's sum would make the host wait as often
    nll, hits = said.nll.double().cpu(), said.right.cpu()
    nats = [float(part.sum()) for part in torch.split(nll, batch.answers)]
    right = [int(part.sum()) for part in torch.split(hits, batch.answers)]
    return [Window(*row) for row in zip(nats, right, batch.answers, num_bytes, strict=True)]


def _observed(told: dict[str, Tensor], tokens: int) -> Observed:
    return Observed(
        counts=told["counts"].tolist(),
        tokens=tokens,
        confidence=float(told["confidence"]),
        entropy=float(told["entropy"]),
    )


def train(config: PerftConfig, run: Run) -> dict[str, Any] | None:
    """Train adapters; RUN/checkpoints/best/model.safetensors holds nothing else."""
    begin(config, run)
    return fit(Perft(config, run), config, run)
