"""Triton's interpreter runs the kernel on a CPU; a machine without Triton skips this."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

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


@pytest.fixture
def launches(interpreted, monkeypatch) -> list[str]:
    """What is asked of the kernel, in order."""
    asked: list[str] = []

    def told(name: str, launch: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: asked.append(name) or launch(*given)

    for name in ("forward", "backward"):
        monkeypatch.setattr(interpreted, name, told(name, getattr(interpreted, name)))
    return asked


def with_gradients(way, x: Tensor, taps: Tensor, above: Tensor) -> list[Tensor]:
    given = [x.clone().requires_grad_(), taps.clone().requires_grad_()]
    out = way(*given)
    return [out.detach(), *torch.autograd.grad(out, given, above.to(out.dtype))]


# texts of less than four tokens, of one program, of one and a row, of three; channels of no whole block
@pytest.mark.parametrize("shape", [(1, 1, 130), (2, 3, 5), (3, 128, 7), (1, 129, 3), (2, 300, 9)])
def test_the_kernel_is_the_shifted_products_with_all_gradients(launches, shape):
    generator = torch.Generator().manual_seed(4)
    x, above = (torch.randn(shape, generator=generator) for _ in range(2))
    taps = torch.randn(shape[2], 4, generator=generator)
    found = with_gradients(convolve_by_triton, x, taps, above)
    exact = with_gradients(convolve, x.double(), taps.double(), above)

    assert launches == ["forward", "backward"]
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


def test_a_compiler_traces_it_without_a_break(launches):
    generator = torch.Generator().manual_seed(7)
    x, above = (torch.randn(2, 7, 5, generator=generator) for _ in range(2))
    taps = torch.randn(5, 4, generator=generator)
    traced = torch.compile(convolve_by_triton, backend="aot_eager", fullgraph=True)
    found = with_gradients(traced, x, taps, above)

    assert launches == ["forward", "backward"]
    for by_kernel, expected in zip(found, with_gradients(convolve, x, taps, above), strict=True):
        assert torch.allclose(by_kernel, expected, atol=1e-5)


@pytest.mark.parametrize(("width", "dtype"), [(2, torch.float32), (4, torch.float64)])
def test_other_widths_and_types_are_the_shifted_products_own(launches, width, dtype):
    x, taps = torch.randn(2, 5, 3, dtype=dtype), torch.randn(3, width)

    assert torch.equal(convolve_by_triton(x, taps), convolve(x, taps))
    assert not launches
