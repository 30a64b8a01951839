"""Runs without SLURM: worker processes on this machine, a few at a time, until every run has an end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

from latentbridge.errors import PreflightError
from latentbridge.job import GUARDIAN_VARIABLE
from latentbridge.launch.cluster import local_gpus
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.status import WORKER_LOG
from latentbridge.launch.worker import EXIT_AGAIN, SAVE_GRACE_S

# a worker that is killed from outside is started again this often
MAX_KILLS = 5


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
        self.working: dict[int, tuple[PlannedRun, subprocess.Popen[bytes]]] = {}  # by slot
        self.kills: Counter[str] = Counter()
        self.stopping = False

    def run(self, watch: Callable[[LocalPool], None]) -> None:
        """Work until nothing is pending; `watch` is called every 0.2 s. Ctrl-C saves and stops, two kill."""
        try:
            while self.working or (self.pending and not self.stopping):
                try:
                    self._start_ready()
                    self._collect()
                    watch(self)
                    time.sleep(0.2)
                except KeyboardInterrupt:
                    self._interrupt()
        except BaseException:
            self._ask_all_to_stop()
            self._wait_for_all(SAVE_GRACE_S)
            raise
        if self.stopping:
            raise KeyboardInterrupt

    def _start_ready(self) -> None:
        for slot in range(self.parallel):
            if slot in self.working or self.stopping:
                continue
            ahead = {run.name for run, _ in self.working.values()} | {run.name for run in self.pending}
            ready = next((run for run in self.pending if not ahead & set(run.needs)), None)
            if ready is None:
                return
            self.pending.remove(ready)
            self.working[slot] = (ready, self._start(ready, slot))

    def _start(self, run: PlannedRun, slot: int) -> subprocess.Popen[bytes]:
        ranks = ranks_of(run)
        threads = max(1, (os.cpu_count() or 1) // (self.parallel * ranks))
        command = [
            sys.executable,
            "-m",
            "latentbridge.launch.worker",
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
        for slot, (run, process) in list(self.working.items()):
            code = process.poll()
            if code is None:
                continue
            del self.working[slot]
            if code < 0:
                self.kills[run.name] += 1
            killed = code < 0 and self.kills[run.name] <= MAX_KILLS
            if not self.stopping and (killed or code == EXIT_AGAIN):
                self.pending.insert(0, run)
            elif code < 0 and run.folder.state is None and not self.stopping:
                message = f"its worker was killed {self.kills[run.name]} times, last by signal {-code}"
                run.folder.mark("FAILED", {"cause": "node_fail", "message": message, "attempt": None})

    def _interrupt(self) -> None:
        if self.stopping:
            self._wait_for_all(0)
            return
        self.stopping = True
        self._ask_all_to_stop()

    def _ask_all_to_stop(self) -> None:
        for _, process in self.working.values():
            process.send_signal(signal.SIGTERM)

    def _wait_for_all(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        for _, process in self.working.values():
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # its torchrun and ranks die with it
                process.wait()
        self.working.clear()


def ranks_of(run: PlannedRun) -> int:
    """How many ranks a run has on one machine, where its nodes share the GPUs."""
    return run.resources.nodes * (run.resources.gpus_per_node or 1)
