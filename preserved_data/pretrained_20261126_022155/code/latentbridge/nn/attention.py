"""Multi-head attention of one sequence onto itself or onto another, over torch's fused kernels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
    """Queries of width D read keys and values of width `context_dim` (default D); no causal order.

    dropout: share of attention weights dropped in train mode
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim is {dim}; it must be a multiple of heads ({heads})")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        # keys and values in one product: half the launches
        self.key_value = nn.Linear(context_dim or dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read `context` once for every position of x.

        x: (B, Q, D);  context: (B, S, Dc);  mask: (B, S) bool, True = may be read, at least one a row
        returns (B, Q, D)
        """
        query = self._split(self.query(x))  # (B, H, Q, D/H)
        key, value = map(self._split, self.key_value(context).chunk(2, dim=-1))  # (B, H, S, D/H)
        if mask is not None:
            mask = mask[:, None, None, :].expand(-1, -1, x.shape[1], -1)  # (B, 1, Q, S)
        read = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        out: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        return x.view(batch, length, self.heads, dim // self.heads).transpose(1, 2)  # (B, H, T, D/H)
