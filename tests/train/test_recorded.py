from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from latentbridge.errors import RunError
from latentbridge.nn.layers import Layers
from latentbridge.train import recorded
from latentbridge.train.recorded import Recorded, RecordedStep, compiled_model

# torch's compiler asks activations for what only weights have
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


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


class Layer(nn.Module):
    def __init__(self, kind: type[nn.Module], width: int) -> None:
        super().__init__()
        self.inner, self.kind, self.dropout = nn.Linear(width, width), kind(), nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.dropout(self.kind(self.inner(x)))
        return out


class Deep(nn.Module):
    """Layers of two kinds, between an embedding and a head; told apart from what it is a part of."""

    def __init__(self, layers: int, width: int = 6) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, width), nn.LayerNorm(width)
        self.blocks = Layers(Layer((nn.GELU, nn.Tanh)[n % 3 == 2], width) for n in range(layers))
        self.head = nn.Linear(width, 11)
        # not called as modules
        self.lines = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(9))
        self.register_module("missing", None)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for line in self.lines:
            assert isinstance(line, nn.Linear)
            x = x + nn.functional.linear(x, line.weight)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


class Outer(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.inner = Deep(layers)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.inner(ids).square().sum()
        return out


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What a compiler was given, each graph of it; it runs them as they are."""
    given: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        given.append(graph)
        return graph.forward

    monkeypatch.setattr(
        recorded, "compiled", lambda work: torch.compile(work, dynamic=False, backend=backend)
    )
    torch._dynamo.reset()
    yield given
    torch._dynamo.reset()


@pytest.mark.parametrize("layers", [7, 13])
def test_of_a_deep_model_a_compiler_is_given_each_kind_of_layer_once(
    graphs: list[object], layers: int
) -> None:
    torch.manual_seed(3)
    model = Outer(layers)
    made = compiled_model(model)
    ids = torch.randint(11, (4, 9))
    found = []
    for way in (model, made):
        torch.manual_seed(5)
        loss = way(ids)
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])

    # two kinds of layers; embedding, norm and head
    assert len(graphs) == 5
    for plain, by_parts in zip(*found, strict=True):
        assert torch.equal(plain, by_parts)
    assert {*made.parameters()} == {*model.parameters()}
    assert type(model.inner.blocks[0]) is Layer


def test_a_model_of_few_layers_is_compiled_as_a_whole(graphs: list[object]) -> None:
    model = Outer(6)
    compiled_model(model)(torch.randint(11, (4, 9)))

    assert len(graphs) == 1


def test_layers_in_evaluation_are_so_when_compiled_by_parts(graphs: list[object]) -> None:
    model = Outer(8)
    made, ids = compiled_model(model), torch.randint(11, (4, 9))
    model.train()
    assert made(ids) != made(ids)
    model.eval()
    assert made(ids) == made(ids) == model(ids)


def test_layers_that_are_all_unlike_are_all_compiled(graphs: list[object]) -> None:
    """Beyond eight kinds torch's compiler would run the others as they are, with a warning."""
    model = Outer(12)
    for width, block in enumerate(model.inner.blocks, start=1):
        block.dropout.p = width / 100
    made = compiled_model(model)
    made(torch.randint(11, (4, 9)))

    assert len(graphs) == 12 + 3
