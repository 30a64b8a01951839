"""What a job brings to its rehearsal, what a check is, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from latentbridge.config import JobConfig
from latentbridge.job import Run
from latentbridge.metric import Metric
from latentbridge.rundir import RunDir
from latentbridge.train.loop import FINAL, Workload
from latentbridge.train.seeding import reseed

# how far weights are moved from where they start: what starts at zero hides what is behind it
_OPENING = 0.05
_BATCH = 2


class Caught(Exception):
    """A check failed; the text says what was found and what that does to a result."""


@dataclass(frozen=True)
class Check:
    """One proof: `prove` returns a line of evidence, or raises Caught."""

    name: str
    prove: Callable[[Stage], str]


class Rehearsal(Protocol):
    """What a workload plugs in; a job file's `rehearsal()` returns one."""

    checks: Sequence[Check]

    def shrink(self, config: Any, folder: Path) -> Any:
        """The same computation at a size for one CPU core; tiny models are made in `folder` once."""

    def workload(self, config: Any, run: Run) -> Workload:
        """The workload of a shrunk config."""

    def moments(self, config: Any) -> list[int]:
        """Updates, from 1, between which nothing in the schedule of the loss changes."""

    def protocol(self, config: Any) -> dict[str, Any]:
        """Settings of the full-size config that matter by what they are, such as how much is evaluated."""

    def engineering(self) -> tuple[str, ...]:
        """Dotted keys that change how, and never what, is computed."""


class Stage:
    """One shrunk config, and everything that the checks look at."""

    def __init__(
        self, rehearsal: Rehearsal, config: JobConfig, folder: Path, real: Sequence[JobConfig] = ()
    ) -> None:
        """folder: run folders are made beside it, under its name: stages with one parent share a cache.

        real: the configs that come to this one when they are shrunk
        """
        self.rehearsal = rehearsal
        # of a class of the job's own
        self.config: Any = config
        self.real: Sequence[Any] = real or (config,)
        self._folder, self._numbers = folder, count()

    def run(self) -> Run:
        """A new run folder."""
        folder = self._folder.with_name(f"{self._folder.name}-{next(self._numbers)}")
        folder.mkdir(parents=True)
        return Run(RunDir(folder))

    @cached_property
    def workload(self) -> Workload:
        """The workload with all gates open; what changes it makes its own."""
        return self.fresh()

    @property
    def is_trained(self) -> bool:
        """Whether the run makes any update."""
        train = getattr(self.config, "train", None)
        return train is not None and bool(train.steps)

    def fresh(self, **changes: Any) -> Workload:
        """Another one of the same weights; changes: of settings at the top of the config."""
        config = self.config.model_copy(update=changes)
        made = self.rehearsal.workload(config, self.run())
        open_gates(made.model)
        return made

    @cached_property
    def evaluated(self) -> dict[str, Metric]:
        """The final evaluation of the workload."""
        return self.evaluate(self.workload)

    @staticmethod
    def evaluate(workload: Workload, draw: int = 0) -> dict[str, Metric]:
        """A final evaluation; draw: the state of the global generators, on which nothing may depend."""
        reseed("rehearsal", "evaluation", draw)
        workload.model.eval()
        with torch.no_grad():
            return workload.evaluate(workload.model, 1, FINAL)

    @property
    def batch(self) -> Sequence[int]:
        """Training examples to look at."""
        return range(min(_BATCH, self.workload.num_examples))

    @cached_property
    def moments(self) -> list[int]:
        return self.rehearsal.moments(self.config)

    @contextmanager
    def keeping_buffers(self) -> Iterator[None]:
        """Put back what forwards in training mode change beside weights, such as a running mean."""
        kept = {name: buffer.clone() for name, buffer in self.workload.model.named_buffers()}
        try:
            yield
        finally:
            for name, buffer in self.workload.model.named_buffers():
                buffer.copy_(kept[name])

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained."""
        return ((name, p) for name, p in self.workload.model.named_parameters() if p.requires_grad)


@torch.no_grad()
def open_gates(model: nn.Module) -> None:
    """Move every weight a little, always in the same way."""
    reseed("rehearsal")
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=_OPENING)
