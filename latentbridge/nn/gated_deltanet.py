"""A decoder's mixer in linear time: the gated delta rule between short convolutions and a gated norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentbridge.nn.gated_delta import gated_delta_rule, gated_delta_step
from latentbridge.nn.norm import RMSNorm
from latentbridge.nn.short_convolution import Convolve, ShortConvolution, convolve
from latentbridge.nn.takers import Takers

Rule = Callable[..., tuple[Tensor, Tensor]]
Through = Callable[[nn.Linear, Tensor], Tensor]

# A and the step of a head, log decay = -A step, start within these (Gu and Dao 2023, arXiv 2312.00752)
_MAX_A = 16.0
_STEPS = (1e-3, 1e-1)


class DeltaState(NamedTuple):
    """All that a mixer keeps of what it has read, of one size however much that was.

    window: (B, 3, 2HK + HV), inputs of the convolution;  memory: (B, H, K, V) float32
    """

    window: Tensor
    memory: Tensor


class GatedDeltaNet(nn.Module):
    """Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464): reads a sequence causally, without positions.

    key_width, value_width: K and V of each head;  rule, convolve: what computes them, see the backends beside
    init_std: matrices start as N(0, init_std); None: as torch starts them
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        key_width: int,
        value_width: int,
        *,
        rule: Rule = gated_delta_rule,
        convolve: Convolve = convolve,
        init_std: float | None = 0.02,
    ) -> None:
        super().__init__()
        self.heads, self.rule = heads, rule
        keys, values = heads * key_width, heads * value_width
        self.widths = [keys, keys, values]
        self.query_key_value = nn.Linear(dim, sum(self.widths), bias=False)
        self.gate = nn.Linear(dim, values, bias=False)
        self.beta_decay = nn.Linear(dim, 2 * heads, bias=False)
        self.convolution = ShortConvolution(sum(self.widths), convolve=convolve)
        self.A_log = nn.Parameter((_MAX_A * (1 - torch.rand(heads))).log())
        low, high = (math.log(step) for step in _STEPS)
        step = (low + (high - low) * torch.rand(heads)).exp()
        # softplus of it is the step
        self.dt_bias = nn.Parameter(step + (-torch.expm1(-step)).log())
        self.norm = RMSNorm(value_width)
        self.out = nn.Linear(values, dim, bias=False)
        if init_std is not None:
            for linear in (self.query_key_value, self.gate, self.beta_decay, self.out):
                nn.init.normal_(linear.weight, std=init_std)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x: (B, T, D), returns the same shape;  rotary positions are not looked at."""
        return self.prefill(x)[0]

    def at(self, x: Tensor, turns: tuple[Tensor, Tensor] | None, takers: Takers) -> Tensor:
        """What `forward` returns for some tokens, and 0 for others: the state sees all, they are read out."""
        *inputs, _ = self._inputs(x, None)
        read, _ = self.rule(*inputs, state=None)
        rows = self._output(takers.take(x), takers.take(read), takers.through)  # (R, D)
        return takers.put(rows, *x.shape[:2])

    def start(self, batch: int) -> DeltaState:
        """The state before a first token."""
        window = self.convolution.start(batch)
        wide = torch.promote_types(window.dtype, torch.float32)
        key_width, value_width = (width // self.heads for width in self.widths[1:])
        memory = torch.zeros(batch, self.heads, key_width, value_width, dtype=wide, device=window.device)
        return DeltaState(window, memory)

    def go_on(
        self, x: Tensor, turns: tuple[Tensor, Tensor] | None, state: DeltaState | None
    ) -> tuple[Tensor, DeltaState]:
        """`prefill`, of a single token `step`; rotary positions are not looked at."""
        return self.prefill(x, state) if state is None or x.shape[1] > 1 else self.step(x, state)

    def prefill(self, x: Tensor, state: DeltaState | None = None) -> tuple[Tensor, DeltaState]:
        """Read many tokens at once, after what `state` holds; x: (B, T, D), returns the same shape."""
        *inputs, window = self._inputs(x, None if state is None else state.window)
        read, memory = self.rule(*inputs, state=None if state is None else state.memory)
        # a view would keep what the convolution read of the whole text
        return self._output(x, read), DeltaState(window.clone(), memory)

    def step(self, x: Tensor, state: DeltaState) -> tuple[Tensor, DeltaState]:
        """Read one token; x: (B, 1, D), returns the same shape."""
        *inputs, window = self._inputs(x, state.window)
        q, k, v, log_decay, beta = (part.squeeze(1) for part in inputs)
        read, memory = gated_delta_step(q, k, v, log_decay, beta, state.memory)
        return self._output(x, read.unsqueeze(1)), DeltaState(window, memory)

    def _inputs(self, x: Tensor, window: Tensor | None) -> tuple[Tensor, ...]:
        """Query, key, value, log decay and beta of each token, as the rule wants them, and a window."""
        mixed, window = self.convolution(self.query_key_value(x), window)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)) for part in mixed.split(self.widths, dim=-1)
        )
        strength, step = self.beta_decay(x).chunk(2, dim=-1)  # (B, T, H) each
        # in float32: over a chunk the decays are multiplied
        wide = torch.promote_types(x.dtype, torch.float32)
        log_decay = -self.A_log.to(wide).exp() * F.softplus(step.to(wide) + self.dt_bias.to(wide))
        return _unit(query), _unit(key), value, log_decay, strength.sigmoid(), window

    def _output(self, x: Tensor, read: Tensor, through: Through = nn.Module.__call__) -> Tensor:
        """x: (..., D), read: (..., H, V), returns (..., D);  through: what brings rows through a layer."""
        gate = through(self.gate, x).view(read.shape)
        return through(self.out, (self.norm(read) * F.silu(gate)).flatten(-2))


def _unit(x: Tensor) -> Tensor:
    """Vectors of length 1, those near 0 shorter; x: (..., K)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * (wide.square().sum(dim=-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)
