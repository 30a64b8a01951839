from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentbridge.nn import head
from latentbridge.nn.head import Head


@pytest.fixture
def scored() -> tuple[Head, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return Head(7, 11), torch.randn(2, 5, 7, requires_grad=True), torch.randint(11, (2, 5))


@pytest.mark.parametrize("logits_at_once", [11, 33, 1000], ids=["one row", "three rows", "all rows"])
def test_chunked_cross_entropy_is_the_librarys_with_its_gradients(scored, monkeypatch, logits_at_once: int):
    monkeypatch.setattr(head, "_LOGITS", logits_at_once)
    layer, states, targets = scored
    expected = F.cross_entropy(
        F.linear(states, layer.weight).flatten(0, 1), targets.flatten(), reduction="none"
    )
    wanted = torch.autograd.grad(0.3 * expected.mean(), (states, layer.weight))
    found = layer(states, targets)
    gradients = torch.autograd.grad(0.3 * found.total / 10, (states, layer.weight))

    assert torch.allclose(found.nll.flatten(), expected, atol=1e-6)
    assert found.total.item() == pytest.approx(expected.sum().item(), rel=1e-6)
    for gradient, known in zip(gradients, wanted, strict=True):
        assert torch.allclose(gradient, known, atol=1e-7)


def test_a_shared_matrix_learns_from_both_of_its_uses(scored):
    _, _, targets = scored
    table = nn.Embedding(11, 7)
    layer = Head(7, 11, table.weight)
    layer(table(targets), targets).total.backward()
    found = table.weight.grad.clone()
    table.zero_grad()
    logits = table(targets).flatten(0, 1) @ table.weight.T
    F.cross_entropy(logits, targets.flatten(), reduction="sum").backward()

    assert torch.allclose(found, table.weight.grad, atol=1e-5)


def test_what_nobody_trains_gets_no_gradient(scored):
    layer, states, targets = scored
    layer.weight.requires_grad_(False)
    layer(states, targets).total.backward()

    assert layer.weight.grad is None and states.grad is not None
    with torch.no_grad():
        assert not layer(states, targets).total.requires_grad


def test_right_is_told_in_evaluation_mode_only_and_is_the_largest_logit(scored, monkeypatch):
    monkeypatch.setattr(head, "_LOGITS", 44)
    layer, states, targets = scored
    best = F.linear(states, layer.weight).argmax(-1)
    targets[0, :3] = best[0, :3]

    assert layer(states, targets).right is None
    assert torch.equal(layer.eval()(states, targets).right, best == targets)


def test_no_chunk_has_more_logits_than_are_allowed(scored, monkeypatch):
    """All tokens by all of a vocabulary of 50,257 would take 3.3 GB for 16 windows of 1,024."""
    widths = []
    original = head.nll_in_place
    monkeypatch.setattr(head, "_LOGITS", 50)
    monkeypatch.setattr(head, "nll_in_place", lambda *w: widths.append(w[0].shape) or original(*w))
    layer, states, targets = scored
    layer(states, targets)

    assert widths == [(4, 11), (4, 11), (2, 11)]


def test_in_half_precision_the_gradient_is_scaled_without_rounding(scored):
    """1 / 10 in bf16 is 0.1001; every gradient would be as wrong."""
    layer, states, targets = scored
    layer.bfloat16()
    states = states.detach().bfloat16().requires_grad_()
    total = layer(states, targets).total
    (unscaled,) = torch.autograd.grad(total, states, retain_graph=True)
    (scaled,) = torch.autograd.grad(total / 10, states)

    assert total.dtype == torch.float32
    assert torch.equal(scaled, (unscaled.float() / 10).bfloat16())
