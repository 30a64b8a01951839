"""Causal softmax attention for some tokens' queries, sorted as `Takers` are; keys are of all.

`plain` is torch's attention. On a CPU it reads by stretches of the text, and nothing that comes after them.
On a GPU it reads for every place, whoever asks: nothing is saved, and no shape depends on who does.
`by_blocks` (FlexAttention, arXiv 2412.05496) computes what those that ask may read, in blocks of queries and
keys, at fixed shapes. Which blocks follows from sorted places by a few operations on the device: there is no
mask of N by N.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from latentbridge.nn.takers import Takers

# query (R, H, D/H) in takers' order, key and value (B, T, H, D/H), takers -> (R, H, D/H) in their order; what
# others than takers get is finite, and not to be used
Reader = Callable[[Tensor, Tensor, Tensor, Takers], Tensor]
# queries, and keys, of a block
BLOCK = 128
# places whose queries are read together by `plain`
STRETCH = 512
# of torch's own, 128 by 64, the forward takes 1.4 to 2.5 times as long with such masks (H200, heads of 64)
TILES: Any = {"BLOCK_M": 64, "BLOCK_N": 64}
# backward, of heads so wide alone: with torch's own it takes 1.1 times as long, and others were not measured
_MEASURED = 64
TILES_BACKWARD: Any = {
    "bwd_BLOCK_M1": 32,
    "bwd_BLOCK_N1": 128,
    "bwd_BLOCK_M2": 128,
    "bwd_BLOCK_N2": 32,
    "bwd_num_stages": 3,
    "bwd_num_warps": 4,
}


def plain(query: Tensor, key: Tensor, value: Tensor, takers: Takers) -> Tensor:
    """See `Reader`."""
    if takers.end is None:
        return _by_stretches(query, key, value, takers.order)
    texts = takers.put(query, *key.shape[:2]), key, value
    asked, keys, values = (part.transpose(1, 2) for part in texts)  # (B, H, T, D/H) each
    read = F.scaled_dot_product_attention(asked, keys, values, is_causal=True)
    return takers.take(read.transpose(1, 2))


def _by_stretches(query: Tensor, key: Tensor, value: Tensor, order: Tensor) -> Tensor:
    batch, length = key.shape[:2]
    starts = [(text, start) for text in range(batch) for start in range(0, length, STRETCH)]
    numbers = torch.tensor([text * length + start for text, start in starts], device=order.device)
    bounds = [*torch.searchsorted(order, numbers).tolist(), len(order)]
    # of nobody too there is something
    reads = [query[:0]]
    for (text, start), (first, end) in zip(starts, pairwise(bounds), strict=True):
        if first == end:
            continue
        asked = query[first:end].transpose(0, 1)  # (H, R, D/H)
        keys, values = (part[text, : start + STRETCH].transpose(0, 1) for part in (key, value))
        is_before = torch.arange(keys.shape[1], device=order.device) <= (order[first:end] % length)[:, None]
        read = F.scaled_dot_product_attention(asked[None], keys[None], values[None], attn_mask=is_before)
        reads.append(read[0].transpose(0, 1))
    return torch.cat(reads)


def by_blocks(query: Tensor, key: Tensor, value: Tensor, takers: Takers) -> Tensor:
    """See `Reader`, of fixed shapes; all texts are one sequence of N, of which each query reads its own text.

    Without a compiler torch would make all N by N scores.
    """
    # within a model that is compiled it is a part of that
    reader = flexed if torch.compiler.is_compiling() else _compiled()
    return reader(query, key, value, takers)


@cache
def _compiled() -> Reader:
    return torch.compile(flexed, dynamic=False)


def flexed(query: Tensor, key: Tensor, value: Tensor, takers: Takers) -> Tensor:
    """What `by_blocks` compiles."""
    rows = query, key.flatten(0, 1), value.flatten(0, 1)
    asked, keys, values = (part.transpose(0, 1)[None] for part in rows)  # (1, H, N, D/H) each
    mask = readable(takers, key.shape[1])
    tiles = TILES | (TILES_BACKWARD if query.shape[-1] == _MEASURED else {})
    return flex_attention(asked, keys, values, block_mask=mask, kernel_options=tiles)[0].transpose(0, 1)


def readable(takers: Takers, length: int, block: int = BLOCK) -> BlockMask:
    """Which keys each of N sorted queries reads: of its own text of T = length, up to its own place.

    Those that did not take read none, and a block of them alone costs nothing.
    """
    order, end, total = takers.order, takers.end, len(takers.order)
    assert end is not None
    starts = order - order % length
    ends = torch.where(torch.arange(total, device=order.device) < end, order, -1)

    def may_read(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (starts[query] <= key) & (key <= ends[query])

    (some, every), (some_by, every_by) = _blocks(order, starts, end, block)
    return BlockMask(
        (total, total),
        *some,
        *every,
        *some_by,
        *every_by,
        BLOCK_SIZE=(block, block),
        mask_mod=may_read,
    )


class _Range(NamedTuple):
    """For each of Z blocks those from `first` to before `stop`, (Z,) each; none where that is not after."""

    first: Tensor
    stop: Tensor

    def turned(self) -> _Range:
        """The same pairs by the other block, for ranges of which neither end ever goes back."""
        numbers = torch.arange(len(self.first), device=self.first.device)[:, None]
        # those that have stopped by then, and those that have begun
        return _Range((self.stop <= numbers).sum(dim=1), (self.first <= numbers).sum(dim=1))


class _Listed(NamedTuple):
    """For each of Z blocks the first `sizes` (1, 1, Z) of `indices` (1, 1, Z, Z)."""

    sizes: Tensor
    indices: Tensor


def _blocks(
    order: Tensor, starts: Tensor, end: Tensor, block: int
) -> tuple[tuple[_Listed, _Listed], tuple[_Listed, _Listed]]:
    """Blocks of keys that each of queries reads, in part and in whole; and blocks of queries by key.

    Both are written down by arithmetic: torch would turn the one into the other by a sort, which its compiler
    refuses from 128 blocks on.
    """
    total = -(-len(order) // block)
    first = torch.arange(total, device=order.device) * block
    last = (first + block).clamp(max=end) - 1
    # blocks without one who asks are the last ones, and so is one of which a part asks
    is_asked, is_whole = first < end, last == first + block - 1
    last = last.clamp(min=0)
    # texts follow each other, so these are of the first text and up to the last place
    some = _where(is_asked, starts[first] // block, order[last] // block + 1, total)
    # all may read the last text up to the first place
    every = _where(is_whole, -(-starts[last] // block), (order[first] + 1) // block, total)
    return _listed(some, every), _listed(some.turned(), every.turned())


def _where(has: Tensor, first: Tensor, stop: Tensor, total: int) -> _Range:
    return _Range(torch.where(has, first, total), torch.where(has, stop, total))


def _listed(some: _Range, every: _Range) -> tuple[_Listed, _Listed]:
    """What is in `some` and not in `every`, and what is in `every`, which is a part of it."""
    numbers = torch.arange(len(some.first), device=some.first.device)
    whole = (every.stop - every.first).clamp(min=0)
    rest = some.first[:, None] + numbers
    rest = rest + torch.where(rest >= every.first[:, None], whole[:, None], 0)
    return (
        _as_listed(some.stop - some.first - whole, rest),
        _as_listed(whole, every.first[:, None] + numbers),
    )


def _as_listed(sizes: Tensor, indices: Tensor) -> _Listed:
    return _Listed(sizes.int()[None, None], indices.clamp(max=len(sizes) - 1).int()[None, None])
