"""Root-mean-square scale: a norm layer, and setting a vector's scale to a given value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# fixed: torch's own default is the dtype's resolution, which in bf16 is 0.008 and damps small inputs
EPS = 1e-6


class RMSNorm(nn.Module):
    """Scale every vector to unit root mean square, then by one learned weight a coordinate."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D); returns the same shape."""
        return F.rms_norm(x, self.weight.shape, self.weight, EPS)


def rms(x: Tensor) -> Tensor:
    """Root mean square over the last axis, in float32; x: (..., D), returns (..., 1)."""
    return x.float().square().mean(dim=-1, keepdim=True).sqrt()


def match_rms(x: Tensor, target_rms: float) -> Tensor:
    """Give every vector the root mean square `target_rms`, whatever it was; x: (..., D).

    The scale is part of the graph: only the direction of x matters, so only that is trained.
    """
    # 1e-30 guards an all-zero vector only; a real one is scaled however far that is
    scale = target_rms * (x.float().square().mean(dim=-1, keepdim=True) + 1e-30).rsqrt()
    return (x.float() * scale).to(x.dtype)
