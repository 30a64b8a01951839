"""A pre-norm causal decoder whose mixers and feed-forward layers are whatever its maker puts there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentbridge.nn.head import Head
from latentbridge.nn.layers import Layers
from latentbridge.nn.norm import RMSNorm
from latentbridge.nn.rope import rotate, rotations
from latentbridge.nn.sorted_attention import Reader, plain
from latentbridge.nn.takers import Takers

Positions = Literal["learned", "rope"]
Norm = Literal["layernorm", "rmsnorm"]
# layer, from 0, to a module called as ffn(x, ids), x: (B, T, D), ids: (B, T), which returns (B, T, D), or
# that and something more, such as what a router did
MakeFfn = Callable[[int], nn.Module]
# layer, from 0, to a module called as mixer(x, turns), x: (B, T, D), turns: rotary positions or None, which
# returns (B, T, D), and of each place looks at nothing behind it
MakeMixer = Callable[[int], nn.Module]
Rotations = tuple[Tensor, Tensor]


class KeyValues(NamedTuple):
    """What attention keeps of T tokens: (B, H, T, D/H) each."""

    keys: Tensor
    values: Tensor


class CausalAttention(nn.Module):
    """Multi-head attention of a sequence onto itself, each place onto itself and what is before."""

    def __init__(self, dim: int, heads: int, bias: bool, dropout: float, reader: Reader = plain) -> None:
        """dropout: share of attention weights dropped in train mode;  reader: what `at` reads by."""
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim is {dim}; it must be a multiple of heads ({heads})")
        self.heads, self.dropout, self.reader = heads, dropout, reader
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
        query, key, value = self._parts(x, turns)
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        out: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return out

    def go_on(self, x: Tensor, turns: Rotations | None, state: KeyValues | None) -> tuple[Tensor, KeyValues]:
        """`forward` after what `state` holds; turns: of these tokens' own places."""
        query, key, value = self._parts(x, turns)
        if state is not None:
            key, value = (torch.cat(both, dim=2) for both in zip(state, (key, value), strict=True))
        before, length = key.shape[2] - x.shape[1], x.shape[1]
        # one token, or all of them, need no mask
        mask = None
        if before and length > 1:
            mask = torch.ones(length, before + length, dtype=torch.bool, device=x.device).tril(before)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=not before)
        out: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return out, KeyValues(key, value)

    def _parts(self, x: Tensor, turns: Rotations | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, (B, H, T, D/H) each."""
        parts = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, D/H)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        if turns is not None:
            query, key = rotate(query, *turns), rotate(key, *turns)
        return query, key, value

    def at(self, x: Tensor, turns: Rotations | None, takers: Takers) -> Tensor:
        """What `forward` returns for some tokens, and anything finite for others: they alone ask, of all.

        No attention weight is dropped, but by `plain` on a GPU;  returns (B, T, D)
        """
        if takers.end is not None and self.reader is plain:
            # torch reads for every place: a query of each is one product with its key, and nothing is sorted
            return self.forward(x, turns)
        dim, (weight, bias) = x.shape[-1], (self.query_key_value.weight, self.query_key_value.bias)
        of_query, of_rest = (None, None) if bias is None else (bias[:dim], bias[dim:])
        query = takers.project(takers.take(x), weight[:dim], of_query)
        query = query.view(len(query), self.heads, dim // self.heads)  # (R, H, D/H)
        rest = F.linear(x, weight[dim:], of_rest)
        key, value = rest.view(*x.shape[:2], 2, self.heads, -1).unbind(2)  # (B, T, H, D/H) each
        if turns is not None:
            own = takers.order % x.shape[1]
            query = rotate(query, *(part[own][:, None] for part in turns))
            key = rotate(key, *(part[:, None] for part in turns))
        read = self.reader(query, key, value, takers)
        return takers.put(takers.through(self.out, read.flatten(1)), *x.shape[:2])


class Block(nn.Module):
    """x + drop(attention(norm x)), then x + drop(ffn(norm x))."""

    def __init__(
        self, attention: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = norms
        self.attention, self.ffn = attention, ffn
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, ids: Tensor, turns: Rotations | None, *given: Any) -> tuple[Tensor, Any]:
        """x: (B, T, D), ids: (B, T), given: what else attention is told.

        returns the same shape, and what the ffn says besides, or None
        """
        return self._feed(x + self.dropout(self.attention(self.attention_norm(x), turns, *given)), ids)

    def go_on(
        self, x: Tensor, ids: Tensor, turns: Rotations | None, state: Any, *given: Any
    ) -> tuple[Tensor, Any]:
        """`forward` after what `state` holds, None before a first token; returns (B, T, D), and a state."""
        read, state = self.attention.go_on(self.attention_norm(x), turns, state, *given)  # type: ignore[operator]
        return self._feed(x + self.dropout(read), ids)[0], state

    def _feed(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Any]:
        found = self.ffn(self.ffn_norm(x), ids)
        out, extra = found if isinstance(found, tuple) else (found, None)
        return x + self.dropout(out), extra


class Memory(NamedTuple):
    """What a decoder keeps of `tokens` tokens: by block, what its mixer does."""

    tokens: int
    states: list[Any]

    def num_bytes(self) -> int:
        """Of all tensors in it."""
        return sum(x.nbytes for x in _tensors(self.states))


def _tensors(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [x for part in state for x in _tensors(part)]


class Decoder(nn.Module):
    """Token ids to last states; `head` scores them, and is called apart.

    max_length: T at most;  tied: the head's matrix is the embedding's
    make_mixer: what stands where attention does; None: attention in every layer
    bias: of attention's products;  scale_embeddings: times sqrt(D)
    dropout: of both branches of a block;  dropout_everywhere: of embeddings, attention weights and last
    states as well
    init_std: matrices and embeddings of this module start as N(0, init_std), biases at 0; None: as torch
    starts them (embeddings N(0, 1), attention as nn.MultiheadAttention). Learned positions start at 0, and
    ffns and mixers as their makers start them
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
        make_mixer: MakeMixer | None = None,
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

        def attention(layer: int) -> CausalAttention:
            made = CausalAttention(dim, heads, bias, ends)
            made.start(init_std)
            return made

        self.blocks = Layers()
        for layer in range(layers):
            mixer = (make_mixer or attention)(layer)
            norms = make_norm(dim), make_norm(dim)
            self.blocks.append(Block(mixer, make_ffn(layer), norms, dropout))
        self.norm = make_norm(dim)
        self.head = Head(dim, vocab_size, self.embedding.weight if tied else None)
        if init_std is not None:
            nn.init.normal_(self.embedding.weight, std=init_std)
            nn.init.normal_(self.head.weight, std=init_std)
        if self.position_embedding is not None:
            nn.init.zeros_(self.position_embedding.weight)

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Any]]:
        """Normed last states (B, T, D), and what each layer's ffn says besides; ids: (B, T)."""
        x, extras = self.run_blocks(*self._start(ids, 0))
        return self.head_dropout(self.norm(x)), extras

    def go_on(self, ids: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """Normed last states of some tokens after those that `memory` holds, and a memory of all.

        For evaluation: a prefill of many tokens, then one after the other;  ids: (B, T), returns (B, T, D)
        """
        known = memory or Memory(0, [None] * len(self.blocks))
        x, states = self.continue_blocks(*self._start(ids, known.tokens), known.states)
        return self.norm(x), Memory(known.tokens + ids.shape[1], states)

    def _start(self, ids: Tensor, before: int) -> tuple[Tensor, Tensor, Rotations | None]:
        """Embeddings (B, T, D), ids and rotary positions of tokens that stand after `before` others."""
        length = before + ids.shape[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens are more than max_length ({self.max_length})")
        x = self.embedding(ids) * self.scale
        if self.position_embedding is not None:
            x = x + self.position_embedding(torch.arange(before, length, device=ids.device))
        x = self.embedding_dropout(x)
        if self.turned_width is None:
            return x, ids, None
        cosines, sines = rotations(length, self.turned_width, ids.device)
        return x, ids, (cosines[before:], sines[before:])

    def run_blocks(self, x: Tensor, ids: Tensor, turns: Rotations | None) -> tuple[Tensor, list[Any]]:
        """Embeddings (B, T, D) to states of the same shape, and what is said besides."""
        extras = []
        for block in self.blocks:
            x, extra = block(x, ids, turns)
            extras.append(extra)
        return x, extras

    def continue_blocks(
        self, x: Tensor, ids: Tensor, turns: Rotations | None, states: list[Any]
    ) -> tuple[Tensor, list[Any]]:
        """`run_blocks` after what each block's state holds; returns the states of all tokens."""
        after = []
        for block, state in zip(self.blocks, states, strict=True):
            x, found = block.go_on(x, ids, turns, state)  # type: ignore[operator]
            after.append(found)
        return x, after
