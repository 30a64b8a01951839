from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from latentbridge.errors import RunError
from latentbridge.train.recorded import Recorded, RecordedStep


@dataclass(frozen=True)
class Batch:
    ids: Tensor
    num_tokens: int


def test_each_batch_is_read_where_the_first_one_lay() -> None:
    seen: list[tuple[int, list[int]]] = []

    def work(batch: Batch) -> None:
        seen.append((batch.ids.data_ptr(), batch.ids.tolist()))

    step = RecordedStep(work)
    first = torch.tensor([4, 7, 9])
    for ids in (first, torch.tensor([1, 2, 3]), torch.tensor([5, 5, 5])):
        step(Batch(ids, 3))

    assert [ids for _, ids in seen] == [[4, 7, 9], [1, 2, 3], [5, 5, 5]]
    assert len({place for place, _ in seen}) == 1
    assert first.tolist() == [4, 7, 9]


def test_a_batch_of_another_shape_is_refused() -> None:
    step = RecordedStep(lambda batch: batch.ids.sum())
    step(Batch(torch.tensor([4, 7, 9]), 3))

    # one of a single number would fill all of the first
    with pytest.raises(RunError, match=r"ids has shape \(1,\), the first one's had \(3,\)"):
        step(Batch(torch.tensor([4]), 1))


@pytest.mark.parametrize("cause", [RuntimeError("a stream that waits"), torch.OutOfMemoryError("full")])
def test_what_broke_a_record_is_told_and_not_that_it_broke(monkeypatch, cause) -> None:
    """Of a stream that could not be recorded nothing was told but that the record had broken."""

    @contextmanager
    def graph(made: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    def work() -> None:
        if len(calls) == 2:
            raise cause
        calls.append(1)

    calls: list[int] = []
    for name, stub in {"is_available": lambda: True, "synchronize": lambda: None, "graph": graph}.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    recorded = Recorded(work)
    recorded()
    recorded()

    with pytest.raises(type(cause), match=str(cause)):
        recorded()
