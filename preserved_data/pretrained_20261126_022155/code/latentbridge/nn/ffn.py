"""Position-wise feed-forward layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """Gated feed-forward layer: down(silu(gate(x)) * value(x)) (Shazeer 2020).

    inner: hidden width; None takes floor(8 D / 3), which costs as much as a plain layer of 4 D
    """

    def __init__(self, dim: int, inner: int | None = None, bias: bool = True) -> None:
        super().__init__()
        inner = inner or 8 * dim // 3
        # gate and value in one product: half the launches
        self.gate_value = nn.Linear(dim, 2 * inner, bias=bias)
        self.down = nn.Linear(inner, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D); returns the same shape."""
        gate, value = self.gate_value(x).chunk(2, dim=-1)  # (..., F) each
        out: Tensor = self.down(F.silu(gate) * value)
        return out


class GELUFeedForward(nn.Module):
    """Two layers with a GELU between them: `dim` to `inner` to `out`; dropout acts on the inner ones."""

    def __init__(self, dim: int, inner: int, out: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(dim, inner)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim);  returns (..., out)."""
        out: Tensor = self.down(self.dropout(F.gelu(self.up(x), approximate="tanh")))
        return out
