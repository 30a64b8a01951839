"""A product with float32 results, on the matrix units where its factors are bf16."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def float_product(x: Tensor, weight: Tensor) -> Tensor:
    """x times weight transposed, summed in float32; x: (N, I), weight: (O, I), returns (N, O) float32."""
    if x.is_cuda and x.dtype == weight.dtype == torch.bfloat16:
        return _Product.apply(x, weight)  # type: ignore[no-untyped-call, no-any-return]
    return F.linear(x.float(), weight.float())


class _Product(torch.autograd.Function):
    """Products of bf16 numbers are exact in float32: this is what upcast factors would give."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.mm(x, weight.T, out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        # what bf16 leaves of a float32 gradient goes beside it: 16 bits of it, as two factors
        high = grad.to(x.dtype)
        both = torch.cat([high, (grad - high.float()).to(x.dtype)], dim=1)  # (N, 2 O)
        grad_x = both @ torch.cat([weight, weight])
        grad_weight = torch.mm(both.T, x, out_dtype=torch.float32).view(2, *weight.shape).sum(dim=0)
        return grad_x, grad_weight.to(weight.dtype)
