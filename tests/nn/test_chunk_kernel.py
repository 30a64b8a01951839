"""Triton's interpreter runs the kernel on a CPU, in float16: its bf16 products are wrong.

A machine without Triton skips this. python benchmarks/gated_delta.py holds the compiled kernel against the
recurrence, in bf16.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

import pytest
import torch
from torch import Tensor

from latentbridge.nn.chunk_states import chunk_states
from latentbridge.nn.gated_delta import gated_delta_rule, recurrent_gated_delta

pytest.importorskip("triton")
if tuple(map(int, importlib.metadata.version("numpy").split(".")[:2])) >= (2, 4):
    pytest.skip("Triton's interpreter counts no loop with numpy 2.4", allow_module_level=True)
KERNEL = "latentbridge.nn.chunk_kernel"


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, KERNEL, raising=False)
    yield importlib.import_module(KERNEL)
    sys.modules.pop(KERNEL)


def inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [0.3 * torch.randn(shape, generator=generator) for shape in shapes]


# V of no whole block of columns
@pytest.mark.parametrize(
    ("chunks", "sequences", "chunk", "keys", "values"), [(3, 2, 16, 32, 24), (1, 3, 32, 16, 16)]
)
def test_the_kernel_is_the_loop_with_all_gradients(interpreted, chunks, sequences, chunk, keys, values):
    z = chunks, sequences
    given = inputs((*z, chunk, keys), (*z, chunk, values), (*z, chunk, keys), z, (sequences, keys, values))
    given[3] = given[3].sigmoid()
    above = inputs((*z, chunk, values), (*z, keys, values), (sequences, keys, values))
    found = []
    for kernel, dtype in ((True, torch.float16), (False, torch.float16), (False, torch.float64)):
        types = [dtype] * 3 + [dtype if dtype == torch.float64 else torch.float32] * 2
        own = [x.half().to(kind).requires_grad_() for x, kind in zip(given, types, strict=True)]
        assert not kernel or interpreted.runs(own[0], own[1])
        outs = chunk_states(*own, kernel)
        seen = torch.autograd.grad(outs, own, [x.to(out.dtype) for x, out in zip(above, outs, strict=True)])
        found.append([*outs, *seen])

    for by_kernel, by_loop, exact in zip(*found, strict=True):
        assert by_kernel.dtype == by_loop.dtype
        size, error = exact.norm(), (by_kernel.double() - exact).norm()
        # as near as the loop in the same numbers, give or take a rounding
        assert error <= (by_loop.double() - exact).norm() + 1e-4 * size


def test_the_whole_rule_by_the_kernel_is_the_recurrence():
    q, k, v, decay, beta = inputs((2, 37, 3, 16), (2, 37, 3, 16), (2, 37, 3, 24), (2, 37, 3), (2, 37, 3))
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    tokens = [x.half().requires_grad_() for x in (q, k, v)]
    tokens += [(-decay.abs()).requires_grad_(), beta.sigmoid().half().requires_grad_()]
    exact = [x.detach().double().requires_grad_() for x in tokens]
    out, last = gated_delta_rule(*tokens, chunk=16, by_triton=True)
    expected, expected_last = recurrent_gated_delta(*exact)
    above = torch.linspace(-1, 2, out.numel()).view_as(out)
    pairs = [(out, expected), (last, expected_last)]
    pairs += zip(
        torch.autograd.grad(out, tokens, above.half()),
        torch.autograd.grad(expected, exact, above.half().double()),
        strict=True,
    )

    assert all((a.double() - b).norm() < 3 / 2048 * b.norm() for a, b in pairs)


@pytest.mark.parametrize(
    ("chunk", "keys", "dtype"),
    [(48, 64, "bfloat16"), (8, 64, "bfloat16"), (64, 512, "bfloat16"), (64, 64, "float32")],
)
def test_sizes_that_the_kernel_does_not_take_are_the_loop_s(interpreted, chunk, keys, dtype):
    removed = torch.zeros(1, 1, chunk, keys, dtype=getattr(torch, dtype))

    assert not interpreted.runs(removed, removed)
