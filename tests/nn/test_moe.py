"""Sizes: B=2, T=5, D=8, F=12, E=3, K=2."""

import pytest
import torch
from torch import Tensor

from latentbridge.nn.experts import Experts
from latentbridge.nn.moe import DISPATCHES, MoE
from latentbridge.nn.routers import STRATEGIES, Router


def layer(strategy: str, dispatch: str = "dropless", **options) -> MoE:
    torch.manual_seed(0)
    router = Router(strategy, dim=8, num_experts=3, top_k=1 if strategy == "top1" else 2)
    return MoE(router, Experts(3, 8, 12), dispatch, **options)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 5, 8), torch.arange(10).view(2, 5)


def moved_by(moe: MoE, row: int, place: int) -> Tensor:
    """(B, T) bool: which outputs change when one token becomes another."""
    x, token_ids = batch()
    before, _, _ = moe(x, token_ids)
    x, token_ids = x.clone(), token_ids.clone()
    # away from the others in every direction, so that every expert's order changes
    x[row, place] = 5 * torch.randn(8)
    token_ids[row, place] = 77
    after, _, _ = moe(x, token_ids)
    return ((after - before).abs() > 1e-6).any(dim=-1)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_token_sees_no_other_token_except_in_training_by_expert_choice(strategy, train):
    moe = layer(strategy).train(train)
    moved = moved_by(moe, row=1, place=4)
    moved[1, 4] = False

    leaks = strategy == "expert_choice" and train
    assert bool(moved.any()) == leaks
    assert moe.router.is_causal == (strategy != "expert_choice")


def test_expert_choice_in_training_looks_at_later_tokens_and_at_other_sequences():
    moe = layer("expert_choice")

    assert moved_by(moe, row=1, place=4)[1, :4].any()
    assert any(moved_by(moe, row=0, place=place)[1].any() for place in range(5))


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_all_dispatches_give_the_same_layer_when_everything_fits(dispatch):
    x, token_ids = batch()
    expected, _, _ = layer("softk")(x, token_ids)
    y, routing, dropped = layer("softk", dispatch, capacity_factor=3.0)(x, token_ids)

    assert y.shape == (2, 5, 8) and dropped == 0
    assert torch.allclose(y, expected, atol=1e-6)
    assert routing.num_tokens == 10


def test_evaluation_drops_nothing_whatever_training_does():
    x, token_ids = batch()
    moe = layer("softk", "padded", capacity_factor=0.5)
    _, _, dropped = moe(x, token_ids)
    assert dropped > 0

    y, _, dropped = moe.eval()(x, token_ids)
    assert dropped == 0
    assert torch.allclose(y, layer("softk").eval()(x, token_ids)[0], atol=1e-6)


def test_a_layer_that_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="dispatch is 'tutel'; it must be one of dropless, padded, loop"):
        layer("softk", "tutel")
    with pytest.raises(ValueError, match="the router has 3 experts, the stack 4"):
        MoE(Router("softk", 8, 3, 2), Experts(4, 8, 12))
