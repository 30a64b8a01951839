import math

import pytest
import torch
from torch import Tensor

from latentbridge.nn.balance import (
    balance_loss,
    load_counts,
    router_sums,
    z_loss,
)
from latentbridge.nn.routers import STRATEGIES, Router, Routing


def softk_routing(logits: Tensor) -> Routing:
    """K=2 choices by given logits."""
    num_tokens, num_experts = logits.shape
    kept = logits.topk(2, dim=-1)
    gates, experts = kept.values.softmax(-1).T.flatten(), kept.indices.T.flatten()
    tokens = torch.arange(num_tokens).repeat(2)
    return Routing(tokens, experts, gates, logits, logits.softmax(-1), num_tokens, num_experts, 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_pair_is_counted_once(strategy):
    router = Router(strategy, dim=8, num_experts=3, top_k=1 if strategy == "top1" else 2)
    routing = router(torch.randn(10, 8), torch.arange(10))

    # ceil(2 · 10 / 3) = 7 for each of 3 experts, or K for each of 10 tokens
    assert load_counts(routing).sum() == {"top1": 10, "expert_choice": 21}.get(strategy, 20)
    assert load_counts(routing).tolist() == [(routing.experts == e).sum() for e in range(3)]


def test_balance_loss_is_one_when_load_and_probabilities_are_even():
    # token n prefers experts n and n+1 of 4
    logits = torch.eye(4) * 3 + torch.eye(4).roll(1, dims=1) * 2
    routing = softk_routing(logits)

    assert load_counts(routing).tolist() == [2, 2, 2, 2]
    assert balance_loss(load_counts(routing), routing.probs.mean(0)).item() == pytest.approx(1.0)


def test_balance_loss_is_e_over_k_when_all_tokens_share_the_same_experts():
    routing = softk_routing(torch.tensor([40.0, 40.0, 0.0, 0.0, 0.0, 0.0]).repeat(5, 1))

    assert balance_loss(load_counts(routing), routing.probs.mean(0)).item() == pytest.approx(6 / 2)


def test_balance_loss_takes_probability_from_the_overloaded():
    """The seed built its term from counts alone: no gradient for any router."""
    logits = torch.tensor([[2.0, 1.0, 0.0]]).repeat(5, 1).requires_grad_()
    routing = softk_routing(logits)
    balance_loss(load_counts(routing), routing.probs.mean(0)).backward()

    assert (logits.grad[:, :2].sum(1) > 0).all() and (logits.grad[:, 2] < 0).all()


def test_balance_loss_can_be_that_of_counts_over_several_ranks():
    routing = softk_routing(torch.tensor([[40.0, 40.0, 0.0, 0.0]]).repeat(5, 1))
    elsewhere = torch.tensor([0.0, 0.0, 5.0, 5.0])

    # f is even, so P does not matter
    assert balance_loss(load_counts(routing) + elsewhere, routing.probs.mean(0)).item() == pytest.approx(1.0)


def test_z_loss_is_the_mean_squared_log_of_the_denominator():
    # ln(1 + 1) and ln(3 + 1)
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])

    assert z_loss(logits).item() == pytest.approx((math.log(2) ** 2 + math.log(4) ** 2) / 2)


def test_entropy_is_of_all_experts_and_confidence_of_the_kept_ones():
    uniform, sure = [0.0] * 4, [math.log(6), math.log(2), -99.0, -99.0]
    found = router_sums(softk_routing(torch.tensor([uniform, sure])))

    certain = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found["entropy"].item() == pytest.approx(math.log(4) + certain)
    # largest gates 1/2 and 3/4
    assert found["confidence"].item() == pytest.approx(1.25)


def test_a_token_that_no_expert_took_has_no_confidence():
    gates = torch.tensor([0.2, 0.6, 0.5])
    routing = Routing(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1]), gates, None, None, 3, 2, None)
    found = router_sums(routing)

    # token 0: 0.6 of 0.8; token 2: all of it; token 1 has none
    assert found["confidence"].item() == pytest.approx(0.75 + 1)
    assert "entropy" not in found
