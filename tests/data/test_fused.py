"""A frozen model's parts are replaced only by what says the same."""

from __future__ import annotations

import torch
from torch import nn

from latentbridge.data.fused import fuse


class PlainRMSNorm(nn.Module):
    """As Llama's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, width))
        self.variance_epsilon = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (x * scale)


class ShiftedRMSNorm(PlainRMSNorm):
    """As Gemma's, which adds 1 to the weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / self.weight * (1 + self.weight)


def test_a_part_is_replaced_only_where_it_says_the_same():
    model = nn.Sequential(PlainRMSNorm(6), ShiftedRMSNorm(10))
    x = [torch.randn(3, 6), torch.randn(3, 10)]
    before = [part(rows) for part, rows in zip(model, x, strict=True)]

    fuse(model)

    assert ["forward" in vars(part) for part in model] == [True, False]
    for part, rows, expected in zip(model, x, before, strict=True):
        torch.testing.assert_close(part(rows), expected)
