"""A float32 number as the bf16 one nearest to it, and 16 bits more.

Weights that are trained in bf16 keep what an update adds to them in those bits: together they are the float32
master weight, and take the memory of that alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def split(value: Tensor) -> tuple[Tensor, Tensor]:
    """value: float32, finite;  returns the nearest bf16 (ties away from zero), and int16 bits of the rest.

    Of nan the nearest may be any number, though both together are nan.
    """
    bits = value.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def join(near: Tensor, rest: Tensor) -> Tensor:
    """The float32 that `split` came from, bit for bit."""
    return ((near.view(torch.int16).to(torch.int32) << 16) + rest.to(torch.int32)).view(torch.float32)
