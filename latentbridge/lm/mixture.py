"""A language model whose feed-forward layers are mixtures of experts, as the loop sees it."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentbridge.job import Run
from latentbridge.lm.balance import balance_over_ranks, counts_over_ranks
from latentbridge.lm.mixture_config import MixtureLmConfig, temperature_at
from latentbridge.lm.model import Scored
from latentbridge.lm.routing_metrics import Observed, load_by_layer, routing_metrics
from latentbridge.lm.specialisation import (
    NOBODY,
    Choices,
    TokenClasses,
    describe,
    information_metrics,
)
from latentbridge.lm.train import LanguageModeling
from latentbridge.metric import Metric
from latentbridge.nn.balance import load_counts, router_sums, z_loss
from latentbridge.nn.decoder import MakeFfn
from latentbridge.nn.experts import Experts
from latentbridge.nn.moe import MoE
from latentbridge.nn.routers import Router, Routing
from latentbridge.rundir import append_jsonl, keep_records, write_json
from latentbridge.train import distributed
from latentbridge.train.flops import matrix_size
from latentbridge.train.loop import LossTerm, begin, fit


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
            distributed.expert_peers(mixture.expert_parallel),
        )
        dispatch = mixture.dispatch
        self.moe = MoE(router, experts, dispatch.kind, dispatch.capacity_factor, dispatch.priority)

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x: (B, T, D), ids: (B, T).

        returns (B, T, D), and: counts (E,) of pairs before any are dropped; dropped, how many were; in train
        mode with gradient mean_probs (E,) and z, where there are probabilities; in eval mode sums over tokens
        of confidence and, where there are any, entropy, and who took each token: sent (N, E) bool and first
        (N,), its first choice
        """
        y, routing, dropped = self.moe(x, ids)
        told = {"counts": load_counts(routing), "dropped": dropped}
        if not self.training:
            told |= router_sums(routing) | _takers(routing)
        elif routing.probs is not None and routing.logits is not None:
            told |= {"mean_probs": routing.probs.mean(dim=0), "z": z_loss(routing.logits)}
        return y, told


def _takers(routing: Routing) -> dict[str, Tensor]:
    gates = routing.gates.detach().new_full((routing.num_tokens, routing.num_experts), -1.0)
    gates[routing.tokens, routing.experts] = routing.gates.detach()
    sent = gates >= 0
    if routing.top_k is None:
        largest, best = gates.max(dim=-1)
        first = best.where(largest >= 0, NOBODY)
    else:
        first = routing.experts[: routing.num_tokens]
    return {"sent": sent, "first": first}


class Seen(NamedTuple):
    """One batch of an evaluation, of the test text with who took each token."""

    layers: list[Observed]
    choices: Choices | None


