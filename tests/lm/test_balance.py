from __future__ import annotations

from typing import Any

import pytest
import torch

from latentbridge.lm.balance import balance_over_ranks, counts_over_ranks
from latentbridge.nn.balance import balance_loss
from latentbridge.train import distributed

TOKENS = (10, 40)


def _probs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(count, 4, generator=generator).softmax(dim=-1) for count in TOKENS]


def test_balance_of_ragged_ranks_is_that_of_all_their_tokens(ranks: Any) -> None:
    def measured() -> float:
        distributed.init()
        probs = _probs()[distributed.rank()]
        counts = torch.bincount(probs.argmax(dim=-1), minlength=4).float()
        told = [{"counts": counts, "mean_probs": probs.mean(dim=0)}]
        return balance_over_ranks(told, counts_over_ranks(told)).item()

    every = torch.cat(_probs())
    counts = torch.bincount(every.argmax(dim=-1), minlength=4).float()

    found = ranks(measured, world_size=2)

    assert sum(found) / 2 == pytest.approx(balance_loss(counts, every.mean(dim=0)).item(), rel=1e-6)
