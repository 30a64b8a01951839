"""Sizes: N=7 tokens, D=8, r=3, 5 adapters or experts, K=2."""

import pytest
import torch
from torch import Tensor

from latentbridge.nn.adapters import Adapters, AdapterStack

EXPERTS = torch.tensor([[0, 3], [4, 1], [2, 0], [1, 2], [3, 4], [0, 1], [2, 4]])


def opened(variant: str, top_k: int | None = None, **options) -> Adapters:
    torch.manual_seed(0)
    made = Adapters(variant, 8, 3, 5, top_k, **options)
    torch.nn.init.normal_(made.stack.down)
    return made


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(7, 8), EXPERTS, torch.rand(7, 2)


def one(made: Adapters, number: int, x: Tensor) -> Tensor:
    """B A x of one adapter, as written in the paper."""
    return made.stack.scale * (x @ made.stack.up[number] @ made.stack.down[number])


@pytest.mark.parametrize(("variant", "top_k"), [("routed", 2), ("embedded", None), ("shared", None)])
def test_untrained_adapters_say_exactly_nothing(variant, top_k):
    torch.manual_seed(0)
    added, _ = Adapters(variant, 8, 3, 5, top_k, dropout=0.3)(*batch())

    assert added.shape == (7, 8) and not added.any()


def test_shared_adapters_are_the_sum_of_all():
    made, (x, experts, gates) = opened("shared", scale=1.5), batch()
    added, _ = made(x, experts, gates)

    torch.testing.assert_close(added, sum(one(made, number, x) for number in range(5)))


def test_embedded_adapters_are_weighted_and_chosen_as_their_experts_are():
    made, (x, experts, gates) = opened("embedded", scale=0.5), batch()
    added, _ = made(x, experts, gates)

    for token in range(7):
        expected = sum(gates[token, k] * one(made, int(experts[token, k]), x[token]) for k in range(2))
        torch.testing.assert_close(added[token], expected)


def test_routed_adapters_are_weighted_by_their_own_gate_and_not_by_the_base_router():
    """The published layer multiplied them by the base's weights, so its gate had no gradient of the task."""
    made, (x, experts, gates) = opened("routed", top_k=2), batch()
    added, routing = made(x, experts, gates)
    probs = made.router.network(x).softmax(dim=-1)
    for token in range(7):
        best = probs[token].topk(2)
        expected = sum(p * one(made, int(n), x[token]) for p, n in zip(*best, strict=True))
        torch.testing.assert_close(added[token], expected)

    other, _ = made(x, experts.flip(0), 7 * gates)
    assert torch.equal(other, added)
    added.square().sum().backward()
    assert all(float(weight.grad.norm()) > 0 for weight in made.router.parameters())
    assert routing.num_experts == 5


def test_a_parallel_adapter_bends_what_a_lora_leaves_straight():
    x, experts, gates = batch()
    lora, parallel = opened("shared"), opened("shared", kind="parallel")

    torch.testing.assert_close(lora(2 * x, experts, gates)[0], 2 * lora(x, experts, gates)[0])
    expected = sum(
        torch.nn.functional.silu(x @ parallel.stack.up[n]) @ parallel.stack.down[n] for n in range(5)
    )
    torch.testing.assert_close(parallel(x, experts, gates)[0], expected)


def test_an_adapters_scale_does_not_depend_on_how_many_there_are():
    """The published start was N(0, 2/r), and one that sees three axes counts adapters as width."""
    torch.manual_seed(0)
    few, many = (float(AdapterStack(n, 400, 5, "lora", 1.0).up.detach().std()) for n in (2, 40))

    assert few == pytest.approx(many, rel=0.05)
    assert few == pytest.approx((3 * 400) ** -0.5, rel=0.05)


def test_dropout_of_a_token_does_not_depend_on_where_others_are_sent():
    made, (x, experts, gates) = opened("routed", top_k=1, dropout=0.5), batch()
    torch.manual_seed(3)
    before, _ = made(x, experts, gates)
    moved = x.clone()
    moved[6] = -5 * x[6]
    torch.manual_seed(3)
    after, _ = made(moved, experts, gates)

    assert torch.equal(after[:6], before[:6])


def test_active_parameters_are_those_that_a_token_meets():
    # one adapter: 2 · 8 · 3 = 48;  the gate: 8 · 5 + 5
    assert Adapters("shared", 8, 3, 5).active_parameters(2) == 5 * 48
    assert Adapters("embedded", 8, 3, 5).active_parameters(2) == 2 * 48
    assert Adapters("routed", 8, 3, 5, 1).active_parameters(2) == 48 + 45


def test_wrong_words_are_refused():
    with pytest.raises(ValueError, match="variant is 'mixed'"):
        Adapters("mixed", 8, 3, 5)
    with pytest.raises(ValueError, match="kind is 'prefix'"):
        Adapters("shared", 8, 3, 5, kind="prefix")
    with pytest.raises(ValueError, match="routed needs it"):
        Adapters("routed", 8, 3, 5)
