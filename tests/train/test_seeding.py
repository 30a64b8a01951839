from __future__ import annotations

import random

import numpy
import torch

from latentbridge.train.seeding import PassOrder, SampleOrder, reseed


def _draw() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))


def test_a_position_always_draws_the_same_and_others_draw_something_else() -> None:
    reseed(1234, "update", 17, 0)
    first = _draw()
    _draw()
    reseed(1234, "update", 17, 0)
    assert _draw() == first

    for other in [(1235, "update", 17, 0), (1234, "update", 18, 0), (1234, "update", 17, 1)]:
        reseed(*other)
        assert all(a != b for a, b in zip(_draw(), first, strict=True))


def test_every_epoch_shows_every_example_once_in_another_order() -> None:
    order = SampleOrder(seed=1234, num_examples=5)
    first, second = order.take(0, 5), order.take(5, 5)

    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    assert first != second


def test_a_batch_is_the_same_however_it_was_reached() -> None:
    order = SampleOrder(seed=1234, num_examples=5)
    in_sequence = [index for start in range(0, 21, 3) for index in order.take(start, 3)]

    assert SampleOrder(seed=1234, num_examples=5).take(9, 8) == in_sequence[9:17]
    assert SampleOrder(seed=1235, num_examples=5).take(9, 8) != in_sequence[9:17]


def test_a_batch_may_be_larger_than_the_training_set() -> None:
    batch = SampleOrder(seed=0, num_examples=2).take(1, 6)

    assert len(batch) == 6
    assert sorted(batch[1:5]) == [0, 0, 1, 1]


def test_an_order_that_tells_the_pass_is_the_same_order() -> None:
    plain, telling = SampleOrder(1234, num_examples=5), PassOrder(1234, num_examples=5)
    found = telling.take(3, 9)

    assert [index % 5 for index in found] == plain.take(3, 9)
    assert [index // 5 for index in found] == [0, 0, 1, 1, 1, 1, 1, 2, 2]
