"""How evenly experts are used by the micro-batches of all ranks together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentbridge.nn.balance import balance_loss
from latentbridge.train import distributed


def counts_over_ranks(told: Sequence[dict[str, Tensor]]) -> Tensor:
    """(L, E) pairs by layer and expert; told: of each layer, its own `counts` (E,)."""
    return distributed.global_sum(torch.stack([layer["counts"] for layer in told]))


def balance_over_ranks(told: Sequence[dict[str, Tensor]], counts: Tensor) -> Tensor:
    """Switch's loss, the mean over layers; its mean over ranks is that of all tokens, and so is its gradient.

    told: of each layer, its own `counts` and, with gradient, `mean_probs` (E,)
    counts: of `counts_over_ranks`
    """
    own = torch.stack([layer["counts"] for layer in told])
    # a rank's mean counts by its share of the pairs, for batches may be ragged
    part = distributed.world_size() * own.sum(dim=1, keepdim=True) / counts.sum(dim=1, keepdim=True)
    return balance_loss(counts, part * torch.stack([layer["mean_probs"] for layer in told])).mean()
