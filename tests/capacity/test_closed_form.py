"""The drop curve of a capacity limit: known by hand, and met by what the layer drops."""

from __future__ import annotations

import itertools

import pytest
import torch

from latentbridge.capacity.closed_form import expected_drop_rate
from latentbridge.nn.dispatch import padded
from latentbridge.nn.experts import Experts
from latentbridge.nn.routers import Router
from latentbridge.nn.seating import slots


def test_three_tokens_and_two_experts_by_hand():
    # one slot each at c = 0.5; loads of an expert 0, 1, 2, 3 come 1, 3, 3, 1 times of 8
    assert slots(3, 2, 0.5) == 1
    assert expected_drop_rate(3, 2, 1, 0.5) == pytest.approx((3 * 1 + 1 * 2) / 8 / 1.5)


def test_the_curve_falls_to_nothing_as_room_grows():
    curve = [expected_drop_rate(32_768, 128, 2, factor) for factor in (0.9, 1.0, 1.05, 1.1, 1.25, 1.5)]

    # published, measured: .0997 .0165 .0024 .0003 0 0
    assert curve == pytest.approx([0.0997, 0.0176, 0.0027, 0.0002, 0.0, 0.0], abs=1.5e-3)
    assert all(one >= other for one, other in itertools.pairwise(curve))


@pytest.mark.parametrize(("num_experts", "top_k", "factor"), [(8, 1, 1.0), (16, 2, 1.05), (32, 4, 0.9)])
def test_the_layer_drops_of_random_logits_what_the_curve_says(num_experts: int, top_k: int, factor: float):
    torch.manual_seed(0)
    router = Router("top1" if top_k == 1 else "softk", 12, num_experts, top_k)
    router.network.forward = lambda x: torch.randn(len(x), num_experts)
    x = torch.randn(8192, 12)
    _, dropped = padded(x, router(x), Experts(num_experts, 12, 4), factor)

    expected = expected_drop_rate(8192, num_experts, top_k, factor)
    assert float(dropped) / (8192 * top_k) == pytest.approx(expected, abs=5e-3)
