from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from latentbridge.nn.gelu import _Gelu, gelu, normal_cdf


def test_the_normal_distribution_is_right_to_a_ten_millionth() -> None:
    x = torch.linspace(-9, 9, 5001)
    normal = torch.distributions.Normal(0.0, 1.0)

    cdf, pdf = normal_cdf(x)

    torch.testing.assert_close(cdf.double(), normal.cdf(x.double()), rtol=0, atol=3e-7)
    torch.testing.assert_close(pdf.double(), normal.log_prob(x.double()).exp(), rtol=1e-6, atol=3e-7)


def test_outputs_and_gradients_are_those_of_the_exact_gelu_to_the_last_bf16_bit_or_two() -> None:
    x = torch.linspace(-6, 6, 701).bfloat16().requires_grad_()
    above = torch.linspace(-1, 2, 701).bfloat16()
    exact = x.detach().double().requires_grad_()
    F.gelu(exact).backward(above.double())

    found = _Gelu.apply(x)
    found.backward(above)

    torch.testing.assert_close(found.double(), F.gelu(exact).detach(), rtol=2**-8, atol=1e-6)
    # the slope is kept in bf16, and the product rounded once more
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2**-6, atol=1e-6)


def test_uncompiled_a_gpu_gets_one_kernel_and_not_one_for_each_step_of_ours() -> None:
    launched = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            launched.append(str(function))
            return function(*args, **(kwargs or {}))

    with FakeTensorMode():
        x = torch.empty(5, 7, device="cuda", dtype=torch.bfloat16)
        with Watched():
            gelu(x)

    assert [name for name in launched if name.startswith("aten")] == ["aten.gelu.default"]
