"""What routers did, from counts: worked out by hand, never from averages over layers."""

from __future__ import annotations

import pytest

from latentbridge.lm.routing_metrics import Observed, gini, load_by_layer, routing_metrics


def observed(counts: list[float], tokens: int = 4, entropy: float | None = 2.0) -> Observed:
    return Observed(counts=counts, tokens=tokens, confidence=0.75 * tokens, entropy=entropy)


def test_loads_are_summed_over_batches_and_kept_by_layer():
    batches = [[observed([6, 2, 0]), observed([0, 0, 8])], [observed([1, 3, 4]), observed([0, 0, 8])]]

    assert load_by_layer(batches) == [[7, 5, 4], [0, 0, 16]]


def test_a_collapsed_layer_is_not_hidden_by_an_even_one():
    """The seed averaged utilisation over layers first: [8, 0] and [0, 8] looked balanced."""
    found = routing_metrics([[observed([8, 0]), observed([0, 8])]], "val")

    assert found["val_demand_cv"].value == 1
    assert found["val_max_vio"].value == 1
    assert found["val_dead_experts"].value == 2
    assert found["val_experts_per_token"].value == 2


def test_max_vio_is_of_the_worst_layer_and_cv_a_mean():
    found = routing_metrics([[observed([4, 4, 4, 4]), observed([12, 4, 0, 0])]], "val")

    assert found["val_max_vio"].value == 2
    # deviation of 12, 4, 0, 0 is sqrt(24)
    assert found["val_demand_cv"].value == pytest.approx(24**0.5 / 4 / 2)


def test_confidence_and_entropy_are_means_over_tokens():
    found = routing_metrics([[observed([8, 0])], [observed([4, 0], tokens=2, entropy=1.0)]], "test")

    assert found["test_confidence"].value == 0.75
    assert found["test_entropy"].value == pytest.approx(3 / 6)
    assert found["test_entropy"].n == 6


def test_a_router_without_probabilities_has_no_entropy_rather_than_zero():
    assert "val_entropy" not in routing_metrics([[observed([4, 4], entropy=None)]], "val")


def test_nothing_routed_is_void():
    assert all(metric.value is None for metric in routing_metrics([], "val").values())


def test_a_layer_that_sends_nobody_anywhere_is_void_rather_than_perfectly_even():
    found = routing_metrics([[observed([8, 0, 4]), observed([0, 0, 0])]], "val")

    for name in ("demand_cv", "max_vio", "gini"):
        assert found[f"val_{name}"].void == "layer 1 sent no token to any expert", name
    assert found["val_dead_experts"].value == 4
    assert found["val_experts_per_token"].value == (3 + 0) / 2


@pytest.mark.parametrize(("load", "expected"), [([3, 3, 3], 0.0), ([0, 9, 0], 2 / 3), ([6, 0, 2, 0], 0.625)])
def test_gini_by_hand(load: list[float], expected: float):
    assert gini(load) == pytest.approx(expected)
