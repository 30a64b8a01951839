"""Experts drawn from a token's id alone (Roller et al. 2021), by integer arithmetic on its device."""

from __future__ import annotations

import torch
from torch import Tensor

_32_BITS = 0xFFFFFFFF
# odd and below 2^31: a product with 32 bits stays within int64
_FIRST, _SECOND, _STEP = 0x7FEB352D, 0x31848BAB, 0x1E3779B1


def hashed_experts(token_ids: Tensor, num_experts: int, top_k: int, seed: int) -> Tensor:
    """K distinct experts for each token id: those whose mix with the id is largest.

    token_ids: (N,);  returns (N, K) int64
    """
    experts = torch.arange(num_experts, device=token_ids.device)
    seeded = _mix(token_ids.long() + _STEP * (seed + 1))  # (N,)
    scores = _mix(seeded[:, None] + _STEP * experts)  # (N, E)
    return scores.topk(top_k, dim=-1).indices


def _mix(x: Tensor) -> Tensor:
    """Spread every bit of x over 32 bits: shifts and products in turn."""
    x = x & _32_BITS
    x = ((x ^ (x >> 16)) * _FIRST) & _32_BITS
    x = ((x ^ (x >> 15)) * _SECOND) & _32_BITS
    return x ^ (x >> 16)
