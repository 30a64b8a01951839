"""A few taps back in time, channel by channel, then SiLU: how a linear-time layer sees what is near."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ShortConvolution(nn.Module):
    """silu(sum over w of taps[:, w] x[t - width + 1 + w]); before the first token there are zeros."""

    def __init__(self, channels: int, width: int = 4) -> None:
        super().__init__()
        self.width = width
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
        seen = torch.cat([self.start(x.shape[0]) if window is None else window, x], dim=1)
        length = x.shape[1]
        # shifted products and not conv1d, whose depthwise kernels compile to nothing smaller; float32 sums
        wide = torch.promote_types(x.dtype, torch.float32)
        taps = self.taps.to(wide)
        out = seen[:, :length].to(wide) * taps[:, 0]
        for w in range(1, self.width):
            out = out + seen[:, w : w + length].to(wide) * taps[:, w]
        return F.silu(out).to(x.dtype), seen[:, length:]
