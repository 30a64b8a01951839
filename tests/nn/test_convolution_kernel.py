"""Triton's interpreter runs the kernel on a CPU; a machine without Triton skips this."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

import pytest
import torch
from torch import Tensor

from latentbridge.nn.short_convolution import ShortConvolution, convolve, convolve_by_triton

pytest.importorskip("triton")
if tuple(map(int, importlib.metadata.version("numpy").split(".")[:2])) >= (2, 4):
    pytest.skip("Triton's interpreter counts no loop with numpy 2.4", allow_module_level=True)
KERNEL = "latentbridge.nn.convolution_kernel"


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, KERNEL, raising=False)
    yield importlib.import_module(KERNEL)
    sys.modules.pop(KERNEL)


def with_gradients(way, x: Tensor, taps: Tensor, above: Tensor) -> list[Tensor]:
    given = [x.clone().requires_grad_(), taps.clone().requires_grad_()]
    out = way(*given)
    return [out.detach(), *torch.autograd.grad(out, given, above.to(out.dtype))]


# texts of less than four tokens, of one program, of one and a row, of three; channels of no whole block
@pytest.mark.parametrize("shape", [(1, 1, 130), (2, 3, 5), (3, 128, 7), (1, 129, 3), (2, 300, 9)])
def test_the_kernel_is_the_shifted_products_with_all_gradients(interpreted, shape):
    generator = torch.Generator().manual_seed(4)
    x, above = (torch.randn(shape, generator=generator) for _ in range(2))
    taps = torch.randn(shape[2], 4, generator=generator)
    assert interpreted.runs(x, taps)
    found = with_gradients(convolve_by_triton, x, taps, above)
    exact = with_gradients(convolve, x.double(), taps.double(), above)

    for by_kernel, expected in zip(found, exact, strict=True):
        assert torch.allclose(by_kernel.double(), expected, rtol=1e-4, atol=1e-4)


def test_in_16_bits_it_is_off_by_roundings(interpreted):
    generator = torch.Generator().manual_seed(5)
    x, above = (torch.randn(2, 140, 6, generator=generator).half() for _ in range(2))
    taps = torch.randn(6, 4, generator=generator)
    found = with_gradients(convolve_by_triton, x, taps, above)
    exact = with_gradients(convolve, x.double(), taps.double(), above)

    for by_kernel, expected in zip(found, exact, strict=True):
        assert (by_kernel.double() - expected).norm() < 2 / 2048 * expected.norm()
    assert [part.dtype for part in found] == [torch.float16, torch.float16, torch.float32]


def test_a_text_in_parts_is_the_whole_at_once(interpreted):
    torch.manual_seed(6)
    layer, x = ShortConvolution(5, convolve=convolve_by_triton), torch.randn(2, 9, 5)
    first, window = layer(x[:, :2])
    second, last = layer(x[:, 2:], window)
    whole, expected = layer(x)

    assert torch.allclose(torch.cat([first, second], dim=1), whole, atol=1e-6)
    assert torch.equal(last, expected)


def test_other_widths_are_the_shifted_products_own(interpreted):
    x, taps = torch.randn(2, 5, 3), torch.randn(3, 2)

    assert not interpreted.runs(x, taps)
    assert torch.equal(convolve_by_triton(x, taps), convolve(x, taps))
