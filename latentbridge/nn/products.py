"""Multiply rows by the matrix of their own expert: grouped kernel, one product a segment, or one batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentbridge.nn.experts import Experts, Product

# older torch has the same function under its private name only
_grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm


def grouped_runs(x: Tensor, experts: Experts) -> bool:
    """Whether the grouped kernel takes these: bf16 on a GPU, rows in whole blocks of 16 bytes.

    Any other dtype makes torch loop over the groups on the host; odd widths it refuses.
    """
    wide = experts.up.shape[2]
    return _kernel_takes(x, experts.dim, experts.inner, wide)


def _kernel_takes(x: Tensor, *widths: int) -> bool:
    aligned = all(width * x.element_size() % 16 == 0 for width in widths)
    return x.is_cuda and x.dtype == torch.bfloat16 and aligned


def leading_product(rows: Tensor, weight: Tensor, bias: Tensor | None, end: Tensor) -> Tensor:
    """The first rows times a matrix, and 0 for the rest, whose own gradient is 0; rows: (R, I), all finite.

    weight: (O, I);  end: (1,) int32, how many, which is never read back;  returns (R, O)
    """
    out: Tensor = _Leading.apply(rows, weight.to(rows.dtype), end)  # type: ignore[no-untyped-call]
    return out if bias is None else torch.where(_is_leading(rows, end), out + bias.to(rows.dtype), 0)


def _is_leading(rows: Tensor, end: Tensor) -> Tensor:
    return (torch.arange(len(rows), device=rows.device) < end)[:, None]


def _leading(rows: Tensor, matrix: Tensor, end: Tensor) -> Tensor:
    """rows: (R, I), matrix: (I, O)."""
    takes = _kernel_takes(rows, *matrix.shape)
    # what the kernel does not compute it does not write either
    found = _grouped_mm(rows, matrix[None], offs=end) if takes else rows @ matrix
    return torch.where(_is_leading(rows, end), found, 0)


class _Leading(torch.autograd.Function):
    """The weight's gradient is a product of all rows, of which the rest teaches 0: the kernel, which does not
    cut a long sum into parts, takes three times as long for the half of them at 768 by 768 (H200)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, end: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, end)
        return _leading(rows, weight.T, end)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight, end = ctx.saved_tensors
        above = torch.where(_is_leading(above, end), above, 0)
        return _leading(above, weight, end), above.T @ rows, None


def grouped_product(sorted_experts: Tensor, ends: Tensor) -> Product:
    """One kernel for all experts; rows sorted by expert, counts stay on the device.

    sorted_experts: (R,) expert of each row;  ends: (E,) int32
    """

    def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = _grouped_mm(rows, weight.to(rows.dtype), offs=ends)
        # the kernel takes no bias
        return out if bias is None else out + _RowOfEach.apply(bias.to(rows.dtype), sorted_experts)  # type: ignore[no-untyped-call]

    return product


def segment_product(ends: Tensor) -> Product:
    """One product for each expert; rows sorted by expert. Reads the counts back: meant for a CPU."""
    bounds = [0, *ends.tolist()]

    def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else bias.to(rows.dtype)
        out: Tensor = _Segments.apply(rows, weight.to(rows.dtype), bias, bounds)  # type: ignore[no-untyped-call]
        return out

    return product


def batched_product(num_experts: int) -> Product:
    """One batched product; rows lie in C slots an expert, expert after expert."""

    def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        slots = rows.view(num_experts, -1, rows.shape[1])  # (E, C, I)
        weight = weight.to(rows.dtype)
        if bias is None:
            return torch.bmm(slots, weight).flatten(0, 1)
        return torch.baddbmm(bias.to(rows.dtype)[:, None], slots, weight).flatten(0, 1)

    return product


class _RowOfEach(torch.autograd.Function):
    """table[rows]. Its gradient is a product: no R rows are added onto E, one atomic add after the other."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.length = len(table)
        return table.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (rows,) = ctx.saved_tensors
        member = rows == torch.arange(ctx.length, device=rows.device)[:, None]  # (E, R)
        return member.to(grad.dtype) @ grad, None


class _Segments(torch.autograd.Function):
    """Rows bounds[e]:bounds[e+1] times weight[e]. Written out: indexing weight[e] under autograd would make
    a zero gradient of all experts for each one, 80 % of the time at E=32, D=256."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, bounds: list[int]) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.bounds, ctx.has_bias = bounds, bias is not None
        out = rows.new_empty(len(rows), weight.shape[2])
        for expert, (start, end) in enumerate(pairwise(bounds)):
            if bias is None:
                torch.mm(rows[start:end], weight[expert], out=out[start:end])
            else:
                torch.addmm(bias[expert], rows[start:end], weight[expert], out=out[start:end])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_rows, grad_weight = torch.empty_like(rows), torch.empty_like(weight)
        grad_bias = grad.new_empty(len(weight), weight.shape[2]) if ctx.has_bias else None
        for expert, (start, end) in enumerate(pairwise(ctx.bounds)):
            part = grad[start:end]
            torch.mm(part, weight[expert].T, out=grad_rows[start:end])
            torch.mm(rows[start:end].T, part, out=grad_weight[expert])
            if grad_bias is not None:
                torch.sum(part, dim=0, out=grad_bias[expert])
        return grad_rows, grad_weight, grad_bias, None
