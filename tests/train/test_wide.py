from __future__ import annotations

import torch

from latentbridge.train.wide import join, split


def test_two_halves_are_the_float32_they_came_from_bit_for_bit() -> None:
    torch.manual_seed(3)
    values = torch.randn(4097) * 10.0 ** torch.randint(-30, 30, (4097,))
    values[:4] = torch.tensor([0.0, -0.0, 1.0, -1.0])

    near, rest = split(values)

    assert torch.equal(join(near, rest).view(torch.int32), values.view(torch.int32))


def test_the_first_half_is_the_nearest_bf16_number() -> None:
    torch.manual_seed(4)
    values = torch.randn(4099)

    near, _ = split(values)

    assert torch.equal((near.float() - values).abs(), (values.bfloat16().float() - values).abs())
    # 1 + 2^-8 lies between 1 and 1 + 2^-7: away from zero, where torch takes the even one
    assert split(torch.tensor([1 + 2**-8, -1 - 2**-8]))[0].tolist() == [1 + 2**-7, -1 - 2**-7]
