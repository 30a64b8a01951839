from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from latentbridge.nn import short_convolution_backend
from latentbridge.nn.short_convolution import convolve, convolve_by_triton
from latentbridge.nn.short_convolution_backend import choose_convolution, convolution_of, error_of

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_without_cuda_or_16_bits_it_is_torch_and_says_why():
    assert choose_convolution(CPU, torch.bfloat16) == ("torch", "kernels run on CUDA, and this is cpu")
    assert "these are torch.float32" in choose_convolution(CUDA, torch.float32).reason


@pytest.mark.parametrize(("error", "name"), [(0.003, "triton"), (0.03, "torch"), (float("nan"), "torch")])
def test_the_kernel_is_used_where_it_agrees_with_float64(monkeypatch, error: float, name: str):
    monkeypatch.setattr(short_convolution_backend, "error_of", lambda *given: error)
    found = choose_convolution(CUDA, torch.bfloat16)

    assert found.name == name
    assert f"{error:.1e}" in found.reason
    assert convolution_of(name) is (convolve_by_triton if name == "triton" else convolve)


def test_what_does_not_run_is_not_used(monkeypatch):
    def fails(*given):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(short_convolution_backend, "error_of", fails)

    assert choose_convolution(CUDA, torch.bfloat16) == (
        "torch",
        "our kernel does not run: RuntimeError: no such kernel",
    )


def test_the_error_is_small_of_what_is_right_and_large_of_one_that_looks_ahead():
    def ahead(x, taps):
        return convolve(F.pad(x, (0, 0, 0, 1)), taps)[:, 1:]

    assert error_of(convolve, CPU, torch.bfloat16) < 1e-2
    assert error_of(ahead, CPU, torch.bfloat16) > 0.1
