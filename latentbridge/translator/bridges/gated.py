"""The gated bridge: learned queries read the source through gated cross-attention and become soft tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentbridge.nn.attention import MultiHeadAttention
from latentbridge.nn.ffn import SwiGLU
from latentbridge.nn.norm import RMSNorm
from latentbridge.train.flops import TRAINED, matrix_size
from latentbridge.translator.bridges.base import Bridge, freeze_idle_query
from latentbridge.translator.config import BridgeConfig


class BridgeBlock(nn.Module):
    """Three gated residual steps: queries read each other, then the source, then pass an FFN."""

    def __init__(self, config: BridgeConfig, source_dim: int) -> None:
        super().__init__()
        dim, heads, dropout = config.dim, config.heads, config.dropout
        self.norm_queries = RMSNorm(dim)
        self.norm_source = RMSNorm(source_dim)
        self.norm_ffn = RMSNorm(dim)
        self.self_attention = MultiHeadAttention(dim, heads)
        freeze_idle_query(self.self_attention, config.soft_tokens)
        self.cross_attention = MultiHeadAttention(dim, heads, context_dim=source_dim, dropout=dropout)
        self.ffn = SwiGLU(dim)
        self.dropout = nn.Dropout(dropout)
        # one number each, not zero-dimensional: ZeRO partitions want at least one axis
        self.gate_self = nn.Parameter(torch.full((1,), config.gate_init))
        self.gate_cross = nn.Parameter(torch.full((1,), config.gate_init))
        self.gate_ffn = nn.Parameter(torch.full((1,), config.gate_init))

    def forward(self, queries: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """queries: (B, Q, D);  source: (B, S, Ds);  mask: (B, S) bool;  returns (B, Q, D)."""
        normed = self.norm_queries(queries)
        queries = queries + torch.tanh(self.gate_self) * self.self_attention(normed, normed)
        read = self.cross_attention(self.norm_queries(queries), self.norm_source(source), mask)
        queries = queries + torch.tanh(self.gate_cross) * self.dropout(read)
        passed = self.ffn(self.norm_ffn(queries))
        queries = queries + torch.tanh(self.gate_ffn) * self.dropout(passed)
        return queries


class GatedBridge(Bridge):
    """Learned queries, and blocks in which they read the source."""

    def __init__(self, config: BridgeConfig, source_dim: int, target_dim: int, target_rms: float) -> None:
        super().__init__(config, target_dim, target_rms)
        self.queries = nn.Parameter(initial_queries(config.soft_tokens, config.dim))
        self.blocks = nn.ModuleList(BridgeBlock(config, source_dim) for _ in range(config.depth))
        self.norm_out = RMSNorm(config.dim)
        self.out = nn.Linear(config.dim, target_dim)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden: (B, S, Ds) source states;  mask: (B, S) bool, True = real token;  returns (B, Q, Dt)."""
        hidden = hidden.to(self.out.weight.dtype)
        soft = self.queries.expand(hidden.shape[0], -1, -1)  # (B, Q, D)
        for block in self.blocks:
            soft = block(soft, hidden, mask)
        return self.matched(self.out(self.norm_out(soft)))

    def flops(self, rows: int, source_tokens: int, with_flow: bool) -> int:
        # keys and values are made of source tokens, all else of soft tokens
        read = matrix_size(self.blocks, "cross_attention.key_value")
        rest = matrix_size(self.blocks) - read + matrix_size(self.out)
        return TRAINED * (source_tokens * read + rows * self.soft_tokens * rest)


def initial_queries(soft_tokens: int, dim: int) -> Tensor:
    """Query vectors (Q, D): orthogonal to each other (the first D of them), each of unit root mean square."""
    queries = torch.empty(soft_tokens, dim)
    # on the (Q, D) matrix: a leading batch axis would be taken for the only row, and Q vectors for one
    nn.init.orthogonal_(queries, gain=dim**0.5)
    return queries
