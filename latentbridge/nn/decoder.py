"""A pre-norm causal decoder whose feed-forward layers are whatever its maker puts there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentbridge.nn.head import Head
from latentbridge.nn.norm import RMSNorm
from latentbridge.nn.rope import rotate, rotations

Positions = Literal["learned", "rope"]
Norm = Literal["layernorm", "rmsnorm"]
# layer, from 0, to a module called as ffn(x, ids), x: (B, T, D), ids: (B, T), which returns (B, T, D), or
# that and something more, such as what a router did
MakeFfn = Callable[[int], nn.Module]
Rotations = tuple[Tensor, Tensor]


class CausalAttention(nn.Module):
    """Multi-head attention of a sequence onto itself, each place onto itself and what is before."""

    def __init__(self, dim: int, heads: int, bias: bool, dropout: float) -> None:
        """dropout: share of attention weights dropped in train mode."""
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim is {dim}; it must be a multiple of heads ({heads})")
        self.heads, self.dropout = heads, dropout
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def start(self, std: float | None) -> None:
        """Matrices as N(0, std), or as nn.MultiheadAttention starts them; biases at 0."""
        for linear in (self.query_key_value, self.out):
            if std is not None:
                nn.init.normal_(linear.weight, std=std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if std is None:
            nn.init.xavier_uniform_(self.query_key_value.weight)

    def forward(self, x: Tensor, turns: Rotations | None) -> Tensor:
        """x: (B, T, D), returns the same shape;  turns: rotary positions, where there are any."""
        parts = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, D/H)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (B, H, T, D/H) each
        if turns is not None:
            query, key = rotate(query, *turns), rotate(key, *turns)
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        out: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """x + drop(attention(norm x)), then x + drop(ffn(norm x))."""

    def __init__(
        self, attention: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = norms
        self.attention, self.ffn = attention, ffn
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, ids: Tensor, turns: Rotations | None) -> tuple[Tensor, Any]:
        """x: (B, T, D), ids: (B, T);  returns the same shape, and what the ffn says besides, or None."""
        x = x + self.dropout(self.attention(self.attention_norm(x), turns))
        found = self.ffn(self.ffn_norm(x), ids)
        out, extra = found if isinstance(found, tuple) else (found, None)
        return x + self.dropout(out), extra


class Decoder(nn.Module):
    """Token ids to last states; `head` scores them, and is called apart.

    max_length: T at most;  tied: the head's matrix is the embedding's
    bias: of attention's products;  scale_embeddings: times sqrt(D)
    dropout: of both branches of a block;  dropout_everywhere: of embeddings, attention weights and last
    states as well
    init_std: matrices and embeddings of this module start as N(0, init_std), biases at 0; None: as torch
    starts them (embeddings N(0, 1), attention as nn.MultiheadAttention). Learned positions start at 0, and
    ffns as their maker starts them
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        dim: int,
        layers: int,
        heads: int,
        make_ffn: MakeFfn,
        *,
        positions: Positions = "rope",
        norm: Norm = "rmsnorm",
        tied: bool = False,
        bias: bool = False,
        scale_embeddings: bool = False,
        dropout: float = 0.0,
        dropout_everywhere: bool = False,
        init_std: float | None = 0.02,
    ) -> None:
        super().__init__()
        make_norm = nn.LayerNorm if norm == "layernorm" else RMSNorm
        self.max_length = max_length
        self.scale = math.sqrt(dim) if scale_embeddings else 1.0
        self.turned_width = dim // heads if positions == "rope" else None
        if self.turned_width is not None and self.turned_width % 2:
            raise ValueError(f"dim / heads is {self.turned_width}; rope turns pairs, so it must be even")
        ends = dropout if dropout_everywhere else 0.0
        self.embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_length, dim) if positions == "learned" else None
        self.embedding_dropout, self.head_dropout = nn.Dropout(ends), nn.Dropout(ends)
        self.blocks = nn.ModuleList()
        for layer in range(layers):
            attention = CausalAttention(dim, heads, bias, ends)
            attention.start(init_std)
            norms = make_norm(dim), make_norm(dim)
            self.blocks.append(Block(attention, make_ffn(layer), norms, dropout))
        self.norm = make_norm(dim)
        self.head = Head(dim, vocab_size, self.embedding.weight if tied else None)
        if init_std is not None:
            nn.init.normal_(self.embedding.weight, std=init_std)
            nn.init.normal_(self.head.weight, std=init_std)
        if self.position_embedding is not None:
            nn.init.zeros_(self.position_embedding.weight)

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Any]]:
        """Normed last states (B, T, D), and what each layer's ffn says besides; ids: (B, T)."""
        length = ids.shape[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens are more than max_length ({self.max_length})")
        x = self.embedding(ids) * self.scale
        if self.position_embedding is not None:
            x = x + self.position_embedding(torch.arange(length, device=ids.device))
        x = self.embedding_dropout(x)
        turns = None if self.turned_width is None else rotations(length, self.turned_width, ids.device)
        extras = []
        for block in self.blocks:
            x, extra = block(x, ids, turns)
            extras.append(extra)
        return self.head_dropout(self.norm(x)), extras
