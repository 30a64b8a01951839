"""The operators that go chunk by chunk, as torch and its compiler take them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentbridge.nn.chunk_states import chunk_states, chunk_states_backward

# N, Z, C, K and V
N, Z, C, K, V = 4, 2, 3, 5, 7
FORWARD = [(N, Z, C, K), (N, Z, C, V), (N, Z, C, K), (N, Z), (Z, K, V)]
BACKWARD = [(N, Z, C, K), (N, Z, C, K), (N, Z), (N, Z, C, V), (N, Z, K, V), (Z, K, V)]


def random(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_the_loop_over_chunks_keeps_what_torch_expects_of_an_operator():
    torch.library.opcheck(chunk_states, [x.requires_grad_() for x in random(FORWARD)])


# of calls to operators alone, which need no C++ compiler; a record of earlier ones would hide a fault
@pytest.mark.parametrize(("operator", "shapes"), [(chunk_states, FORWARD), (chunk_states_backward, BACKWARD)])
def test_a_compiler_takes_the_operators(monkeypatch, tmp_path: Path, operator, shapes):
    """An argument named `kernel`, as torch's compiler names its own, stopped every compiled run on a GPU."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    given = random(shapes)
    found = torch.compile(lambda: operator(*given), fullgraph=True, dynamic=False)()

    torch.testing.assert_close(found, operator(*given), rtol=0, atol=0)
