"""Every phase once at full size before the first update: what will not fit or train is known in a minute.

The seed's runs died at update 250 or 300, in their first evaluation or decoding, five times in a row.
Nothing that is done here changes what follows: no gradient is kept, and each update draws its own numbers.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from latentbridge.errors import RunError
from latentbridge.job import Run
from latentbridge.train import distributed
from latentbridge.train.engine import Engine
from latentbridge.train.seeding import reseed

# its name among the checks that can be left out
FIRST_MINUTE = "first_minute"


@runtime_checkable
class Weighable(Protocol):
    """What a workload needs so that its heaviest work can be tried out."""

    def heaviest(self, count: int) -> Sequence[int]:
        """The training examples that take the most memory."""

    def heaviest_steps(self, steps: int) -> Sequence[int]:
        """Updates, of so many, that take the most: together they have every term of the loss."""

    def load_batch(self, indices: Sequence[int]) -> Any: ...

    def losses(self, model: nn.Module, batch: Any, step: int) -> dict[str, Any]: ...

    def evaluate_heaviest(self, model: nn.Module) -> None:
        """The part of an evaluation that takes the most memory; all ranks together."""


def first_minute(
    workload: Weighable, engine: Engine, model: nn.Module, steps: int, run: Run
) -> dict[str, Any]:
    """Try out an update, an evaluation and a checkpoint; returns seconds and peak GiB of each.

    model: what updates call, and not the engine itself: DeepSpeed takes any backward for one of its own
    steps: updates of the whole run
    RunError where a term of the loss trains nothing; what does not fit raises what it would later
    """
    found: dict[str, Any] = {}

    def measured(phase: str, work: Callable[[], None]) -> None:
        run.progress(f"first minute: {phase}", 0, 1)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found[phase] = {"seconds": round(time.perf_counter() - started, 3)}
        if torch.cuda.is_available():
            peaks = distributed.gather_in_order([torch.cuda.max_memory_allocated()])
            found[phase]["peak_gib"] = round(max(peaks) / 2**30, 2)

    reseed("first minute")
    # what a forward in training mode remembers, such as a router's load, is not of the run
    kept = [(buffer, buffer.clone()) for buffer in engine.module.buffers()]
    measured("update", lambda: _try_updates(workload, engine, model, workload.heaviest_steps(steps)))
    for buffer, before in kept:
        buffer.copy_(before)
    engine.set_training(False)
    with torch.no_grad():
        measured("evaluation", lambda: workload.evaluate_heaviest(engine.model))
    engine.set_training(True)
    measured("checkpoint", lambda: _try_saving(engine, run))
    return found


def _try_updates(workload: Weighable, engine: Engine, model: nn.Module, steps: Sequence[int]) -> None:
    engine.set_training(True)
    count = engine.micro_batch_size * distributed.world_size()
    batch = workload.load_batch(distributed.shard(workload.heaviest(count)))
    for step in steps:
        if engine.zero_stage < 3:
            _try_update(workload, model, batch, step, is_alone=count == 1)
            continue
        # weights are there inside of a forward only; the first update tells whether a backward fits
        with torch.no_grad():
            workload.losses(engine.model, batch, step)


def _try_update(workload: Weighable, model: nn.Module, batch: Any, step: int, is_alone: bool) -> None:
    terms = workload.losses(model, batch, step)
    # what weighs nothing is a figure for the log
    weighted = [name for name, term in terms.items() if term.weight]
    parameters = [p for p in model.parameters() if p.requires_grad]
    for number, name in enumerate(weighted):
        if number:
            terms.clear()
            # a compiled part, such as FlexAttention, may give its gradient only once
            terms = workload.losses(model, batch, step)
        term = terms[name]
        found = torch.autograd.grad(term.value, parameters, allow_unused=True)
        is_dead = not any(gradient is not None and bool(gradient.any()) for gradient in found)
        # a term that compares samples has nothing to say of a single one
        if is_dead and not is_alone:
            raise RunError(f"losses.{name} weighs {term.weight:g}, but has no gradient and trains nothing")


def _try_saving(engine: Engine, run: Run) -> None:
    folder = run.folder.checkpoints / "first-minute"
    if distributed.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    distributed.barrier()
    engine.save(folder)
    distributed.barrier()
    if distributed.rank() == 0:
        shutil.rmtree(folder)
