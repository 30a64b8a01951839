"""Sizes: N = B·T = 10 tokens, D=8, F=16, E=3, K=2."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from latentbridge.nn import dispatch
from latentbridge.nn.dispatch import dropless, loop, padded
from latentbridge.nn.experts import Experts
from latentbridge.nn.routers import STRATEGIES, Router, Routing


def case(strategy: str, train: bool = True, **options) -> tuple[Tensor, Router, Experts]:
    torch.manual_seed(0)
    router = Router(strategy, dim=8, num_experts=3, top_k=1 if strategy == "top1" else 2).train(train)
    return torch.randn(10, 8, requires_grad=True), router, Experts(3, 8, 16, **options)


def answers(way, x: Tensor, router: Router, experts: Experts) -> list[Tensor]:
    """Output, then gradients of the input, the router and the experts."""
    y = way(x, router(x, torch.arange(10)), experts)
    torch.manual_seed(3)
    leaves = [x, *router.parameters(), *experts.parameters()]
    return [y, *torch.autograd.grad((y * torch.randn_like(y)).sum(), leaves)]


def everything_fits(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    y, _ = padded(x, routing, experts, capacity_factor=3.0)
    return y


def grouped(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    """The way a GPU takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "grouped_runs", lambda *_: True)
        return dropless(x, routing, experts)


@pytest.mark.parametrize("way", [dropless, grouped, everything_fits])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_way_equals_the_loop_and_so_do_its_gradients(strategy, way):
    inputs = case(strategy)

    for ours, expected in zip(answers(way, *inputs), answers(loop, *inputs), strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("way", [dropless, grouped, everything_fits])
@pytest.mark.parametrize("options", [{"bias": False}, {"gated": True, "activation": "silu"}])
def test_every_way_equals_the_loop_for_every_kind_of_expert(way, options):
    inputs = case("softk", **options)

    for ours, expected in zip(answers(way, *inputs), answers(loop, *inputs), strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("way", [dropless, grouped])
def test_tokens_with_any_number_of_experts_are_evaluated_as_by_the_loop(way):
    x, router, experts = case("expert_choice", train=False)
    routing = router(x)
    assert len(set(torch.bincount(routing.tokens, minlength=10).tolist())) > 1

    assert torch.allclose(way(x, routing, experts), loop(x, routing, experts), atol=1e-5)


def routing_of(experts: list[list[int]], gates: list[list[float]] | None = None) -> Routing:
    """From K lists of N: the experts chosen first, second, ..."""
    top_k, num_tokens = len(experts), len(experts[0])
    weights = torch.tensor(gates) if gates else torch.full((top_k, num_tokens), 1 / top_k)
    tokens = torch.arange(num_tokens).repeat(top_k)
    return Routing(
        tokens, torch.tensor(experts).flatten(), weights.flatten(), None, None, num_tokens, 3, top_k
    )


@pytest.mark.parametrize("way", [dropless, grouped, everything_fits])
def test_an_expert_without_tokens_gets_a_gradient_of_zero(way):
    x, _, experts = case("softk")
    way(x, routing_of([[0] * 9 + [2]]), experts).sum().backward()

    for parameter in experts.parameters():
        used = [bool(parameter.grad[expert].any()) for expert in range(3)]
        assert used == [True, False, True]


class Identity(Experts):
    """Experts that give back what they get."""

    def forward(self, rows, product):
        return rows


@pytest.mark.parametrize("way", [dropless, grouped, everything_fits])
@pytest.mark.parametrize("strategy", ["topk_hard", "softk", "hash"])
def test_identity_experts_give_the_token_back_once(strategy, way):
    """The seed's topk_hard added its experts with weight 1 each: K times the token."""
    x, router, _ = case(strategy)

    assert torch.allclose(way(x, router(x, torch.arange(10)), Identity(3, 8, 16)), x, atol=1e-6)


def kept_by(priority: str, routing: Routing, capacity_factor: float) -> list[list[float]]:
    """What identity experts leave of tokens 1, 1, ...: the sum of gates of the pairs that were seated."""
    x = torch.ones(routing.num_tokens, 1)
    y, dropped = padded(x, routing, Identity(3, 1, 1), capacity_factor, priority)
    return [round(value, 3) for value in y[:, 0].tolist()], dropped.item()


def test_priority_by_choice_seats_first_choices_before_second_ones():
    # expert 0: second choice of tokens 0 and 1, first choice of tokens 2 and 3; C = ceil(0.75 · 8 / 3) = 2
    routing = routing_of([[1, 2, 0, 0], [0, 0, 1, 2]], [[0.7, 0.7, 0.7, 0.7], [0.3, 0.3, 0.3, 0.3]])

    assert kept_by("choice", routing, 0.75) == ([0.7, 0.7, 1.0, 1.0], 2)


def test_priority_by_position_seats_earlier_tokens_first():
    routing = routing_of([[1, 2, 0, 0], [0, 0, 1, 2]], [[0.7, 0.7, 0.7, 0.7], [0.3, 0.3, 0.3, 0.3]])

    assert kept_by("position", routing, 0.75) == ([1.0, 1.0, 0.3, 0.3], 2)


def test_priority_by_probability_seats_the_most_probable():
    # five tokens want expert 0; C = ceil(1 · 5 / 3) = 2
    routing = routing_of([[0, 0, 0, 0, 0]], [[0.4, 0.9, 0.5, 0.6, 0.8]])

    assert kept_by("probability", routing, 1.0) == ([0.0, 0.9, 0.0, 0.0, 0.8], 3)


def test_probability_comes_from_the_router_where_gates_are_all_alike():
    routing = routing_of([[0, 0, 0, 0, 0]])
    routing.probs = torch.tensor([[0.4], [0.9], [0.5], [0.6], [0.8]]).expand(-1, 3)

    assert kept_by("probability", routing, 1.0) == ([0.0, 1.0, 0.0, 0.0, 1.0], 3)


def test_a_dropped_pair_sends_no_gradient():
    x, _, experts = case("softk")
    routing = routing_of([[0] * 10])
    routing.gates.requires_grad_()
    # C = ceil(1 · 10 / 3) = 4
    y, dropped = padded(x, routing, experts, 1.0, "position")
    y.sum().backward()

    assert dropped == 6 and not y[4:].any()
    assert x.grad[:4].any(dim=1).all() and not x.grad[4:].any()
    assert routing.gates.grad[:4].all() and not routing.gates.grad[4:].any()


def test_expert_choice_never_overflows_its_slots():
    x, router, experts = case("expert_choice")
    _, dropped = padded(x, router(x), experts, capacity_factor=1.0)

    assert dropped == 0


@pytest.mark.parametrize("way", [dropless, loop, grouped, everything_fits])
def test_bf16_is_computed_in_bf16_and_summed_in_float32(way):
    x, router, experts = case("softk")
    expected = loop(x, router(x), experts)
    x, router, experts = x.detach().bfloat16(), router.bfloat16(), experts.bfloat16()
    y = way(x, router(x), experts)

    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), expected, atol=0.03)


@pytest.mark.parametrize("way", [dropless, loop, grouped, everything_fits])
def test_under_autocast_products_are_bf16_and_the_result_has_the_dtype_of_the_input(way):
    x, router, experts = case("softk")
    seen = []
    experts.dropout.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y = way(x, router(x), experts)
    y.sum().backward()

    assert y.dtype == torch.float32 and set(seen) == {torch.bfloat16}
    assert experts.up.grad.dtype == torch.float32


def test_widths_the_grouped_kernel_refuses_are_computed_all_the_same():
    """Its rows must be whole blocks of 16 bytes: 7 and 5 floats are not."""
    torch.manual_seed(0)
    x, router, experts = torch.randn(10, 7), Router("softk", 7, 3, 2), Experts(3, 7, 5)
    routing = router(x)

    assert torch.allclose(dropless(x, routing, experts), loop(x, routing, experts), atol=1e-6)


@pytest.mark.parametrize("way", [grouped, everything_fits])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_training_step_on_a_gpu_reads_nothing_back(strategy, way):
    """Fake tensors have shapes and no values: whatever needs a value on the host raises."""
    with FakeTensorMode():
        _, router, experts = case(strategy)
        x = torch.randn(10, 8, dtype=torch.bfloat16, requires_grad=True)
        way(x, router(x, torch.zeros(10, dtype=torch.long)), experts).sum().backward()

    assert x.grad.shape == (10, 8) and experts.up.grad.shape == (3, 8, 16)


def test_an_unknown_priority_is_refused():
    x, router, experts = case("softk")
    with pytest.raises(
        ValueError, match="priority is 'luck'; it must be one of choice, probability, position"
    ):
        padded(x, router(x), experts, 1.0, "luck")
