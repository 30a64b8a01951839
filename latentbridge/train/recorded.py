"""Work whose shapes never change, recorded once as a CUDA graph: the host launches it as one.

A small model's update is some 500 kernels of microseconds each: launched one by one, it waits for the host.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from latentbridge.errors import RunError
from latentbridge.nn.layers import Layers

T = TypeVar("T")

# the first calls run as they are: they compile, choose kernels and take what memory they need
_BEFORE = 2
# a model of more layers than that is compiled layer by layer
_WHOLE = 6


class Recorded(Generic[T]):
    """Calls `work`, which reads and writes the same tensors every time; from the third call on, its record.

    What `work` returns are the same tensors each time, overwritten by the next call. Its random numbers
    follow torch's seed as ever. Where there is no GPU every call runs as it is.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._found: T | None = None

    def __call__(self) -> T:
        if not torch.cuda.is_available() or self._calls < _BEFORE:
            self._calls += 1
            return self._work()
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()
        return self._found  # type: ignore[return-value]

    def _capture(self) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        cause: Exception | None = None
        try:
            with torch.cuda.graph(graph):
                try:
                    self._found = self._work()
                except Exception as error:
                    cause = error
                    raise
        except Exception:
            # ending a broken capture raises once more, and hides why it broke
            if cause is not None:
                raise cause from cause.__cause__
            raise
        return graph


class RecordedStep(Generic[T]):
    """Recorded work on a batch, each copied to where the first one lay."""

    def __init__(self, work: Callable[[Any], T]) -> None:
        self._work = work
        self._batch: Any = None
        self._record: Recorded[T] | None = None

    def __call__(self, batch: Any) -> T:
        """batch: a dataclass whose tensors have the same shapes every time."""
        if self._record is None:
            fixed = replace(batch, **{name: tensor.clone() for name, tensor in _tensors(batch)})
            self._batch, self._record = fixed, Recorded(lambda: self._work(fixed))
        for (name, place), (_, tensor) in zip(_tensors(self._batch), _tensors(batch), strict=True):
            if place.shape != tensor.shape:
                raise RunError(
                    f"the batch's {name} has shape {tuple(tensor.shape)}, the first one's had "
                    f"{tuple(place.shape)}: it cannot be recorded; write train.recorded: false"
                )
            place.copy_(tensor, non_blocking=True)
        return self._record()


def compiled(work: Any) -> Any:
    """A function or a module, of whose many small operations few kernels are made; on a GPU."""
    if not torch.cuda.is_available():
        return work
    return torch.compile(work, dynamic=False, options={"combo_kernels": True})


def compiled_model(model: nn.Module) -> nn.Module:
    """`compiled`; of a deep model a copy that shares its parts, each compiled by itself; for updates only.

    A compiler's time grows faster than what it is given: twelve layers of gated delta took it minutes, in
    every run. `Layers` that are alike it is given once. Nothing is fused across them then, which cost a small
    model 4 % of its speed, and one of 768 nothing.
    """
    deepest = max((len(part) for part in model.modules() if isinstance(part, Layers)), default=0)
    if deepest <= _WHOLE:
        whole: nn.Module = compiled(model)
        return whole
    # all may be unlike; beyond its limit a compiler runs the others as they are, and only warns
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, deepest)
    return _in_parts(model)


def _in_parts(module: nn.Module) -> nn.Module:
    if isinstance(module, Layers):
        return nn.ModuleList(compiled(part) for part in module)
    if not any(isinstance(part, Layers) for part in module.modules()):
        # another list, say, is not called
        is_called = type(module).forward is not nn.Module.forward
        made: nn.Module = compiled(module) if is_called else module
        return made
    made = copy.copy(module)
    made._modules = {
        name: None if part is None else _in_parts(part) for name, part in module._modules.items()
    }
    return made


def _tensors(batch: Any) -> list[tuple[str, Tensor]]:
    values = [(field.name, getattr(batch, field.name)) for field in fields(batch)]
    return [(name, value) for name, value in values if isinstance(value, Tensor)]
