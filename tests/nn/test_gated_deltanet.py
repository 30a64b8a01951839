from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentbridge.nn.gated_delta import recurrent_gated_delta
from latentbridge.nn.gated_deltanet import GatedDeltaNet
from latentbridge.train.config import MuonConfig, OptimConfig
from latentbridge.train.optim import parameter_groups

B, T, D, H, K, V = 2, 9, 12, 3, 5, 7


def made(seed: int = 6, **changes) -> tuple[GatedDeltaNet, torch.Tensor]:
    torch.manual_seed(seed)
    layer = GatedDeltaNet(D, H, K, V, **{"init_std": 0.5, **changes})
    return layer.double(), torch.randn(B, T, D, dtype=torch.float64)


def test_the_seed_s_mixer_has_11_85_million_parameters():
    with torch.device("meta"):
        layer = GatedDeltaNet(768, 12, 256, 256)

    # q, k, v, gate and out; three convolutions; beta and decay with A and dt; the norm of a head
    expected = 5 * 768 * 3072 + 3 * 3072 * 4 + 2 * 12 * 768 + 2 * 12 + 256
    assert sum(parameter.numel() for parameter in layer.parameters()) == expected == 11_852_056


def test_it_is_the_rule_between_convolutions_of_q_k_v_and_a_gated_norm():
    layer, x = made()
    mixed = F.conv1d(F.pad(layer.query_key_value(x).mT, (3, 0)), layer.convolution.taps[:, None], groups=51)
    q, k, v = F.silu(mixed).mT.split([H * K, H * K, H * V], dim=-1)
    q, k = (F.normalize(part.view(B, T, H, K), dim=-1) for part in (q, k))
    beta, step = torch.sigmoid(layer.beta_decay(x)[..., :H]), layer.beta_decay(x)[..., H:]
    log_decay = -layer.A_log.exp() * F.softplus(step + layer.dt_bias)
    read, _ = recurrent_gated_delta(q, k, v.view(B, T, H, V), log_decay, beta)
    read = read * (read.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * layer.norm.weight
    expected = layer.out(read.flatten(2) * F.silu(layer.gate(x)))

    # 1e-6 under the root of the lengths of q and k
    assert torch.allclose(layer(x), expected, atol=1e-4, rtol=1e-3)


def test_decoding_token_by_token_is_the_whole_at_once_with_a_state_of_one_size():
    layer, x = made()
    whole, last = layer.prefill(x)
    state, outs = layer.start(B), []
    shapes = [part.shape for part in state]
    for t in range(T):
        out, state = layer.step(x[:, t : t + 1], state)
        assert [part.shape for part in state] == shapes == [(B, 3, H * (2 * K + V)), (B, H, K, V)]
        outs.append(out)

    assert torch.allclose(torch.cat(outs, dim=1), whole, atol=1e-12)
    assert torch.equal(layer(x), whole)
    for stepped, whole_part in zip(state, last, strict=True):
        assert torch.allclose(stepped, whole_part, atol=1e-12)


@pytest.mark.parametrize("cut", [2, 5])
def test_a_prefill_goes_on_from_where_another_ended(cut):
    layer, x = made()
    first, state = layer.prefill(x[:, :cut])
    second, _ = layer.prefill(x[:, cut:], state)

    assert torch.allclose(torch.cat([first, second], dim=1), layer(x), atol=1e-12)


def test_no_token_changes_what_is_before_it_or_beside_it():
    layer, x = made()
    other = x.clone()
    other[0, 4] += 1
    change = (layer(other) - layer(x)).abs().amax(dim=-1)

    assert change[0, :4].max() == change[1].max() == 0
    assert change[0, 4:].min() > 1e-6


def test_rotary_positions_are_not_looked_at():
    layer, x = made()
    turns = torch.randn(T, K), torch.randn(T, K)

    assert torch.equal(layer(x, turns), layer(x))


def test_decays_start_where_the_paper_has_them():
    torch.manual_seed(8)
    layer = GatedDeltaNet(4, 4000, 1, 1)
    a, step = layer.A_log.exp(), F.softplus(layer.dt_bias)

    assert 0 < a.min() < 0.1 and 15.9 < a.max() <= 16.001
    assert a.mean().item() == pytest.approx(8, rel=0.05)
    assert 0.000999 < step.min() < 0.0011 and 0.09 < step.max() < 0.1001
    # half of them below the middle of the logarithms
    assert step.median().item() == pytest.approx(math.sqrt(1e-3 * 0.1), rel=0.1)


def test_decay_rates_and_steps_are_not_decayed_by_the_optimiser_and_taps_are_no_matrix():
    layer, _ = made()
    muon = OptimConfig(lr=0.1, weight_decay=0.3, muon=MuonConfig(lr=1.0))
    (matrices, decayed, plain), settings = parameter_groups(layer, muon)
    names = {id(parameter): name for name, parameter in layer.named_parameters()}

    assert {names[id(p)] for p in plain} == {"A_log", "dt_bias", "norm.weight"}
    assert [names[id(p)] for p in decayed] == ["convolution.taps"]
    assert len(matrices) == 4
    assert [setting.weight_decay for setting in settings] == [0.3, 0.3, 0.0]


def test_every_parameter_learns_in_bf16_and_decays_are_made_in_float32():
    seen = []

    def rule(*inputs, state):
        seen.extend(inputs)
        return recurrent_gated_delta(*inputs, state=state)

    layer, x = made(rule=rule)
    layer.bfloat16()(x.bfloat16()).square().sum().backward()
    step = layer.beta_decay(x.bfloat16())[..., H:].float() + layer.dt_bias.float()

    assert [part.dtype for part in seen] == [torch.bfloat16] * 3 + [torch.float32, torch.bfloat16]
    assert torch.allclose(seen[3], -layer.A_log.float().exp() * F.softplus(step), rtol=1e-5)
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())
    assert layer.start(B).memory.dtype == torch.float32


def test_matrices_start_with_the_spread_that_was_asked_for():
    torch.manual_seed(9)
    layer = GatedDeltaNet(64, 4, 32, 48, init_std=0.02)
    for linear in layer.modules():
        if isinstance(linear, nn.Linear):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
