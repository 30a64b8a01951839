"""`convolve` of four taps, forward and backward, each as one Triton kernel that reads and writes rows once.

A program walks down some rows of some channels, four rows a step, and keeps the rows it has to look back at
in registers. Backward it keeps the gradients before SiLU too, which reach three rows up, and sums those of
the taps as it goes: a sum a program, in float32, always in the same order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_WIDTH = 4
# rows of a program; backward it looks at four more
_ROWS = 128
# channels, warps; which is best depends on the card: it is tried
_TRIED = ((128, 1), (256, 1), (256, 2), (512, 4))


def parts(x: Tensor) -> int:
    """Into how many sums of its rows the gradient of a tap is cut; x: (B, T, C)."""
    return x.shape[0] * ((x.shape[1] + _ROWS - 1) // _ROWS)


def forward(x: Tensor, taps: Tensor) -> Tensor:
    """See `convolve`; x: (B, T, C), taps: (C, 4), both contiguous."""
    out = torch.empty_like(x)
    _forward[_grid(x)](x, taps, out, *x.shape[1:], parts(x[:1]), ROWS=_ROWS)
    return out


def backward(grad: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients to x, (B, T, C), and to the taps by part, (parts, 4, C) float32; all contiguous."""
    to_x, to_taps = torch.empty_like(x), x.new_empty(parts(x), _WIDTH, x.shape[2], dtype=torch.float32)
    _backward[_grid(x)](grad, x, taps, to_x, to_taps, *x.shape[1:], parts(x[:1]), ROWS=_ROWS)
    return to_x, to_taps


def _grid(x: Tensor):  # type: ignore[no-untyped-def]
    return lambda chosen: (triton.cdiv(x.shape[2], chosen["COLUMNS"]), parts(x))


def _tried() -> list[triton.Config]:
    # an interpreter has no device to time it on
    tried = _TRIED[:1] if triton.knobs.runtime.interpret else _TRIED
    return [triton.Config({"COLUMNS": columns}, num_warps=warps) for columns, warps in tried]


@triton.jit
def _row(of, row, length, channels, columns):  # type: ignore[no-untyped-def]
    """A row in float32, zeros where the text has none."""
    is_there = (columns < channels) & (row >= 0) & (row < length)
    return tl.load(of + row.to(tl.int64) * channels + columns, mask=is_there, other=0.0).to(tl.float32)


@triton.jit
def _put(of, row, first, end, channels, columns, value):  # type: ignore[no-untyped-def]
    """Write a row that lies in [first, end)."""
    is_there = (columns < channels) & (row >= first) & (row < end)
    tl.store(of + row.to(tl.int64) * channels + columns, value.to(of.dtype.element_ty), mask=is_there)


@triton.jit
def _silu(x):  # type: ignore[no-untyped-def]
    return x / (1 + tl.exp(-x))


@triton.jit
def _slope(x):  # type: ignore[no-untyped-def]
    """Of SiLU."""
    share = 1 / (1 + tl.exp(-x))
    return share * (1 + x * (1 - share))


