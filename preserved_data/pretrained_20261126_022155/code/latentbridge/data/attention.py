"""Attention for two cases that transformers has no fast path for: one new token, and rows laid end to end."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "latentbridge"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it; query: (B, H, T, D), key and value: (B, Hkv, S, D); gives (B, T, H, D).

    One new token: the query heads that share a key head are looked at as so many queries of it, so that keys
    and values are not copied for each.
    cu_seq_lens_q, max_length_q (among `others`): rows of one batch lie end to end, and B is 1
    """
    B, H, T, D = query.shape
    shared = H // key.shape[1]
    if others.get("cu_seq_lens_q") is not None:
        ends, longest = others["cu_seq_lens_q"], others["max_length_q"]
        return _packed(query, key, value, ends, longest, scaling), None
    if T > 1 or shared == 1:
        found: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )[0]
        return found, None
    packed = query.reshape(B, H // shared, shared, D)
    read = F.scaled_dot_product_attention(packed, key, value, attn_mask=attention_mask, scale=scaling)
    return read.reshape(B, 1, H, D), None


def can_pack(query: Tensor) -> bool:
    """Whether there is a kernel for rows laid end to end."""
    return _RAGGED is not None and query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)


def _packed(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scaling: float | None
) -> Tensor:
    """Causal attention within each row: (1, H, N, D) to (1, N, H, D); ends: (rows + 1,) int32."""
    own = query.shape[-1] ** -0.5
    if scaling not in (None, own):
        query = query * (scaling / own)  # the kernel only knows its own
    shared = query.shape[1] // key.shape[1]
    rows = [block[0].transpose(0, 1) for block in (query, key, value)]  # (N, H, D) each
    rows[1:] = [block.repeat_interleave(shared, dim=1) for block in rows[1:]]
    read: Tensor = _RAGGED(*rows, ends, ends, longest, longest)
    return read[None]


def _ragged_kernel() -> Callable[..., Tensor] | None:
    """Torch's own, told to be causal in the words of its version; None where it has none."""
    try:
        module: Any = importlib.import_module("torch.nn.attention.varlen")
    except ImportError:
        return None
    known = inspect.signature(module.varlen_attn).parameters
    words: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return partial(module.varlen_attn, **words)


_RAGGED: Any = _ragged_kernel()

AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
