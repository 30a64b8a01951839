from __future__ import annotations

import math

import torch

from latentbridge.nn.rope import rotate, rotations


def test_a_pair_turns_by_place_times_its_rate():
    x = torch.zeros(1, 3, 4)
    x[..., 0], x[..., 1] = 1.0, 1.0
    turned = rotate(x, *rotations(3, 4, torch.device("cpu")))

    for place in range(3):
        slow = place / 100  # 10,000 ** (-2 / 4)
        expected = torch.tensor([math.cos(place), math.cos(slow), math.sin(place), math.sin(slow)])
        assert torch.allclose(turned[0, place], expected, atol=1e-6)


def test_products_depend_on_distance_alone():
    torch.manual_seed(2)
    query, key = torch.randn(6), torch.randn(6)
    turns = rotations(9, 6, torch.device("cpu"))
    queries, keys = (rotate(x.expand(9, 6), *turns) for x in (query, key))
    products = queries @ keys.T

    for distance in (0, 3):
        same = torch.stack([products[place + distance, place] for place in range(9 - distance)])
        assert torch.allclose(same, same[0].expand_as(same), atol=1e-5)
    assert not torch.isclose(products[3, 0], products[0, 0])


def test_half_precision_is_turned_in_full_precision():
    x = torch.randn(2, 300, 8).bfloat16()
    turns = rotations(300, 8, torch.device("cpu"))

    assert torch.equal(rotate(x, *turns), rotate(x.float(), *turns).bfloat16())
