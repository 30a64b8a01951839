"""Runs without SLURM: worker processes on this machine, a few at a time, until every run has an end.

What nobody works on is told from the same states as on SLURM; only starting a run differs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from latentbridge.errors import PreflightError, RunError
from latentbridge.job import GUARDIAN_VARIABLE
from latentbridge.launch.cluster import local_gpus
from latentbridge.launch.node.attempt import close_lost, ranks_of
from latentbridge.launch.node.torchrun import SAVE_GRACE_S
from latentbridge.launch.node.worker import EXIT_AGAIN
from latentbridge.launch.record import Launch, PlannedRun, settle_config
from latentbridge.launch.status import WORKER_LOG
from latentbridge.launch.twins import say_damaged, take_over


@dataclass(frozen=True)
class Work:
    """One run in the hands of a worker."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    # the last attempt of those that others made; what it said it was doing is over
    after: int

    def read_progress(self) -> dict[str, Any]:
        """What this worker's attempt last said it was doing; empty before it has said anything."""
        attempts = self.run.folder.list_attempts()
        has_begun = bool(attempts) and int(attempts[-1].name) > self.after
        return self.run.folder.read_progress() if has_begun else {}


class LocalPool:
    """Runs a launch's pending runs in order, at most `max_parallel` at once, after what they need."""

    def __init__(self, launch: Launch, pending: list[PlannedRun]) -> None:
        self.launch = launch
        self.pending = list(pending)
        self.parallel = min(launch.cluster.max_parallel, max(1, len(pending)))
        self.gpus = local_gpus()
        for run in pending:
            if self.gpus and ranks_of(run) > len(self.gpus):
                raise PreflightError(
                    f"run '{run.name}' asks for {ranks_of(run)} GPUs, this machine shows {len(self.gpus)}: "
                    "--set resources.gpus_per_node=N, or another --cluster"
                )
        self.working: dict[int, Work] = {}  # by slot
        self.stopping = False
        self.interrupts = 0
        # why runs could not start, or not from what there is
        self.refusals: list[str] = []

    def run(self, watch: Callable[[LocalPool], None]) -> None:
        """Work until nothing is pending; `watch` is called every 0.2 s. Ctrl-C saves and stops, two kill."""
        # a handler of our own: an exception may be raised, and lost, anywhere
        before = signal.signal(signal.SIGINT, self._count_interrupt)
        try:
            while self.working or (self.pending and not self.stopping):
                self._obey_interrupts()
                self._take_over()
                self._start_ready()
                self._collect()
                watch(self)
                time.sleep(0.2)
        except BaseException:
            self._ask_all_to_stop()
            self._wait_for_all(SAVE_GRACE_S)
            raise
        finally:
            signal.signal(signal.SIGINT, before)
        if self.interrupts:
            raise KeyboardInterrupt

    def _count_interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupts += 1

    def _obey_interrupts(self) -> None:
        if self.interrupts and not self.stopping:
            self.stopping = True
            self._ask_all_to_stop()
        elif self.interrupts > 1:
            self._wait_for_all(0)

    def _take_over(self) -> None:
        self.pending = [run for run in self.pending if not (run.twins and self._has_end(run))]

    def _has_end(self, run: PlannedRun) -> bool:
        """Whether there is nothing left to do for a run with twins: it was taken over, or cannot be now."""
        try:
            return take_over(run)
        except (OSError, RunError) as error:  # the others go on
            self.refusals.append(f"{run.name}: what {run.twins[0].path} has could not be taken over: {error}")
            return True

    def _start_ready(self) -> None:
        for slot in range(self.parallel):
            if slot in self.working or self.stopping:
                continue
            ready = next((run for run in self.pending if self._may_start(run)), None)
            if ready is None:
                self._give_up_blocked()
                return
            self.pending.remove(ready)
            try:
                settle_config(self.launch, ready)
            except RunError as refusal:  # what it refers to has no value; the others go on
                self.refusals.append(str(refusal))
            else:
                self.refusals += say_damaged(ready)
                attempts = ready.folder.list_attempts()
                after = int(attempts[-1].name) if attempts else 0
                self.working[slot] = Work(ready, self._start(ready, slot), after)

    def _may_start(self, run: PlannedRun) -> bool:
        return self._has_needs(run) and not any(twin.is_locked() for twin in run.twins)

    def _has_needs(self, run: PlannedRun) -> bool:
        return all(self.launch.run(need).folder.is_done for need in run.needs)

    def _give_up_blocked(self) -> None:
        """Leave runs whose needs ended badly to a later launch; `status` says what they wait for."""
        moving = {work.run.name for work in self.working.values()} | {run.name for run in self.pending}
        while blocked := [r for r in self.pending if not self._has_needs(r) and not moving & set(r.needs)]:
            for run in blocked:
                self.pending.remove(run)
                moving.discard(run.name)

    def _start(self, run: PlannedRun, slot: int) -> subprocess.Popen[bytes]:
        ranks = ranks_of(run)
        threads = max(1, (os.cpu_count() or 1) // (self.parallel * ranks))
        command = [
            sys.executable,
            "-m",
            "latentbridge.launch.node.worker",
            str(self.launch.path),
            "--run",
            run.name,
        ]
        environment = os.environ | {GUARDIAN_VARIABLE: str(os.getpid())}
        if self.gpus:
            # slots beyond the last GPU share from the first on: small runs leave a GPU idle most of the time
            own = [self.gpus[(slot * ranks + i) % len(self.gpus)] for i in range(ranks)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        log = self.launch.path / WORKER_LOG.format(run=run.name)
        with open(log, "ab") as out:
            return subprocess.Popen(
                [*command, f"--threads={threads}"],
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )

    def _collect(self) -> None:
        for slot, work in list(self.working.items()):
            run, code = work.run, work.process.poll()
            if code is None:
                continue
            del self.working[slot]
            again = code == EXIT_AGAIN
            if code < 0:
                message = f"its worker was killed by signal {-code}; see {WORKER_LOG.format(run=run.name)}"
                again = close_lost(self.launch, run, "killed", message)
            if again and not self.stopping:
                self.pending.insert(0, run)

    def _ask_all_to_stop(self) -> None:
        for work in self.working.values():
            work.process.send_signal(signal.SIGTERM)

    def _wait_for_all(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        for process in (work.process for work in self.working.values()):
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # its torchrun and ranks die with it
                process.wait()
        self.working.clear()
