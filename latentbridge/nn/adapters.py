"""Small trained layers beside the frozen experts of a mixture, arranged in three ways (arXiv 2411.08212)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentbridge.nn.dispatch import dropless
from latentbridge.nn.experts import Experts
from latentbridge.nn.routers import Router, Routing

VARIANTS = ("routed", "embedded", "shared")
KINDS = ("lora", "parallel")


class AdapterStack(Experts):
    """N adapters D -> r -> D without biases, times `scale`; they say 0 until they are trained.

    kind: lora: B A x (arXiv 2106.09685) | parallel: B silu(A x) (arXiv 2110.04366)
    A starts as a dense layer of its fan-in does, so that its scale depends neither on N nor on r.
    """

    def __init__(self, num_adapters: int, dim: int, rank: int, kind: str, scale: float) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
        super().__init__(num_adapters, dim, rank, "silu", bias=False)
        self.kind, self.scale = kind, scale
        nn.init.zeros_(self.down)

    def _activate(self, hidden: Tensor) -> Tensor:
        # scaled here, where a row is narrowest
        return self.scale * (hidden if self.kind == "lora" else F.silu(hidden))


class Adapters(nn.Module):
    """What is added to the output of one frozen mixture.

    routed: a gate of their own chooses top_k of num_adapters; each is weighted by its probability among all
    embedded: num_adapters is the number of the mixture's experts; its router chooses and weights
    shared: the sum of all of them
    dropout: share of the adapters' input; the gate reads all of it
    """

    def __init__(
        self,
        variant: str,
        dim: int,
        rank: int,
        num_adapters: int,
        top_k: int | None = None,
        *,
        kind: str = "lora",
        scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(VARIANTS)}")
        if (top_k is not None) != (variant == "routed"):
            raise ValueError(f"top_k is {top_k} and variant {variant}; routed needs it, and no other has it")
        self.variant = variant
        self.router = None if top_k is None else Router("topk", dim, num_adapters, top_k)
        self.stack = AdapterStack(num_adapters, dim, rank, kind, scale)
        # of tokens, not of rows as they are sorted: no token's draw depends on where another one is sent
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, experts: Tensor, gates: Tensor) -> tuple[Tensor, Routing | None]:
        """x: (N, D);  experts, gates: (N, K) that the frozen router gave each token.

        returns (N, D), and of routed adapters who was sent where
        """
        read = self.dropout(x)
        if self.variant == "shared":
            return self.stack(read, _all_for_every_row), None
        if self.router is not None:
            routing = self.router(x)
            return dropless(read, routing, self.stack), routing
        return dropless(read, _given(experts, gates, self.stack.num_experts), self.stack), None

    def active_parameters(self, experts_per_token: int) -> int:
        """Of those that are trained, how many a token meets; experts_per_token: K of the frozen mixture."""
        stack = sum(parameter.numel() for parameter in self.stack.parameters())
        met = self.stack.num_experts
        if self.router is not None:
            met = self.router.top_k
        elif self.variant == "embedded":
            met = experts_per_token
        gate = 0 if self.router is None else sum(p.numel() for p in self.router.parameters())
        return gate + stack * met // self.stack.num_experts


def _given(experts: Tensor, gates: Tensor, num_experts: int) -> Routing:
    """A choice (N, K) that was made elsewhere."""
    num_tokens, top_k = experts.shape
    tokens = torch.arange(num_tokens, device=experts.device).repeat(top_k)
    chosen, weights = experts.T.reshape(-1), gates.T.reshape(-1).float()
    return Routing(tokens, chosen, weights, None, None, num_tokens, num_experts, top_k)


def _all_for_every_row(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A `Product`: (R, I) to the outputs of all N side by side, and those (R, N·I) to the sum over all.

    weight: (N, I, O)
    """
    is_spread = rows.shape[1] == weight.shape[1]
    matrix = weight.transpose(0, 1).flatten(1) if is_spread else weight.flatten(0, 1)
    return F.linear(rows, matrix.T.to(rows.dtype), None)
