from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from latentbridge.errors import RunError
from latentbridge.train.adamw import WideAdamW
from latentbridge.train.muon import MuonAdamW
from latentbridge.train.wide import join


def _weights() -> list[nn.Parameter]:
    torch.manual_seed(5)
    return [
        nn.Parameter(torch.randn(3, 7)),
        nn.Parameter(torch.randn(2, 5, 4)),
        nn.Parameter(torch.randn(11)),
    ]


def _gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(weight.shape, generator=generator).bfloat16() for weight in _weights()]


def _groups(weights: list[nn.Parameter]) -> list[dict[str, object]]:
    return [
        {"params": weights[:2], "lr": 0.02, "weight_decay": 0.1},
        {"params": weights[2:], "lr": 0.05, "weight_decay": 0.0},
    ]


def _masters(optimizer: WideAdamW) -> list[Tensor]:
    return [join(weight.data, optimizer.state[weight]["rest"]) for weight in optimizer.weights]


def test_bf16_weights_are_updated_as_torchs_adamw_updates_float32_ones() -> None:
    plain, wide = _weights(), _weights()
    reference = torch.optim.AdamW(_groups(plain), betas=(0.9, 0.98))
    optimizer = WideAdamW(_groups(wide), betas=(0.9, 0.98))

    for step in range(40):
        for weight, gradient in zip(plain, _gradients(step), strict=True):
            weight.grad = gradient.float() * 0.25
        reference.step()
        optimizer.prepare()
        optimizer.apply(_gradients(step), torch.tensor(0.25))

    for weight, master, near in zip(plain, _masters(optimizer), wide, strict=True):
        torch.testing.assert_close(master, weight.data, rtol=2e-6, atol=2e-6)
        assert near.dtype == torch.bfloat16


def test_steps_too_small_for_bf16_add_up() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = WideAdamW([{"params": [weight], "lr": 1e-4, "weight_decay": 0.0}], betas=(0.9, 0.98))
    optimizer.prepare()

    for _ in range(100):
        optimizer.apply([torch.ones(1, dtype=torch.bfloat16)], torch.tensor(1.0))

    # half the distance between bf16 numbers below 1 is 2^-9, 20 such steps
    assert weight.item() == torch.tensor(1 - 100 * 1e-4).bfloat16().item()


def test_a_loaded_state_goes_on_bit_for_bit() -> None:
    first = WideAdamW(_groups(_weights()), betas=(0.9, 0.98))
    second = WideAdamW(_groups(_weights()), betas=(0.9, 0.98))
    for step in range(6):
        for optimizer in (first, second) if step >= 3 else (first,):
            optimizer.prepare()
            optimizer.apply(_gradients(step), torch.tensor(1.0))
        if step == 2:
            for weight, other in zip(second.weights, first.weights, strict=True):
                weight.data.copy_(other.data)
            second.load_state_dict(copy.deepcopy(first.state_dict()))

    for one, other in zip(_masters(first), _masters(second), strict=True):
        assert torch.equal(one, other)


def test_weights_and_states_lie_where_they_lay_after_an_update_and_a_load() -> None:
    """A compiled or recorded update goes on reading there, whatever a module or an optimiser says since."""
    optimizer = WideAdamW(_groups(_weights()), betas=(0.9, 0.98))

    def places() -> list[int]:
        states = [optimizer.state[weight] for weight in optimizer.weights]
        return [
            tensor.data_ptr()
            for weight, state in zip(optimizer.weights, states, strict=True)
            for tensor in (weight, *state.values())
        ]

    before = places()
    optimizer.prepare()
    optimizer.apply(_gradients(0), torch.tensor(1.0))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    assert places() == before
    # of one group, in one piece, each on a line of its own
    first, second, third = (weight.data_ptr() for weight in optimizer.weights)
    assert second - first == 64 * 2
    assert (first % 64, second % 64, third % 64) == (0, 0, 0)


def test_a_weight_that_was_taken_elsewhere_is_told_and_not_left_as_it_is() -> None:
    weights = _weights()
    optimizer = WideAdamW(_groups(weights), betas=(0.9, 0.98))
    weights[0].data = weights[0].data.clone()

    with pytest.raises(RunError, match="no update would reach it"):
        optimizer.prepare()


def test_a_state_of_another_shape_is_not_spread_over_a_weight() -> None:
    optimizer = WideAdamW(_groups(_weights()), betas=(0.9, 0.98))
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"][:1]

    with pytest.raises(RuntimeError, match="shape"):
        optimizer.load_state_dict(state)


def test_sums_of_gradients_are_read_where_they_were_made_and_not_rounded() -> None:
    plain, wide = _weights(), _weights()
    reference = torch.optim.AdamW(_groups(plain), betas=(0.9, 0.98))
    optimizer = WideAdamW(_groups(wide), betas=(0.9, 0.98))
    sums = optimizer.make_sums()

    for step in range(3):
        torch._foreach_zero_(sums)
        for micro_batch in range(5):
            torch._foreach_add_(sums, [g.float() for g in _gradients(5 * step + micro_batch)])
        for weight, gradient in zip(plain, sums, strict=True):
            weight.grad = gradient * 0.2
        reference.step()
        optimizer.prepare()
        optimizer.apply(sums, torch.tensor(0.2))

    for weight, master in zip(plain, _masters(optimizer), strict=True):
        torch.testing.assert_close(master, weight.data, rtol=2e-6, atol=2e-6)
    assert [piece.gradients.dtype for piece in optimizer._pieces if piece] == [torch.float32] * 2


def test_a_gradient_that_lies_otherwise_is_laid_as_its_weight() -> None:
    straight, turned = (WideAdamW(_groups(_weights()), betas=(0.9, 0.98)) for _ in range(2))
    gradients = _gradients(3)
    for optimizer in (straight, turned):
        optimizer.prepare()
    straight.apply(gradients, torch.tensor(1.0))
    turned.apply([gradients[0].T.contiguous().T, *gradients[1:]], torch.tensor(1.0))

    for one, other in zip(_masters(straight), _masters(turned), strict=True):
        assert torch.equal(one, other)


def test_the_norm_of_bf16_gradients_is_not_rounded_to_bf16() -> None:
    optimizer = WideAdamW(_groups(_weights()), betas=(0.9, 0.98))

    norm = optimizer.norm([torch.full((2**10,), 0.125, dtype=torch.bfloat16), torch.ones(1).bfloat16()])

    torch.testing.assert_close(norm, torch.tensor(17.0).sqrt())


def test_muons_groups_are_turned_as_in_float32() -> None:
    plain, wide = _weights(), _weights()
    groups = [{"params": plain[:2], "lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}, {"params": plain[2:]}]
    reference = MuonAdamW(groups, lr=0.05, betas=(0.9, 0.98), weight_decay=0.0)
    groups = [
        {"params": wide[:2], "lr": 0.02, "weight_decay": 0.1, "momentum": 0.9},
        {"params": wide[2:], "lr": 0.05},
    ]
    optimizer = WideAdamW(groups, betas=(0.9, 0.98))

    for step in range(5):
        for weight, gradient in zip(plain, _gradients(step), strict=True):
            weight.grad = gradient.float() * 0.5
        reference.step()
        optimizer.prepare()
        optimizer.apply(_gradients(step), torch.tensor(0.5))

    for weight, master in zip(plain, _masters(optimizer), strict=True):
        torch.testing.assert_close(master, weight.data, rtol=1e-4, atol=1e-5)
