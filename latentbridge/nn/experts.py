"""The feed-forward experts of a mixture, stacked: one tensor a layer, whatever the number of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentbridge.nn.exchange import Peers, share
from latentbridge.nn.gelu import gelu

# multiplies each row by the matrix of its own expert: rows, (E, I, O), (E, O) or None -> rows of width O
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Experts(nn.Module):
    """E feed-forward layers D -> F -> D; which row meets which expert is the caller's `product`.

    gated: down(act(gate(x)) * value(x)) instead of down(act(up(x)));  dropout acts on the F inner ones
    peers: ranks that share them; then the tensors here are this rank's E / P
    """

    def __init__(
        self,
        num_experts: int,
        dim: int,
        inner: int,
        activation: str = "gelu",
        gated: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        peers: Peers | None = None,
    ) -> None:
        super().__init__()
        if activation not in ("gelu", "silu"):
            raise ValueError(f"activation is {activation!r}; it must be gelu or silu")
        self.num_experts, self.dim, self.inner = num_experts, dim, inner
        self.activation, self.gated, self.peers = activation, gated, peers
        self.dropout = nn.Dropout(dropout)
        wide = 2 * inner if gated else inner
        # each is drawn as a dense layer of its own fan-in: an initialiser that sees three axes counts the
        # experts into the fan, and weights shrink as E grows
        self.up = self._start((num_experts, dim, wide), fan_in=dim)
        self.down = self._start((num_experts, inner, dim), fan_in=inner)
        self.up_bias = self._start((num_experts, wide), fan_in=dim) if bias else None
        self.down_bias = self._start((num_experts, dim), fan_in=inner) if bias else None

    def forward(self, rows: Tensor, product: Product) -> Tensor:
        """rows: (R, D), in whatever order `product` expects;  returns (R, D)."""
        hidden = self._activate(product(rows, self.up, self.up_bias))  # (R, F)
        out: Tensor = product(self.dropout(hidden), self.down, self.down_bias)
        return out

    def one(self, expert: int, rows: Tensor) -> Tensor:
        """Send all rows through a single expert; rows: (R, D), returns (R, D)."""

        def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.linear(rows, weight[expert].T, None if bias is None else bias[expert])

        out: Tensor = self(rows, product)
        return out

    def _start(self, shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
        """All are drawn wherever some are kept: an expert starts the same, however many ranks share them."""
        whole = _uniform(shape, fan_in)
        return whole if self.peers is None else share(whole, self.peers)

    def _activate(self, hidden: Tensor) -> Tensor:
        gate, value = hidden.chunk(2, dim=-1) if self.gated else (hidden, None)
        active = F.silu(gate) if self.activation == "silu" else gelu(gate)
        return active if value is None else active * value


def _uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """torch's own rule for a dense layer: uniform within 1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
