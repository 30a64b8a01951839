"""A few taps back in time, channel by channel, then SiLU: how a linear-time layer sees what is near.

In torch it is shifted products, which a compiler makes one kernel of; the sums over time that its backward
needs for the taps it writes badly. With Triton it is one launch forward and one backward, see
nn/convolution_kernel.py, and opaque to the compiler.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Convolve = Callable[[Tensor, Tensor], Tensor]

# what the kernel takes: so many taps, of numbers of so many bytes
_TAKEN_WIDTH, _TAKEN_BYTES = 4, (2, 4)


def convolve(x: Tensor, taps: Tensor) -> Tensor:
    """silu(sum over w of taps[:, w] x[t - width + 1 + w]); before the first token there are zeros.

    x: (B, T, C);  taps: (C, width);  returns (B, T, C), summed in float32 at least
    """
    width, length = taps.shape[1], x.shape[1]
    # shifted products and not conv1d, whose depthwise kernels compile to nothing smaller
    seen = F.pad(x, (0, 0, width - 1, 0))
    wide = torch.promote_types(x.dtype, torch.float32)
    taps = taps.to(wide)
    out = seen[:, :length].to(wide) * taps[:, 0]
    for w in range(1, width):
        out = out + seen[:, w : w + length].to(wide) * taps[:, w]
    return F.silu(out).to(x.dtype)


def convolve_by_triton(x: Tensor, taps: Tensor) -> Tensor:
    """`convolve` by one kernel, for the widths and types that it takes."""
    # told here and not beside the kernel: torch.compile traces no import, and would break its graph at one
    if taps.shape[1] != _TAKEN_WIDTH or x.element_size() not in _TAKEN_BYTES:
        return convolve(x, taps)
    out: Tensor = _convolved(x.contiguous(), taps.contiguous())
    return out


class ShortConvolution(nn.Module):
    """`convolve` with taps of its own, of a whole text or of what comes after a part of it.

    convolve: what computes it
    """

    def __init__(self, channels: int, width: int = 4, convolve: Convolve = convolve) -> None:
        super().__init__()
        self.width, self.convolve = width, convolve
        # channels start as those of nn.Conv1d do
        bound = width**-0.5
        self.taps = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))

    def start(self, batch: int) -> Tensor:
        """The window before a first token: (B, width - 1, C) of zeros."""
        return self.taps.new_zeros(batch, self.width - 1, self.taps.shape[0])

    def forward(self, x: Tensor, window: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: (B, T, C), any T;  window: (B, width - 1, C), what was read before, None for nothing.

        returns (B, T, C), and the window of what comes next
        """
        before, length = self.width - 1, x.shape[1]
        if window is None:
            # cut first: a pad by nothing copies the whole text
            last = F.pad(x[:, max(length - before, 0) :], (0, 0, max(before - length, 0), 0))
            return self.convolve(x, self.taps), last
        # a first window is of the taps' type, which need not be that of what is read
        seen = torch.cat([window.to(x.dtype), x], dim=1)
        return self.convolve(seen, self.taps)[:, before:], seen[:, length:]


@torch.library.custom_op("latentbridge::short_convolution", mutates_args=())
def _convolved(x: Tensor, taps: Tensor) -> Tensor:
    out: Tensor = _kernel().forward(x, taps)
    return out


@torch.library.custom_op("latentbridge::short_convolution_backward", mutates_args=())
def _convolved_backward(grad: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients to x, and in float32 to each tap by program: (programs, width, C)."""
    found: tuple[Tensor, Tensor] = _kernel().backward(grad, x, taps)
    return found


@_convolved.register_fake
def _(x: Tensor, taps: Tensor) -> Tensor:
    return torch.empty_like(x)


@_convolved_backward.register_fake
def _(grad: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    parts = _kernel().parts(x)
    return torch.empty_like(x), x.new_empty(parts, taps.shape[1], taps.shape[0], dtype=torch.float32)


def _kernel() -> Any:
    return importlib.import_module("latentbridge.nn.convolution_kernel")


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, taps = ctx.saved_tensors
    to_x, to_taps = _convolved_backward(grad.contiguous(), x, taps)
    return to_x, to_taps.sum(dim=0).mT.to(taps.dtype)


_convolved.register_autograd(_differentiate, setup_context=_remember)
