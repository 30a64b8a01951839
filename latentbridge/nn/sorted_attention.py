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
from typing import NamedTuple

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
    return flex_attention(asked, keys, values, block_mask=readable(takers, key.shape[1]))[0].transpose(0, 1)


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

    partial, full = _blocks(order, starts, end, block)
    return BlockMask.from_kv_blocks(
        partial.sizes,
        partial.indices,
        full.sizes,
        full.indices,
        BLOCK_SIZE=block,
        mask_mod=may_read,
        seq_lengths=(total, total),
    )


class _Listed(NamedTuple):
    """Blocks of keys for each of Z of queries: of indices (1, 1, Z, Z) as many as sizes (1, 1, Z) say."""

    sizes: Tensor
    indices: Tensor


def _blocks(order: Tensor, starts: Tensor, end: Tensor, block: int) -> tuple[_Listed, _Listed]:
    """Those that some of a block of queries may read and some not, and those that all may."""
    numbers = torch.arange(-(-len(order) // block), device=order.device)
    first = numbers * block
    last = (first + block).clamp(max=end) - 1
    is_asked, is_whole = first < end, last == first + block - 1
    last = last.clamp(min=0)
    # texts follow each other, so these are of the first text and up to the last place
    begin = starts[first] // block
    count = torch.where(is_asked, order[last] // block + 1 - begin, 0)
    # all may read the last text up to the first place
    full_begin = -(-starts[last] // block)
    full = torch.where(is_whole, (order[first] + 1) // block - full_begin, 0).clamp(min=0)
    listed = begin[:, None] + numbers
    listed = listed + torch.where(listed >= full_begin[:, None], full[:, None], 0)
    return _listed(count - full, listed), _listed(full, full_begin[:, None] + numbers)


def _listed(sizes: Tensor, indices: Tensor) -> _Listed:
    return _Listed(sizes.int()[None, None], indices.clamp(max=len(sizes) - 1).int()[None, None])
