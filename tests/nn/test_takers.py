"""Tokens that took a choice: alone on a CPU, before the others on a GPU."""

from __future__ import annotations

import pytest
import torch
from flexing import flex_on_cpu
from torch import Tensor

from latentbridge.nn import products
from latentbridge.nn.takers import find_takers

TAKEN = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0]])[:, :, None, None]


@pytest.fixture(params=["alone", "first", "first, by the grouped kernel"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "alone":
        flex_on_cpu(monkeypatch)
    monkeypatch.setattr(products, "_kernel_takes", lambda *given: "kernel" in request.param)
    return request.param


def test_takers_are_as_the_texts_go_and_the_rest_is_after_them_or_nowhere(way):
    ((takers,),) = find_takers(TAKEN)
    rest = [] if way == "alone" else [0, 2, 4, 5, 6, 9, 10, 11]

    assert takers.order.tolist() == [1, 3, 7, 8, *rest]
    assert (way == "alone") == (takers.end is None)
    assert takers.end is None or takers.end.tolist() == [4]


def test_each_layer_and_choice_has_its_own(way):
    taken = torch.rand(3, 5, 2, 4) < 0.5
    found = find_takers(taken)
    counts = [[len(own.order) if own.end is None else int(own.end) for own in layer] for layer in found]

    assert counts == taken.sum((0, 1)).tolist()


def test_what_is_taken_and_put_back_is_the_same_and_so_is_its_gradient(way):
    ((takers,),) = find_takers(TAKEN)
    x = torch.randn(3, 4, 5, requires_grad=True)
    rows = takers.take(x)
    weights = torch.arange(60.0).view(3, 4, 5)
    (takers.put(rows, 3, 4) * weights).sum().backward()
    is_there = (TAKEN > 0)[:, :, 0] if way == "alone" else torch.ones(3, 4, 1, dtype=torch.bool)

    assert torch.equal(rows[:2], x[0, [1, 3]])
    assert torch.equal(takers.put(rows, 3, 4), torch.where(is_there, x, 0))
    assert torch.equal(x.grad, torch.where(is_there, weights, 0))


def test_rows_of_others_are_0_whatever_is_in_them_and_teach_nothing(way):
    """What a kernel leaves unwritten may be anything, not-a-number too."""
    ((takers,),) = find_takers(TAKEN)
    rows, weight = torch.randn(len(takers.order), 4), torch.randn(8, 4, requires_grad=True)
    rows[4:] = 1e30
    rows.requires_grad_()
    found = takers.project(rows, weight, torch.ones(8))
    found.backward(torch.ones_like(found))

    torch.testing.assert_close(found[:4], rows[:4] @ weight.T + 1)
    assert not found[4:].any()
    assert not rows.grad[4:].any()
    torch.testing.assert_close(weight.grad, rows[:4].detach().sum(0).expand(8, 4))


def test_where_nobody_took_it_weights_have_a_gradient_of_0(way):
    ((takers,),) = find_takers(torch.zeros_like(TAKEN))
    x, weight = torch.randn(3, 4, 8), torch.randn(4, 8, requires_grad=True)
    out: Tensor = takers.put(takers.project(takers.take(x), weight, None), 3, 4)
    out.sum().backward()

    assert not out.any()
    assert not weight.grad.any()
