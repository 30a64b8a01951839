import pytest
import torch
import torch.nn.functional as F

from latentbridge.nn.experts import Experts


@pytest.mark.parametrize(("activation", "act"), [("gelu", F.gelu), ("silu", F.silu)])
@pytest.mark.parametrize("gated", [False, True])
def test_one_expert_is_a_feed_forward_layer(activation, act, gated):
    experts = Experts(3, dim=8, inner=6, activation=activation, gated=gated)
    x = torch.randn(5, 8)

    hidden = x @ experts.up[1] + experts.up_bias[1]
    hidden = act(hidden[:, :6]) * hidden[:, 6:] if gated else act(hidden)
    assert torch.allclose(experts.one(1, x), hidden @ experts.down[1] + experts.down_bias[1], atol=1e-6)


@pytest.mark.parametrize("num_experts", [2, 32])
def test_an_expert_starts_as_a_dense_layer_whatever_the_number_of_experts(num_experts):
    """The seed's initialiser counted experts into the fan: weights 15 times too small at 8 experts."""
    torch.manual_seed(0)
    experts = Experts(num_experts, dim=64, inner=256)

    # uniform within 1/sqrt(fan-in) has a deviation of that over sqrt(3)
    for weight, fan_in in ((experts.up, 64), (experts.down, 256), (experts.up_bias, 64)):
        assert weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.05)
    dense = torch.nn.Linear(64, 256)
    assert experts.up[0].std().item() == pytest.approx(dense.weight.std().item(), rel=0.05)


def test_dropout_acts_in_train_mode_only():
    experts = Experts(3, dim=8, inner=6, dropout=0.5)
    x = torch.randn(5, 8)

    assert not torch.equal(experts.one(0, x), experts.one(0, x))
    experts.eval()
    assert torch.equal(experts.one(0, x), experts.one(0, x))


def test_without_bias_there_are_two_tensors():
    assert [name for name, _ in Experts(3, 8, 6, bias=False).named_parameters()] == ["up", "down"]


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation is 'relu'; it must be gelu or silu"):
        Experts(3, 8, 6, activation="relu")
