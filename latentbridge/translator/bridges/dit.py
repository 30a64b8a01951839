"""The DiT bridge: a diffusion transformer moves noise to soft tokens, steered by what the source said.

Rectified flow in the space of the target's embeddings, in units of their scale: both the noise and the
teacher's vectors have root mean square 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentbridge.nn.attention import MultiHeadAttention
from latentbridge.nn.dit import DiTBlock, TimeEmbedding
from latentbridge.nn.ffn import GELUFeedForward
from latentbridge.nn.flow import Velocity, flow_error_per_row, integrate
from latentbridge.train.flops import TRAINED, TRAINED_FIRST, matrix_size
from latentbridge.translator.bridges.base import Bridge, freeze_idle_query
from latentbridge.translator.config import BridgeConfig, DiTConfig

_POOL_HEADS = 8
_CONDITION_INNER = 4


class MeanPool(nn.Module):
    """The mean of a sequence's real positions."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, S, D);  mask: (B, S) bool;  returns (B, D)."""
        weights = mask.unsqueeze(-1).to(x.dtype)
        return (x * weights).sum(dim=1) / weights.sum(dim=1)


class AttentionPool(nn.Module):
    """One learned query reads the sequence."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.attention = MultiHeadAttention(dim, next(h for h in range(_POOL_HEADS, 0, -1) if dim % h == 0))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, S, D);  mask: (B, S) bool;  returns (B, D)."""
        read: Tensor = self.attention(self.query.expand(len(x), -1, -1), x, mask)
        return read[:, 0]


class DiTBridge(Bridge):
    """Soft tokens are where the flow, which starts from noise, arrives."""

    draws_noise = True

    def __init__(self, config: BridgeConfig, source_dim: int, target_dim: int, target_rms: float) -> None:
        super().__init__(config, target_dim, target_rms)
        self.dit = config.dit or DiTConfig()
        dim = config.dim
        self.align = nn.Linear(source_dim, source_dim, bias=False)
        nn.init.eye_(self.align.weight)
        self.pool = AttentionPool(source_dim) if self.dit.pool == "attention" else MeanPool()
        self.condition = GELUFeedForward(source_dim, _CONDITION_INNER * dim, dim, config.dropout)
        # stands for "no source"; where rows never lose theirs, it has nothing to learn from
        self.no_condition = nn.Parameter(torch.zeros(dim), requires_grad=self.dit.drop_condition > 0)
        self.time = TimeEmbedding(dim)
        self.into = nn.Linear(target_dim, dim)
        blocks = [DiTBlock(dim, config.heads, config.dropout) for _ in range(config.depth)]
        for block in blocks:
            freeze_idle_query(block.attention, config.soft_tokens)
        self.blocks = nn.ModuleList(blocks)
        self.out = nn.Linear(dim, target_dim)

    def forward(
        self, hidden: Tensor, mask: Tensor, noise: Tensor, teacher: tuple[Tensor, Tensor] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Soft tokens (B, Q, Dt); with a teacher also the flow's error (B,) on the way to it.

        hidden: (B, S, Ds) source states;  mask: (B, S) bool;  noise: (B, Q, Dt), normal
        teacher: vectors (B, Q, Dt) of unit root mean square, and which of them there are (B, Q) bool
        """
        dtype = self.out.weight.dtype
        noise = noise.to(dtype)
        condition = self.condition(self.pool(self.align(hidden.to(dtype)), mask))  # (B, D)
        steps = self.dit.train_sampling_steps if self.training else self.dit.eval_sampling_steps
        soft = integrate(self._guided(condition), noise, steps)
        soft = self.matched(soft * self.target_rms)
        if teacher is None:
            return soft
        vectors, given = teacher
        dropped = torch.rand(len(hidden), device=hidden.device) < self.dit.drop_condition
        steered = torch.where(dropped[:, None], self.no_condition, condition)
        time = torch.rand(len(hidden), device=hidden.device)
        # noise of its own: the soft tokens' would make the two terms see the same draw
        start = torch.randn_like(noise)
        return soft, flow_error_per_row(self._velocity(steered), start, vectors.to(dtype), given, time)

    def flops(self, rows: int, source_tokens: int, with_flow: bool) -> int:
        # what the source said has no gradient
        total = source_tokens * TRAINED_FIRST * matrix_size(self.align)
        total += rows * TRAINED * matrix_size(self.condition)
        if isinstance(self.pool, AttentionPool):
            read = matrix_size(self.pool.attention.key_value)
            total += TRAINED * (source_tokens * read + rows * (matrix_size(self.pool) - read))
        steer = matrix_size(self.blocks, "modulation")
        once = matrix_size(self.time) + steer
        each = matrix_size(self.into) + matrix_size(self.blocks) - steer + matrix_size(self.out)
        velocities = self.dit.train_sampling_steps * (1 if self.dit.guidance is None else 2) + with_flow
        return total + velocities * rows * TRAINED * (once + self.soft_tokens * each)

    def _guided(self, condition: Tensor) -> Velocity:
        steered = self._velocity(condition)
        if self.dit.guidance is None:
            return steered
        free, weight = self._velocity(self.no_condition.expand_as(condition)), self.dit.guidance

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            unconditional = free(x, time)
            return unconditional + weight * (steered(x, time) - unconditional)

        return velocity

    def _velocity(self, condition: Tensor) -> Velocity:
        def velocity(x: Tensor, time: Tensor) -> Tensor:
            steer = condition + self.time(time)  # (B, D)
            moved = self.into(x)
            for block in self.blocks:
                moved = block(moved, steer)
            out: Tensor = self.out(moved)
            return out

        return velocity
