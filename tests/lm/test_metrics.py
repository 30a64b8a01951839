from __future__ import annotations

import math

import pytest

from latentbridge.lm.metrics import Window, metrics_of

# nats, right, tokens, bytes
TWO = [Window(3.0, 1, 4, 5), Window(9.0, 2, 4, 7)]


def test_nats_are_per_token_and_bits_per_byte():
    found = metrics_of(TWO, "val")

    assert found["val_nll"].value == pytest.approx(12 / 8)
    assert found["val_bits_per_byte"].value == pytest.approx(12 / math.log(2) / 12)
    assert found["val_accuracy"].value == pytest.approx(3 / 8)
    assert found["val_perplexity"].value == pytest.approx(math.exp(1.5))
    assert all(metric.n == 2 for metric in found.values())


def test_intervals_are_over_windows_since_tokens_of_one_are_not_independent():
    found = metrics_of(TWO, "test")
    half = 1.959964 * math.sqrt(((3 - 6) ** 2 + (9 - 6) ** 2) / 2) / 4

    assert found["test_nll"].high == pytest.approx(1.5 + half)
    assert found["test_perplexity"].low == pytest.approx(math.exp(1.5 - half))


def test_who_knows_nothing_of_bytes_pays_eight_bits_for_each_however_text_is_cut():
    for tokens_and_bytes in ([(7, 7), (7, 7)], [(3, 7), (4, 12)], [(2, 9), (2, 8)]):
        windows = [Window(math.log(256) * size, 0, tokens, size) for tokens, size in tokens_and_bytes]
        assert metrics_of(windows, "val")["val_bits_per_byte"].value == pytest.approx(8)


def test_a_perplexity_above_its_limit_is_void_and_never_capped():
    """13 published runs show the same perplexity, 485,165,195: exp of a cap at 20 nats."""
    below, above = (metrics_of([Window(nats, 0, 1, 1)] * 3, "val") for nats in (20.0, 24.15))

    assert below["val_perplexity"].value == pytest.approx(485_165_195.41)
    assert above["val_perplexity"].value is None
    assert above["val_perplexity"].void == "24.15 nats per token: exp of more than 20 means nothing"
    assert above["val_nll"].value == pytest.approx(24.15)
