"""Rotary positions (Su et al. 2021): a query and a key meet by how far apart they are."""

from __future__ import annotations

import torch
from torch import Tensor

_BASE = 10_000.0


def rotations(length: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of each place's angles, (T, width / 2) each; width: of a head, even.

    Always float32 and never a buffer: rounded to bf16, places above 256 would fall together.
    """
    rates = _BASE ** -(torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * rates
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair (i, i + width / 2) of x by its place's angles; x: (..., T, width)."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
    return turned.to(x.dtype)
