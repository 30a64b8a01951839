from __future__ import annotations

import pytest
import torch
from flexing import flex_on_cpu

from latentbridge.nn import sorted_attention_backend
from latentbridge.nn.sorted_attention import by_blocks, plain
from latentbridge.nn.sorted_attention_backend import LONG, choose_reader, error_of, reader_of

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_without_cuda_or_16_bits_torch_reads_and_it_says_why(monkeypatch):
    assert choose_reader(CPU, torch.bfloat16, 5, LONG) == ("plain", "kernels run on CUDA, and this is cpu")
    assert "these are torch.float32" in choose_reader(CUDA, torch.float32, 5, LONG).reason


@pytest.mark.parametrize(("error", "name"), [(0.003, "by_blocks"), (0.03, "plain"), (float("nan"), "plain")])
def test_flex_attention_is_used_where_it_agrees_with_float64(monkeypatch, error: float, name: str):
    monkeypatch.setattr(sorted_attention_backend, "error_of", lambda *given: error)
    found = choose_reader(CUDA, torch.bfloat16, 5, LONG)

    assert found.name == name
    assert f"{error:.1e}" in found.reason
    assert reader_of(name) in (by_blocks, plain)


def test_in_short_texts_all_places_are_read_and_nothing_is_tried():
    assert choose_reader(CUDA, torch.bfloat16, 5, LONG - 1) == (
        "plain",
        "texts of 4,095 tokens; from 4,096 on it pays to read by blocks",
    )


def test_what_does_not_compile_is_not_used(monkeypatch):
    def fails(*given):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(sorted_attention_backend, "error_of", fails)

    reason = "FlexAttention does not run: RuntimeError: no such kernel"
    assert choose_reader(CUDA, torch.bfloat16, 5, LONG) == ("plain", reason)


def test_the_error_is_small_of_what_is_right_and_large_of_a_reader_that_sees_too_much(monkeypatch):
    def of_later_tokens(query, key, value, takers):
        return plain(query, key.roll(-1, dims=1), value, takers)

    assert error_of(plain, CPU, torch.bfloat16, 5) < 2e-2
    flex_on_cpu(monkeypatch)
    assert error_of(by_blocks, CPU, torch.bfloat16, 5) < 2e-2
    assert error_of(of_later_tokens, CPU, torch.bfloat16, 5) > 0.1
