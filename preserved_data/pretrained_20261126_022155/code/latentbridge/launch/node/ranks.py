"""The ranks of one node, in their worker's hands: started, watched, asked to stop, never left behind."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from latentbridge.errors import RunError
from latentbridge.job import GUARDIAN_VARIABLE, die_with_parent
from latentbridge.rundir import RunDir, read_json, write_json

PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.2
# how often the shared disk is asked about other ranks and nodes
LOOK_S = 1.0
# ranks whose peers on another node ended get so long to say why they fail
PEER_ENDED_GRACE_S = 15
# a worker that did not get to look for so long was suspended, and its ranks with it
SUSPENDED_S = 30
# the head says by this file that no rank moves any more; every node then dumps its ranks' stacks
HUNG = "hung.json"
# another node may see that file late; stacks of ranks that cannot write theirs are given up after this long
STACKS_PATIENCE_S = 20
# a process in the middle of a broken driver call cannot be killed; SLURM sees to that node
KILL_PATIENCE_S = 10
# when memory runs out on the host, the kernel is to choose a rank and not its worker
RANKS_FIRST = "500"


def end_file(attempt: Path, node: int) -> Path:
    """Where a node beside the head says how its ranks ended: exit_code, oom_kills, and cause if it knows."""
    return attempt / f"node_{node}_ended.json"


class Ranks:
    """One node's torchrun and all processes below it."""

    def __init__(self, folder: RunDir, attempt: Path, node: int, hang_timeout_s: float | None) -> None:
        self.folder, self.attempt, self.node = folder, attempt, node
        self.hang_timeout_s = hang_timeout_s
        self._last_beat: float | None = None
        self._alive_at = self._looked_at = time.monotonic()
        self._deadline = math.inf

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], stop_by: Callable[[], float | None]
    ) -> int:
        """Start torchrun and wait for its end; returns its exit code, negative for a signal.

        stop_by: asks the ranks to stop if somebody wants that, and says until when they may save, by the
        monotonic clock; None while nobody does
        """
        # what ranks leave behind becomes our child, whoever started it
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        suffix = f"_node{self.node}" if self.node else ""
        with (
            open(self.attempt / f"stdout{suffix}.log", "ab") as out,
            open(self.attempt / f"stderr{suffix}.log", "ab") as err,
        ):
            child = subprocess.Popen(
                command,
                stdout=out,
                stderr=err,
                env={**environment, GUARDIAN_VARIABLE: str(os.getpid())},
                start_new_session=True,
                preexec_fn=_before_torchrun,
            )
        try:
            return self._watch(child, stop_by)
        finally:
            _end_children()

    def _watch(self, child: subprocess.Popen[bytes], stop_by: Callable[[], float | None]) -> int:
        next_look = 0.0
        while True:
            try:
                return child.wait(timeout=POLL_S)
            except subprocess.TimeoutExpired:
                pass
            deadline = stop_by()
            if deadline is not None:
                self._deadline = min(self._deadline, deadline)
            if time.monotonic() >= next_look:
                # a disk that stumbles is no reason to end a training
                with suppress(OSError, RunError):
                    self._look(is_stopping=deadline is not None)
                next_look = time.monotonic() + LOOK_S
            if time.monotonic() > self._deadline:
                child.kill()

    def _end_within(self, seconds: float) -> None:
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def _look(self, is_stopping: bool) -> None:
        """Find out from the attempt's folder whether these ranks still have a reason to go on."""
        now = time.monotonic()
        if now - self._looked_at > SUSPENDED_S:
            self._alive_at = now
        self._looked_at = now
        if (self.attempt / HUNG).exists():
            self._after_hang()
        elif self.node == 0:
            if "exit.json" in os.listdir(self.attempt):
                self._end_within(0)  # somebody took us for dead: another attempt may be at work
                return
            if not is_stopping:
                self._look_for_life()
            if any(read_json(path)["exit_code"] for path in self.attempt.glob("node_*_ended.json")):
                self._end_within(PEER_ENDED_GRACE_S)

    def _look_for_life(self) -> None:
        # by whether it changes and not by its age: the disk's clock may not be ours
        beat, now = self.folder.newest_beat(self.attempt), time.monotonic()
        if beat != self._last_beat:
            self._last_beat, self._alive_at = beat, now
        silent_s = now - self._alive_at
        if self.hang_timeout_s is not None and silent_s > self.hang_timeout_s:
            write_json(self.attempt / HUNG, {"silent_s": round(silent_s)})

    def _after_hang(self) -> None:
        """Have each rank write its stacks, once; end the ranks when the stacks of all nodes are there."""
        beats = self.folder.beats(self.attempt)
        if self._deadline == math.inf:
            for beat in beats:
                if beat.node == self.node:
                    with suppress(ProcessLookupError):
                        os.kill(beat.pid, signal.SIGQUIT)
            self._end_within(STACKS_PATIENCE_S)
        elif all(_has_content(self.folder.stack_file(self.attempt, beat.rank)) for beat in beats):
            self._end_within(0)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _before_torchrun() -> None:
    die_with_parent()
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(RANKS_FIRST)


def _end_children() -> None:
    """Kill what the ranks left behind; their own children then become ours, until none is left."""
    deadline = time.monotonic() + KILL_PATIENCE_S
    while (children := _children()) and time.monotonic() < deadline:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:  # not every kernel tells
        return []
