"""Adapters in a frozen mixture of transformers: what the engine trains, and how the base is read by it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentbridge.data.language_model import FrozenLM
from latentbridge.data.scoring import token_nll
from latentbridge.errors import ConfigError
from latentbridge.nn.adapters import Adapters
from latentbridge.nn.balance import load_counts, router_sums
from latentbridge.nn.routers import Routing
from latentbridge.perft.config import AdaptersConfig
from latentbridge.train.flops import matrix_size

# how every mixture of transformers 5 calls its stacked experts, whatever its family
_EXPERTS_READ = ["hidden_states", "top_k_index", "top_k_weights"]


class Said(NamedTuple):
    """nll: (A,) nats of each scored token, with gradient;  right: (A,) bool, it was the likeliest; in
    evaluation mode only;  told: by layer what the routed adapters' gate did, see `_told`
    """

    nll: Tensor
    right: Tensor | None
    told: list[dict[str, Tensor]]


class AdaptedModel(nn.Module):
    """Holds adapters only: the base is read by it and is no part of it, so no checkpoint has its weights."""

    def __init__(self, config: AdaptersConfig, lm: FrozenLM) -> None:
        super().__init__()
        self._lm = lm
        self._mixtures = mixtures(lm)
        self.layers = nn.ModuleList(
            Adapters(
                config.variant,
                lm.hidden_size,
                config.rank,
                self._number(config, experts),
                config.top_k,
                kind=config.kind,
                scale=config.scale,
                dropout=config.dropout,
            )
            for experts in self._mixtures
        )

    @staticmethod
    def _number(config: AdaptersConfig, experts: Any) -> int:
        return int(experts.num_experts) if config.variant == "embedded" else config.num_adapters or 1

    def forward(
        self, ids: Tensor, real: Tensor, places: Tensor, targets: Tensor, adapted: bool = True
    ) -> Said:
        """Score tokens by what comes before them.

        ids: (B, T), padded on the right, where nothing reads the padding;  real: (R,) places of real tokens
        places: (A,) of tokens whose next is scored, targets: (A,) ids of the next;  places count in B·T
        adapted: False reads the base as it is
        """
        told: list[dict[str, Tensor]] = []
        with self._attached(real, told if adapted else None):
            states = self._lm.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        states = states.flatten(0, 1).index_select(0, places)  # (A, D)
        nll = token_nll(self._lm, states, targets)
        right = None if self.training else self._lm.head(states).argmax(dim=-1) == targets
        return Said(nll, right, told)

    def logits(self, ids: Tensor, adapted: bool = True) -> Tensor:
        """All of them, for short texts without padding: ids (B, T) to (B, T, V) float32."""
        real = torch.arange(ids.numel(), device=ids.device)
        with self._attached(real, [] if adapted else None):
            found: Tensor = self._lm.model(input_ids=ids, use_cache=False).logits.float()
        return found

    @contextmanager
    def _attached(self, real: Tensor, told: list[dict[str, Tensor]] | None) -> Iterator[None]:
        """While open, every mixture of the base says what its adapters add too; None: they add nothing."""
        handles = []
        if told is not None:
            for adapters, experts in zip(self.layers, self._mixtures, strict=True):
                handles.append(experts.register_forward_hook(_adding(adapters, real, told)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def counts(self) -> dict[str, int]:
        """Parameters: trained, of those and of the base how many a token meets, and what is multiplied."""
        shape, base = self._lm.model.config, self._lm.model
        total = sum(parameter.numel() for parameter in base.parameters())
        stacked = sum(p.numel() for experts in self._mixtures for p in experts.parameters())
        met = sum(
            p.numel() * shape.num_experts_per_tok // experts.num_experts
            for experts in self._mixtures
            for p in experts.parameters()
        )
        return {
            "trained": sum(parameter.numel() for parameter in self.parameters()),
            "activated": sum(layer.active_parameters(shape.num_experts_per_tok) for layer in self.layers),  # type: ignore[operator]
            "base": total,
            "base_activated": total - stacked + met,
            "base_matrices": matrix_size(base) + met,
        }


def _adding(adapters: nn.Module, real: Tensor, told: list[dict[str, Tensor]]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, Tensor, Tensor], output: Tensor) -> Tensor:
        """args: tokens (N, D), their experts (N, K) and weights (N, K);  output: (N, D)."""
        added, routing = adapters(*(part.index_select(0, real) for part in args))
        if routing is not None:
            told.append(_told(routing))
        return output.index_add(0, real, added.to(output.dtype))

    return hook


def _told(routing: Routing) -> dict[str, Tensor]:
    """counts: (N,) tokens sent to each adapter;  mean_probs: (N,) with gradient;  sums of `router_sums`."""
    assert routing.probs is not None
    return {
        "counts": load_counts(routing),
        "mean_probs": routing.probs.mean(dim=0),
        **router_sums(routing),
    }


def mixtures(lm: FrozenLM) -> list[Any]:
    """The stacked experts of every mixture, in order; ConfigError where there are none that we know."""
    found = [
        module.experts
        for module in lm.model.modules()
        if hasattr(module, "gate") and hasattr(getattr(module, "experts", None), "num_experts")
    ]
    family = lm.model.config.model_type
    if not found:
        raise ConfigError(
            f"frozen.model is of family {family}, which has no mixture of experts; name one such as OLMoE"
        )
    for experts in found:
        if list(inspect.signature(experts.forward).parameters) != _EXPERTS_READ:
            raise ConfigError(
                f"frozen.model is of family {family}, whose experts do not read {', '.join(_EXPERTS_READ)}; "
                "take OLMoE, Mixtral or Qwen3-MoE"
            )
    return found
