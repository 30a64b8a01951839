"""A language model whose feed-forward layers are mixtures of experts, as the loop sees it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.job import Run
from latentbridge.lm.mixture_config import MixtureLmConfig, TemperatureConfig
from latentbridge.lm.model import Scored
from latentbridge.lm.routing_metrics import Observed, load_by_layer, routing_metrics
from latentbridge.lm.train import Batch, LanguageModeling
from latentbridge.metric import Metric
from latentbridge.nn.balance import balance_loss, load_counts, router_sums, z_loss
from latentbridge.nn.decoder import MakeFfn
from latentbridge.nn.experts import Experts
from latentbridge.nn.moe import MoE
from latentbridge.nn.routers import Router
from latentbridge.rundir import write_json
from latentbridge.train import distributed
from latentbridge.train.flops import matrix_size
from latentbridge.train.loop import LossTerm, begin, fit

# of the three stretches of a stepped temperature
_STEPS_AT = (0.2, 0.6)


class MixtureFfn(nn.Module):
    """A mixture as a block's feed-forward part, and what its router did, as plain tensors."""

    def __init__(self, config: MixtureLmConfig, layer: int) -> None:
        super().__init__()
        model, mixture = config.model, config.mixture
        router = Router(
            mixture.router.strategy,
            model.dim,
            mixture.num_experts,
            mixture.router.top_k,
            network=mixture.router.network,
            temperature_acts_on=mixture.router.temperature.acts_on,
            noise=mixture.router.noise,
            # or all layers would send a token to experts of the same number
            hash_seed=layer,
        )
        experts = Experts(
            mixture.num_experts,
            model.dim,
            model.ffn_mult * model.dim,
            model.activation,
            mixture.gated,
            model.bias,
            model.dropout if model.dropout_everywhere else 0.0,
        )
        dispatch = mixture.dispatch
        self.moe = MoE(router, experts, dispatch.kind, dispatch.capacity_factor, dispatch.priority)

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x: (B, T, D), ids: (B, T).

        returns (B, T, D), and: counts (E,) of pairs before any are dropped; dropped, how many were; sums over
        tokens of confidence and, where there are probabilities, entropy; with gradient mean_probs (E,) and z
        """
        y, routing, dropped = self.moe(x, ids)
        told = {"counts": load_counts(routing), "dropped": dropped, **router_sums(routing)}
        if routing.probs is not None and routing.logits is not None:
            told |= {"mean_probs": routing.probs.mean(dim=0), "z": z_loss(routing.logits)}
        return y, told


class MixtureLm(LanguageModeling):
    """The workload of every experiment with mixtures."""

    config: MixtureLmConfig

    def __init__(self, config: MixtureLmConfig, run: Run) -> None:
        super().__init__(config, run)
        self._routers = [part for part in self.model.modules() if isinstance(part, Router)]
        self._set_temperature(1)
        self._step: int | None = None
        self._loads: dict[str, list[list[float]]] = {}

    def make_ffn(self) -> MakeFfn:
        config = self.config
        return lambda layer: MixtureFfn(config, layer)

    def matrices_per_token(self) -> int:
        stacks = [part for part in self.model.modules() if isinstance(part, Experts)]
        # a stack has three axes, which `matrix_size` does not look at
        size = sum(part.up.numel() + part.down.numel() for part in stacks)
        return (
            matrix_size(self.model)
            + size * self.config.mixture.router.top_k // self.config.mixture.num_experts
        )

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, LossTerm]:
        self._begin_update(step)
        return super().losses(model, batch, step)

    def _begin_update(self, step: int) -> None:
        """Set what follows from the number of the update, and from the load of the one before."""
        mixture = self.config.mixture
        self._set_temperature(step)
        if mixture.router.strategy == "bias_balanced" and step != self._step:
            for router in self._routers:
                router.update_bias(router.load, mixture.balance.bias_rate)
                router.load.zero_()
        self._step = step

    def _set_temperature(self, step: int) -> None:
        config = self.config.mixture.router.temperature
        for router in self._routers:
            router.set_temperature(temperature_at(config, step, self.config.train.steps))

    def _share_thresholds(self) -> None:
        """Each rank learns from its own tokens; a checkpoint holds what all have learnt."""
        if not self._routers[0].is_causal:
            found = torch.stack([router.threshold for router in self._routers])
            shared = distributed.global_sum(found) / distributed.world_size()
            for router, threshold in zip(self._routers, shared, strict=True):
                router.threshold.copy_(threshold)

    def extra_losses(self, extras: list[Any], batch: Batch, step: int) -> dict[str, LossTerm]:
        mixture, balance = self.config.mixture, self.config.mixture.balance
        self._share_thresholds()
        # (L, E), over all ranks: what is balanced are their micro-batches together
        counts = distributed.global_sum(torch.stack([told["counts"] for told in extras]))
        if mixture.router.strategy == "bias_balanced":
            for router, load in zip(self._routers, counts, strict=True):
                router.load += load
        terms = {}
        if balance.weight:
            probs = torch.stack([told["mean_probs"] for told in extras])
            terms["balance"] = LossTerm(balance_loss(counts, probs).mean(), balance.weight)
        if balance.z_weight:
            terms["router_z"] = LossTerm(torch.stack([told["z"] for told in extras]).mean(), balance.z_weight)
        if mixture.dispatch.kind == "padded":
            dropped = torch.stack([told["dropped"] for told in extras]).sum()
            own = torch.stack([told["counts"] for told in extras]).sum()
            # logged, not trained: nothing of it has a gradient
            terms["drop_rate"] = LossTerm(dropped / own, 0.0)
        return terms

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        """Those of `LanguageModeling`, and what routers do to either text; loads go to RUN/experts.json."""
        metrics = super().evaluate(model, step, label)
        if self._run.is_main:
            record = {"step": step, "parameters": self._parameters(), "load": self._loads}
            write_json(self._run.folder.path / "experts.json", record)
        return metrics

    def _parameters(self) -> dict[str, int]:
        """All, and those that a token meets."""
        total = sum(parameter.numel() for parameter in self.model.parameters())
        idle = self.config.mixture.num_experts - self.config.mixture.router.top_k
        stacks = [part for part in self.model.modules() if isinstance(part, Experts)]
        experts = sum(parameter.numel() for part in stacks for parameter in part.parameters())
        return {"total": total, "active": total - experts * idle // self.config.mixture.num_experts}

    def observe(self, scored: Scored, blocks: Tensor) -> list[Observed]:
        tokens = scored.nll.numel()
        return [
            Observed(
                counts=told["counts"].tolist(),
                tokens=tokens,
                confidence=float(told["confidence"]),
                entropy=float(told["entropy"]) if "entropy" in told else None,
            )
            for told in scored.extras
        ]

    def extra_metrics(self, observed: list[Any], prefix: str) -> dict[str, Metric]:
        self._loads[prefix] = load_by_layer(observed)
        return routing_metrics(observed, prefix)


def temperature_at(config: TemperatureConfig, step: int, steps: int) -> float:
    """Of update `step`, from 1 to `steps`; the first has `start`, the last has `end`."""
    start, end = config.start, config.start if config.end is None else config.end
    done = (step - 1) / (steps - 1) if steps > 1 else 1.0
    match config.schedule:
        case "linear":
            return start + (end - start) * done
        case "cosine":
            return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
        case "exponential":
            return float(start * (end / start) ** done)
        case "step":
            values: Sequence[float] = (start, math.sqrt(start * end), end)
            return values[sum(done >= place for place in _STEPS_AT)]
    return start


def train(config: MixtureLmConfig, run: Run) -> dict[str, Any] | None:
    """Train a language model with mixtures of experts."""
    begin(config, run)
    return fit(MixtureLm(config, run), config, run)
