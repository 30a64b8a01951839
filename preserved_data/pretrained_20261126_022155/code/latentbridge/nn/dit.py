"""Parts of a diffusion transformer (Peebles and Xie 2023): layers that a condition vector steers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentbridge.nn.attention import MultiHeadAttention
from latentbridge.nn.ffn import GELUFeedForward
from latentbridge.nn.norm import EPS

# times lie in 0..1; unscaled, the slow half of the waves would not move at all
_TIME_SCALE = 1000.0
_LONGEST_PERIOD = 10_000.0


class TimeEmbedding(nn.Module):
    """A time in 0..1 as a vector of width D: cosines and sines, then two layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(dim, 4 * dim)
        self.second = nn.Linear(4 * dim, dim)

    def forward(self, time: Tensor) -> Tensor:
        """time: (B,);  returns (B, D)."""
        half = self.first.in_features // 2
        places = torch.arange(half, device=time.device) / half
        angles = _TIME_SCALE * time.float()[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * places)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.first.weight.dtype)
        embedded: Tensor = self.second(F.silu(self.first(waves)))
        return embedded


class DiTBlock(nn.Module):
    """Self-attention and an FFN whose scale, shift and gate come from a condition; at first the identity.

    The layer that makes them starts at zero (AdaLN-Zero), so both gates are closed until it learns.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads, dropout=dropout)
        self.ffn = GELUFeedForward(dim, 4 * dim, dim, dropout)
        self.modulation = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, Q, D);  condition: (B, D);  returns (B, Q, D)."""
        made = self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, dim=-1)  # (B, 1, D) each
        shift_read, scale_read, gate_read, shift_ffn, scale_ffn, gate_ffn = made
        read = _modulate(x, shift_read, scale_read)
        x = x + gate_read * self.attention(read, read)
        x = x + gate_ffn * self.ffn(_modulate(x, shift_ffn, scale_ffn))
        return x


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift
