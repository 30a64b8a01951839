"""Sizes: N = B·T = 10 tokens, D=8, E=3, K=2."""

import pytest
import torch
from torch import Tensor

from latentbridge.nn.routers import NETWORKS, STRATEGIES, Router, RouterNetwork, Routing

TOKEN_CHOICE = [name for name in STRATEGIES if name != "expert_choice"]


def router(strategy: str, **options) -> Router:
    torch.manual_seed(0)
    return Router(strategy, dim=8, num_experts=3, top_k=1 if strategy == "top1" else 2, **options)


def tokens(count: int = 10) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(count, 8), torch.arange(count) * 7


def gate_matrix(routing: Routing) -> Tensor:
    """(N, E) gates, 0 where a token does not visit an expert."""
    gates = torch.zeros(routing.num_tokens, routing.num_experts)
    return gates.index_put((routing.tokens, routing.experts), routing.gates)


def chosen(routing: Routing) -> list[tuple[int, int]]:
    return sorted(zip(routing.tokens.tolist(), routing.experts.tolist(), strict=True))


@pytest.mark.parametrize("kind", NETWORKS)
def test_logits_are_float32_under_bf16_parameters_and_autocast(kind):
    network = RouterNetwork(kind, 8, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(10, 8, dtype=torch.bfloat16))

    assert logits.dtype == torch.float32 and logits.shape == (10, 3)
    # bf16 has 8 bits of mantissa: a sum computed in it would be unchanged by rounding to it
    assert not torch.equal(logits, logits.bfloat16().float())


def test_networks_have_the_widths_of_the_seed():
    # D=256, E=8: DE+E; D·128+128+128·E+E; 2(D²+D)+DE+E
    counts = [sum(p.numel() for p in RouterNetwork(kind, 256, 8).parameters()) for kind in NETWORKS]
    assert counts == [2_056, 33_928, 133_640]


def test_the_hadamard_network_multiplies_the_token_with_what_it_computed():
    network = RouterNetwork("mlp_hadamard", 8, 3)
    first, second, third = network.layers
    x, _ = tokens()

    assert torch.allclose(network(x), third(x * second(torch.nn.functional.gelu(first(x)))), atol=1e-6)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "hash"])
def test_the_router_learns_from_its_gates(strategy):
    """The seed's top1 and topk_hard had no gradient: their routers stayed random projections."""
    routed = router(strategy)
    routing = routed(*tokens())
    (routing.gates * torch.randn_like(routing.gates)).sum().backward()

    assert all(p.grad.abs().max() > 1e-4 for p in routed.parameters())


def test_hash_has_nothing_to_learn():
    assert not list(router("hash").parameters())


def test_topk_is_weighted_by_probabilities_among_all_which_are_not_made_to_sum_to_1():
    routing = router("topk")(*tokens())

    best = routing.logits.softmax(-1).topk(2)
    assert torch.equal(routing.experts, best.indices.T.reshape(-1))
    assert torch.allclose(routing.gates, best.values.T.reshape(-1))


def test_top1_is_weighted_by_its_probability_among_all():
    routing = router("top1")(*tokens())

    best = routing.logits.softmax(-1).max(-1)
    assert torch.equal(routing.experts, best.indices)
    assert torch.allclose(routing.gates, best.values)


def test_hard_gates_are_one_over_k_with_the_gradient_of_the_probability():
    routed = router("topk_hard")
    routing = routed(*tokens())
    weights = torch.randn_like(routing.gates)
    assert torch.equal(routing.gates, torch.full((20,), 0.5))

    hard = torch.autograd.grad((routing.gates * weights).sum(), list(routed.parameters()), retain_graph=True)
    probs = routing.probs[routing.tokens, routing.experts]
    soft = torch.autograd.grad((probs * weights).sum(), list(routed.parameters()))
    assert all(torch.allclose(a, b) for a, b in zip(hard, soft, strict=True))


def test_soft_gates_are_a_softmax_over_the_kept_logits():
    routing = router("softk")(*tokens())

    kept = routing.logits.topk(2, dim=-1)
    assert torch.equal(routing.experts.view(2, 10).T, kept.indices)
    assert torch.allclose(routing.gates.view(2, 10).T, kept.values.softmax(-1))


@pytest.mark.parametrize("strategy", TOKEN_CHOICE)
def test_pair_k_n_is_the_kth_choice_of_token_n(strategy):
    routing = router(strategy)(*tokens())

    assert routing.tokens.tolist() == list(range(10)) * routing.top_k
    assert len(set(chosen(routing))) == 10 * routing.top_k


def test_each_expert_takes_exactly_its_share_of_best_tokens():
    routing = router("expert_choice")(*tokens())

    # ceil(2 · 10 / 3) = 7
    assert torch.bincount(routing.experts).tolist() == [7, 7, 7]
    assert len(set(chosen(routing))) == 21
    for expert in range(3):
        taken = routing.tokens[routing.experts == expert]
        assert taken.tolist() == routing.probs[:, expert].topk(7).indices.tolist()
    assert torch.equal(routing.gates, routing.probs[routing.tokens, routing.experts])


def test_expert_choice_evaluates_by_thresholds_learned_in_training():
    routed = router("expert_choice")
    x, _ = tokens()
    lasts = []
    for scale in (1.0, 2.0, 3.0):
        probs = routed(scale * x).probs
        lasts.append(probs.topk(7, dim=0).values[-1])
    # the plain mean of the first updates
    assert torch.allclose(routed.threshold, torch.stack(lasts).mean(0), atol=1e-6)

    routing = routed.eval()(x)
    assert torch.equal(gate_matrix(routing), routing.probs * (routing.probs > routed.threshold))
    assert routing.top_k is None


def test_the_bias_moves_the_choice_and_not_the_weight():
    routed = router("bias_balanced")
    x, _ = tokens()
    routed.bias.copy_(torch.tensor([0.0, 0.0, 10.0]))
    routing = routed(x)

    assert set(routing.experts[:10].tolist()) == {2}
    scores = routing.logits.sigmoid()[routing.tokens, routing.experts]
    assert torch.equal(routing.gates, scores)


def test_bias_update_raises_the_idle_lowers_the_busy_and_stays_centred():
    routed = router("bias_balanced")
    routed.update_bias(torch.tensor([9.0, 3.0, 0.0]), rate=0.3)

    # signs -1, +1, +1 with mean 4; minus their mean of 1/3, times 0.3
    assert torch.allclose(routed.bias, torch.tensor([-0.4, 0.2, 0.2]))


def test_bias_updates_bring_a_lopsided_load_to_balance():
    torch.manual_seed(0)
    routed = Router("bias_balanced", dim=8, num_experts=5, top_k=2)
    routed.network.layers[0].bias.data.copy_(torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0]))
    x = torch.randn(500, 8)
    loads = []
    for _ in range(200):
        loads.append(torch.bincount(routed(x).experts, minlength=5).float())
        routed.update_bias(loads[-1], rate=0.01)

    # 1,000 pairs on 5 experts
    assert loads[0].max() > 300
    assert (loads[-1] - 200).abs().max() < 30


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "hash"])
def test_temperature_on_weights_never_changes_the_choice(strategy):
    routed, (x, _) = router(strategy), tokens()
    before = routed(x)
    routed.set_temperature(10.0)
    after = routed(x)

    assert chosen(after) == chosen(before)
    assert torch.equal(after.probs, before.probs)
    assert torch.equal(after.gates, before.gates) == (strategy == "topk_hard")


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "hash"])
def test_temperature_on_the_choice_samples_it_in_train_mode_only(strategy):
    routed, (x, _) = router(strategy, temperature_acts_on="choice"), tokens()
    routed.set_temperature(5.0)
    torch.manual_seed(2)
    first, second = chosen(routed(x)), chosen(routed(x))
    torch.manual_seed(2)
    assert chosen(routed(x)) == first != second

    routed.eval()
    evaluated = chosen(routed(x))
    routed.set_temperature(1.0)
    assert chosen(routed(x)) == evaluated


def test_choices_are_sampled_with_the_probabilities_of_the_tempered_softmax():
    routed = router("top1", temperature_acts_on="choice")
    for parameter in routed.parameters():
        parameter.data.zero_()
    # at temperature 2: weights 1, 2, 3 of 6
    routed.network.layers[0].bias.data.copy_(2 * torch.tensor([1.0, 2.0, 3.0]).log())
    routed.set_temperature(2.0)

    share = torch.bincount(routed(torch.zeros(60_000, 8)).experts) / 60_000
    assert torch.allclose(share, torch.tensor([1 / 6, 2 / 6, 3 / 6]), atol=0.01)


def test_noise_acts_in_train_mode_only():
    routed, (x, _) = router("softk", noise=0.1), tokens()

    assert not torch.equal(routed(x).logits, routed(x).logits)
    routed.eval()
    assert torch.equal(routed(x).logits, routed(x).logits)


def test_temperature_bias_and_threshold_stay_float32_when_the_model_is_cast():
    routed = router("bias_balanced")
    routed.set_temperature(1.8)
    routed.bias.fill_(0.501)
    routed.bfloat16()

    # bf16 would round to 1.797 and 0.5, and no longer see a step of 0.001
    assert routed.temperature == torch.tensor(1.8)
    assert torch.equal(routed.bias, torch.full((3,), 0.501))


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("top1", {"top_k": 2}, "top_k is 2; top1 sends a token to 1 expert"),
        ("softk", {"top_k": 1}, "softmax over one logit is always 1"),
        ("softk", {"top_k": 4}, r"top_k is 4; it must lie in 1..3 \(num_experts\)"),
        ("soft", {"top_k": 2}, "strategy is 'soft'; it must be one of top1, topk, topk_hard"),
        ("softk", {"top_k": 2, "network": "conv"}, "network is 'conv'; it must be one of linear"),
        ("softk", {"top_k": 2, "temperature_acts_on": "load"}, "must be one of weights, choice"),
    ],
)
def test_a_router_that_cannot_work_is_refused(strategy, options, message):
    with pytest.raises(ValueError, match=message):
        Router(strategy, 8, 3, **options)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"temperature is 0.0; it must be above 0"):
        router("softk").set_temperature(0.0)


def test_hash_without_token_ids_is_refused():
    with pytest.raises(ValueError, match="needs token_ids"):
        router("hash")(torch.randn(10, 8))
