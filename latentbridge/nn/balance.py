"""How evenly experts are used: losses that even it out, and what is counted; no value is read back."""

from __future__ import annotations

import torch
from torch import Tensor

from latentbridge.nn.routers import Routing


def load_counts(routing: Routing) -> Tensor:
    """Tokens sent to each expert, before any are dropped; returns (E,) float32, exact below 2^24."""
    every = torch.arange(routing.num_experts, device=routing.experts.device)
    return (routing.experts[:, None] == every).sum(dim=0).float()


def balance_loss(counts: Tensor, mean_probs: Tensor) -> Tensor:
    """E · sum of f_e · P_e (Switch): 1 when balanced, E/K when all tokens share K experts.

    f, the share of the load, has no gradient; P, the mean probability over tokens, has one.
    counts: (..., E), of `load_counts` or their sum over ranks: then f is that of the whole batch
    mean_probs: (..., E);  returns (...)
    """
    share = counts / counts.sum(dim=-1, keepdim=True)
    return counts.shape[-1] * (share * mean_probs).sum(dim=-1)


def z_loss(logits: Tensor) -> Tensor:
    """Mean squared log of the softmax's denominator: keeps logits small (ST-MoE); logits: (N, E)."""
    return logits.float().logsumexp(dim=-1).square().mean()


def router_sums(routing: Routing) -> dict[str, Tensor]:
    """Sums over tokens, without gradient; over their number they are means.

    confidence: share of a token's largest gate in all its gates, 0 for a token of no expert
    entropy: of the softmax over all experts, nats (not for hash)
    """
    gates = routing.gates.detach()
    sums = gates.new_zeros(routing.num_tokens).index_add(0, routing.tokens, gates)
    largest = torch.zeros_like(sums).scatter_reduce(0, routing.tokens, gates, "amax")
    found = {"confidence": (largest / sums.clamp(min=1e-30)).sum()}
    if routing.logits is not None:
        log_probs = routing.logits.detach().log_softmax(dim=-1)
        found["entropy"] = -(log_probs.exp() * log_probs).sum()
    return found
