"""Stop requests: any rank may be asked, all ranks leave together."""

from __future__ import annotations

import math
import time

import torch

from latentbridge.job import Run
from latentbridge.train import distributed

# a wrong guess of the pace may cost this many updates between two questions, not more
_MOST_UPDATES = 50


class StopPoll:
    """Asks every rank whether to stop, and gives all of them the same answer at the same update."""

    def __init__(self, run: Run, interval_s: float | None = None) -> None:
        """interval_s: None asks at every update on CPU, and once a second on CUDA, where ranks that
        exchange answers make the host wait for the device."""
        self._run = run
        self._interval_s = interval_s if interval_s is not None else float(torch.cuda.is_available())
        self._next_step = 0
        self._last = (0, time.perf_counter())

    def poll_next(self) -> None:
        """Ask at the next chance, however recent the last answer is."""
        self._next_step = 0

    def asked(self, step: int) -> bool:
        """Whether any rank was asked to stop, as far as is known after `step` updates; all ranks together."""
        if step < self._next_step:
            return False
        now = time.perf_counter()
        updates = step - self._last[0]
        update_s = (now - self._last[1]) / updates if updates > 0 else math.inf
        answers = distributed.gather_in_order([(self._run.should_stop(), update_s)])
        pause = self._interval_s / max(seconds for _, seconds in answers)
        self._next_step = step + max(1, min(_MOST_UPDATES, round(pause)))
        self._last = (step, now)
        return any(asked for asked, _ in answers)