@triton.autotune(configs=_tried(), key=["channels"])
@triton.jit(do_not_specialize=["length", "spans"])
def _forward(  # type: ignore[no-untyped-def]
    x, taps, out, length, channels, spans, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    text = (tl.program_id(1) // spans).to(tl.int64) * length * channels
    first = tl.program_id(1) % spans * ROWS
    end = tl.minimum(first + ROWS, length)
    x, out = x + text, out + text
    is_there = columns < channels
    w0 = tl.load(taps + columns * 4, mask=is_there, other=0.0).to(tl.float32)
    w1 = tl.load(taps + columns * 4 + 1, mask=is_there, other=0.0).to(tl.float32)
    w2 = tl.load(taps + columns * 4 + 2, mask=is_there, other=0.0).to(tl.float32)
    w3 = tl.load(taps + columns * 4 + 3, mask=is_there, other=0.0).to(tl.float32)
    far = _row(x, first - 3, length, channels, columns)
    mid = _row(x, first - 2, length, channels, columns)
    near = _row(x, first - 1, length, channels, columns)
    for step in range(0, ROWS, 4):
        row = first + step
        a = _row(x, row, length, channels, columns)
        b = _row(x, row + 1, length, channels, columns)
        c = _row(x, row + 2, length, channels, columns)
        d = _row(x, row + 3, length, channels, columns)
        _put(out, row, first, end, channels, columns, _silu(w0 * far + w1 * mid + w2 * near + w3 * a))
        _put(out, row + 1, first, end, channels, columns, _silu(w0 * mid + w1 * near + w2 * a + w3 * b))
        _put(out, row + 2, first, end, channels, columns, _silu(w0 * near + w1 * a + w2 * b + w3 * c))
        _put(out, row + 3, first, end, channels, columns, _silu(w0 * a + w1 * b + w2 * c + w3 * d))
        far, mid, near = b, c, d


@triton.autotune(configs=_tried(), key=["channels"])
@triton.jit(do_not_specialize=["length", "spans"])
def _backward(  # type: ignore[no-untyped-def]
    grad, x, taps, to_x, to_taps, length, channels, spans, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    text = (tl.program_id(1) // spans).to(tl.int64) * length * channels
    first = tl.program_id(1) % spans * ROWS
    end = tl.minimum(first + ROWS, length)
    grad, x, to_x = grad + text, x + text, to_x + text
    is_there = columns < channels
    w0 = tl.load(taps + columns * 4, mask=is_there, other=0.0).to(tl.float32)
    w1 = tl.load(taps + columns * 4 + 1, mask=is_there, other=0.0).to(tl.float32)
    w2 = tl.load(taps + columns * 4 + 2, mask=is_there, other=0.0).to(tl.float32)
    w3 = tl.load(taps + columns * 4 + 3, mask=is_there, other=0.0).to(tl.float32)
    far = _row(x, first - 3, length, channels, columns)
    mid = _row(x, first - 2, length, channels, columns)
    near = _row(x, first - 1, length, channels, columns)
    # gradients before SiLU of the three rows above; what they would reach is another program's
    none = tl.full((COLUMNS,), 0.0, tl.float32)
    p, q, r = none, none, none
    to0, to1, to2, to3 = none, none, none, none
    for step in range(0, ROWS + 4, 4):
        row = first + step
        a = _row(x, row, length, channels, columns)
        b = _row(x, row + 1, length, channels, columns)
        c = _row(x, row + 2, length, channels, columns)
        d = _row(x, row + 3, length, channels, columns)
        # beyond the text there are zeros, and of the next program's rows nothing is summed here
        e = _row(grad, row, length, channels, columns) * _slope(w0 * far + w1 * mid + w2 * near + w3 * a)
        f = _row(grad, row + 1, length, channels, columns) * _slope(w0 * mid + w1 * near + w2 * a + w3 * b)
        g = _row(grad, row + 2, length, channels, columns) * _slope(w0 * near + w1 * a + w2 * b + w3 * c)
        h = _row(grad, row + 3, length, channels, columns) * _slope(w0 * a + w1 * b + w2 * c + w3 * d)
        if step < ROWS:
            to0 += e * far + f * mid + g * near + h * a
            to1 += e * mid + f * near + g * a + h * b
            to2 += e * near + f * a + g * b + h * c
            to3 += e * a + f * b + g * c + h * d
        _put(to_x, row - 3, first, end, channels, columns, w3 * p + w2 * q + w1 * r + w0 * e)
        _put(to_x, row - 2, first, end, channels, columns, w3 * q + w2 * r + w1 * e + w0 * f)
        _put(to_x, row - 1, first, end, channels, columns, w3 * r + w2 * e + w1 * f + w0 * g)
        _put(to_x, row, first, end, channels, columns, w3 * e + w2 * f + w1 * g + w0 * h)
        far, mid, near = b, c, d
        p, q, r = f, g, h
    sums = to_taps + tl.program_id(1).to(tl.int64) * 4 * channels + columns
    tl.store(sums, to0, mask=is_there)
    tl.store(sums + channels, to1, mask=is_there)
    tl.store(sums + 2 * channels, to2, mask=is_there)
    tl.store(sums + 3 * channels, to3, mask=is_there)