class MixtureLm(LanguageModeling):
    """The workload of every experiment with mixtures."""

    config: MixtureLmConfig

    def __init__(self, config: MixtureLmConfig, run: Run) -> None:
        super().__init__(config, run)
        self._routers = [part for part in self.model.modules() if isinstance(part, Router)]
        self._temperature: float | None = None
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
        return matrix_size(self.model) + size * self.config.mixture.router.top_k // self._experts_here()

    def _experts_here(self) -> int:
        return self.config.mixture.num_experts // self.config.mixture.expert_parallel

    def begin_update(self, step: int) -> None:
        """Set the temperature, and the bias by the load of the update before."""
        mixture = self.config.mixture
        self._set_temperature(step)
        if mixture.router.strategy == "bias_balanced" and step != self._step:
            for router in self._routers:
                router.update_bias(router.load, mixture.balance.bias_rate)
                router.load.zero_()
        self._step = step

    @property
    def _is_tempered(self) -> bool:
        """Whether there are logits that a temperature divides."""
        return self._routers[0].network is not None

    def _set_temperature(self, step: int) -> None:
        temperature = temperature_at(self.config.mixture.router.temperature, step, self.config.train.steps)
        if temperature != self._temperature:
            for router in self._routers:
                router.set_temperature(temperature)
        self._temperature = temperature

    def _share_thresholds(self) -> None:
        """Each rank learns from its own tokens; a checkpoint holds what all have learnt."""
        if not self._routers[0].is_causal:
            found = torch.stack([router.threshold for router in self._routers])
            shared = distributed.global_sum(found) / distributed.world_size()
            for router, threshold in zip(self._routers, shared, strict=True):
                router.threshold.copy_(threshold)

    def extra_losses(self, extras: list[Any]) -> dict[str, LossTerm]:
        mixture, balance = self.config.mixture, self.config.mixture.balance
        self._share_thresholds()
        counts = counts_over_ranks(extras)
        if mixture.router.strategy == "bias_balanced":
            for router, load in zip(self._routers, counts, strict=True):
                router.load += load
        # logged, not trained: what weighs nothing has no gradient
        terms = {"temperature": LossTerm(self._routers[0].temperature, 0.0)} if self._is_tempered else {}
        if balance.weight:
            terms["balance"] = LossTerm(balance_over_ranks(extras, counts), balance.weight)
        if balance.z_weight:
            terms["router_z"] = LossTerm(torch.stack([told["z"] for told in extras]).mean(), balance.z_weight)
        if mixture.dispatch.kind == "padded":
            dropped = torch.stack([told["dropped"] for told in extras]).sum()
            own = torch.stack([told["counts"] for told in extras]).sum()
            terms["drop_rate"] = LossTerm(dropped / own, 0.0)
        return terms

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        """Those of `LanguageModeling`, and what routers do to either text; loads go to RUN/experts.jsonl.

        The final one also tells in RUN/specialisation.json which classes of tokens each expert takes.
        """
        self._loads = {}
        metrics = super().evaluate(model, step, label)
        if self._run.is_main:
            path = self._run.folder.path / "experts.jsonl"
            # a run that goes on makes evaluations after its checkpoint again
            keep_records(path, lambda record: record["label"] != label)
            append_jsonl(path, {"step": step, "label": label, **self._told()})
        return metrics

    def _told(self) -> dict[str, Any]:
        """Of what was evaluated: temperature, load by text, layer and expert, and the number of weights."""
        temperature = float(self._routers[0].temperature) if self._is_tempered else None
        return {"temperature": temperature, "load": self._loads, "parameters": self._parameters()}

    def _parameters(self) -> dict[str, int]:
        """All, and those that a token meets; of experts, on whichever rank they are."""
        mixture = self.config.mixture
        here = sum(parameter.numel() for parameter in self.model.parameters())
        stacks = [part for part in self.model.modules() if isinstance(part, Experts)]
        experts = sum(parameter.numel() for part in stacks for parameter in part.parameters())
        of_one = experts // self._experts_here()
        total = here - experts + of_one * mixture.num_experts
        return {"total": total, "active": total - of_one * (mixture.num_experts - mixture.router.top_k)}

    @cached_property
    def _classes(self) -> TokenClasses:
        return TokenClasses(self.corpus.token_texts())

    def observe(self, scored: Scored, blocks: Tensor, prefix: str) -> Seen:
        tokens = scored.nll.numel()
        layers = [
            Observed(
                counts=told["counts"].tolist(),
                tokens=tokens,
                confidence=float(told["confidence"]),
                entropy=float(told["entropy"]) if "entropy" in told else None,
            )
            for told in scored.extras
        ]
        return Seen(layers, self._choices(scored.extras, blocks[:, :-1]) if prefix == "test" else None)

    def _choices(self, extras: list[dict[str, Tensor]], read: Tensor) -> Choices:
        first = [told["first"].cpu().numpy() for told in extras]
        sent = [told["sent"].cpu().numpy() for told in extras]
        return self._classes.choices(read.cpu().numpy(), first, sent)

    def extra_metrics(self, observed: list[Any], prefix: str) -> dict[str, Metric]:
        layers = [seen.layers for seen in observed]
        self._loads[prefix] = load_by_layer(layers)
        metrics = routing_metrics(layers, prefix)
        if prefix == "test":
            described = describe([seen.choices for seen in observed], self._classes.texts)
            if self._run.is_main:
                write_json(self._run.folder.path / "specialisation.json", described)
            metrics |= information_metrics(described, prefix)
        return metrics


def train(config: MixtureLmConfig, run: Run) -> dict[str, Any] | None:
    """Train a language model with mixtures of experts."""
    begin(config, run)
    return fit(MixtureLm(config, run), config, run)
