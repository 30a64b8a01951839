"""The task on every node: it owns the signals, starts the ranks, and writes down how each attempt ended.

python -m latentbridge.launch.node.worker LAUNCH --run NAME       one run, on this machine
python -m latentbridge.launch.node.worker LAUNCH --token TOKEN    this SLURM task's run, from the ledger
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

from latentbridge.errors import LockedError, RunError, SchedulerError
from latentbridge.job import ATTEMPT_VARIABLE, CHECKPOINTED, LOCK_PATIENCE_S, STOP_REQUEST, die_with_parent
from latentbridge.launch.account import over_budget
from latentbridge.launch.environment import gpu_models, versions
from latentbridge.launch.node import own_job
from latentbridge.launch.node.attempt import SIGNALLED, Ending, close_lost, conclude, read_opening
from latentbridge.launch.node.causes import Cause, classify
from latentbridge.launch.node.job_log import words_of
from latentbridge.launch.node.nodes import dead_among, report_bad
from latentbridge.launch.node.ranks import HUNG, Ranks, end_file
from latentbridge.launch.node.torchrun import (
    SAVE_GRACE_S,
    child_environment,
    free_port,
    head_address,
    torchrun_command,
)
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.slurm.text import node_names
from latentbridge.rundir import hold_lock, read_json, write_json

# STOPPED: whatever there is to say is written down, and SLURM or a person starts it again.
# AGAIN: outside SLURM nobody requeues, so whoever started the worker does it again
EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_AGAIN = 0, 1, 85, 86
# SLURM looks at time limits twice a minute; what is left of the signal's lead after that is ours
SLURM_SLACK_S = 30
# the head may have to wait for two locks
JOIN_TIMEOUT_S = 2 * LOCK_PATIENCE_S + 60
# a node whose ranks lost their peers waits so long for word from the others, and they for its verdict
PEER_PATIENCE_S = 30
HEALTH_TIMEOUT_S = 120
# starts that find another process at the run, each some minutes after the last, before nobody tries any more
MOST_BLOCKED, BLOCKED_DELAY_MIN = 5, 5
TIME_LIMIT_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)


class Worker:
    """One node's part in one run."""

    def __init__(self, launch: Launch, run: PlannedRun, threads: int, token: str | None) -> None:
        self.launch, self.run, self.threads, self.token = launch, run, threads, token
        # not read from SLURM_JOB_ID: a local launch inside somebody's allocation must leave that job alone
        self.on_slurm = token is not None
        self.folder = run.folder
        self.node = int(os.environ.get("SLURM_NODEID", "0")) if self.on_slurm else 0
        self.received: int | None = None
        self.received_at = 0.0
        self.oom_kills, self.counts_own_kills = own_job.count_oom_kills()

    def work(self) -> int:
        """Run one attempt; returns the exit code of this task."""
        if self.folder.is_done:
            if self.node == 0:
                close_lost(self.launch, self.run, "done", "finished")
            return EXIT_DONE
        for number in (signal.SIGTERM, *TIME_LIMIT_SIGNALS, signal.SIGINT):
            signal.signal(number, self._remember)
        return self._lead() if self.node == 0 else self._follow()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.received_at = number, time.monotonic()

    def _lead(self) -> int:
        with ExitStack() as locks:
            try:
                locks.enter_context(hold_lock(self.folder.worker_lock, LOCK_PATIENCE_S))
                # ranks that a person started have no worker
                hold_lock(self.folder.rank_lock, LOCK_PATIENCE_S).close()
            except LockedError as error:
                print(error, file=sys.stderr)
                locks.close()
                return self._blocked()
            return self._attempt()

    def _blocked(self) -> int:
        """Leave the run to the process that is at it; a later start sees whether that has gone."""
        if self.token is None:
            return EXIT_AGAIN
        own_job.note_left(self.launch, self.token)
        if own_job.restarts() < MOST_BLOCKED:
            own_job.requeue(self.launch, self.run.resources.nodes, delay_min=BLOCKED_DELAY_MIN)
        return EXIT_STOPPED

    def _leave(self) -> int:
        """The run has an end that somebody else wrote down; there is nothing to add."""
        if self.token is not None:
            own_job.note_left(self.launch, self.token)
        return EXIT_FAILED

    def _again(self) -> int:
        if not self.on_slurm:
            return EXIT_AGAIN
        own_job.requeue(self.launch, self.run.resources.nodes)
        return EXIT_STOPPED

    def _attempt(self) -> int:
        self._close_silent()
        # STOPPED keeps nobody out: whoever started this worker wants the run to go on
        if self._has_failed():
            print(f"{self.run.name} has FAILED; `latentbridge retry` brings it back", file=sys.stderr)
            return self._leave()
        # first: from here on an old marker would tell of what is over
        self.folder.clear_marker()
        attempt = self.folder.new_attempt()
        self._open_attempt(attempt)
        refusal = self._refusal()
        if refusal is None:
            exit_code = self._run_ranks(attempt)
            if (attempt / "exit.json").exists():
                print(f"{attempt} was given up for lost, and others may be at the run now", file=sys.stderr)
                return self._leave()
            cause, message = self._cause(attempt, exit_code)
        else:
            exit_code, (cause, message) = None, refusal
        ending = Ending(cause=cause, message=message, exit_code=exit_code, ended=time.time())
        again = conclude(self.launch, self.run, attempt, ending)
        if cause == "done":
            return EXIT_DONE
        if again:
            return self._again()
        return EXIT_STOPPED if self.folder.state == "STOPPED" else EXIT_FAILED

    def _close_silent(self) -> None:
        """Write down the end of an attempt before this one that ended without a word."""
        attempts = self.folder.list_attempts()
        if not attempts or (attempts[-1] / "exit.json").exists():
            return
        if not self.on_slurm:
            close_lost(self.launch, self.run, "killed", "ended without a word: its worker was killed")
            return
        # a batch shell that was left alive would have said how it ended
        self._leave_out_dead(read_opening(attempts[-1]).get("nodes", ""))
        message = "its node died: nobody there could say how it ended"
        close_lost(self.launch, self.run, "node_fail", message)

    def _has_failed(self) -> bool:
        """Whether the rules allow no more attempts; SLURM may start a job again while its epilogue speaks."""
        if self.folder.state != "FAILED":
            return False
        last = int(self.folder.read_marker().get("attempt", 0))
        return last > self.launch.ledger.orders.forgiven.get(self.run.name, 0)

    def _leave_out_dead(self, nodes: str) -> None:
        """Have later submissions avoid those of these nodes that SLURM holds for dead."""
        with suppress(SchedulerError):
            self._report_bad(dead_among(nodes), "SLURM lost it")

    def _report_bad(self, nodes: Iterable[str], reason: str) -> None:
        report_bad(self.launch.path.parent, nodes, reason, self.run.name, self.launch.cluster.exclude_hours)

    def _refusal(self) -> tuple[Cause, str] | None:
        """Why this attempt must not start, if so."""
        held = self.launch.ledger.orders.held.get(self.run.name)
        if held:
            return "cancelled", held
        if over_budget(self.launch):
            return "budget", f"the launch has used its {self.launch.budget_gpu_hours} GPU-hours"
        return self._unhealthy()

    def _unhealthy(self) -> tuple[Cause, str] | None:
        """The first of the profile's health checks that this node fails; the node is then left out."""
        for command in self.launch.cluster.health_check:
            try:
                answer = subprocess.run(
                    command, shell=True, capture_output=True, text=True, timeout=HEALTH_TIMEOUT_S, check=False
                )
                complaint = answer.stderr or answer.stdout if answer.returncode else None
            except subprocess.TimeoutExpired:
                complaint = f"no answer in {HEALTH_TIMEOUT_S} s"
            if complaint is not None:
                node = own_job.node_name()
                reason = f"{node} failed the health check `{command}`: {' '.join(complaint.split())[:200]}"
                self._report_bad([node], reason)
                return "node_fail", reason
        return None

    def _follow(self) -> int:
        """Another node: join the attempt that the head node opened for this start of this job."""
        attempt = self._find_attempt()
        if attempt is None:
            print(
                f"the head node opened no attempt of {self.run.name} in {JOIN_TIMEOUT_S} s", file=sys.stderr
            )
            return EXIT_FAILED
        unhealthy = self._unhealthy()
        exit_code = EXIT_FAILED if unhealthy else self._run_ranks(attempt)
        cause, message = unhealthy or (None, "")
        end = {"exit_code": exit_code, "oom_kills": self._oom_kills(), "cause": cause, "message": message}
        write_json(end_file(attempt, self.node), end)
        if exit_code == 0:
            return EXIT_DONE
        # our exit ends the whole job step: the head must have written down how the attempt ended before
        self._wait(lambda: (attempt / "exit.json").exists(), 2 * PEER_PATIENCE_S)
        return EXIT_FAILED

    def _find_attempt(self) -> Path | None:
        self._wait(lambda: own_job.find_attempt(self.folder, self.token) is not None, JOIN_TIMEOUT_S)
        return own_job.find_attempt(self.folder, self.token)

    @staticmethod
    def _wait(condition: Callable[[], bool], patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.2)

    def _open_attempt(self, attempt: Path) -> None:
        write_json(
            attempt / "env.json",
            {
                "slurm": own_job.identity() if self.on_slurm else None,
                "token": self.token,
                "host": os.uname().nodename,
                # a launch can be made elsewhere: what its manifest tells is of the machine that made it
                "versions": versions(),
                "gpu_models": gpu_models(),
                # SLURM numbers those of a job from 0, and gives them to one job alone
                "cards": None if self.on_slurm else os.environ.get("CUDA_VISIBLE_DEVICES", ""),
                "nodes": os.environ.get("SLURM_JOB_NODELIST", os.uname().nodename),
                "pid": os.getpid(),
                "head": head_address(self.run.resources.nodes) if self.on_slurm else "127.0.0.1",
                "port": free_port(),
                # the GPUs were ours from the start of the job on
                "started": own_job.began() if self.on_slurm else time.time(),
            },
        )

    def _run_ranks(self, attempt: Path) -> int:
        """Start this node's ranks and wait for them; returns torchrun's exit code."""
        opened = read_opening(attempt)
        resources = self.run.resources
        if not self.on_slurm and resources.nodes > 1:
            # no second node here: the same ranks, side by side on this machine
            total = resources.nodes * (resources.gpus_per_node or 1)
            resources = resources.model_copy(update={"nodes": 1, "gpus_per_node": total})
        variables = child_environment(self.launch.cluster, self.launch.code, self.threads)
        variables[ATTEMPT_VARIABLE] = str(attempt)
        ranks = Ranks(self.folder, attempt, self.node, self.launch.hang_timeout_s)
        with tempfile.TemporaryDirectory(prefix="torchrun_", ignore_cleanup_errors=True) as scratch:
            command = torchrun_command(
                self.launch.code / "jobs" / f"{self.run.job}.py",
                self.folder.config,
                resources,
                node=self.node,
                head=opened["head"],
                port=opened["port"],
                scratch=scratch,
            )
            return ranks.run(command, variables, lambda: self._stop_by(attempt))

    def _stop_by(self, attempt: Path) -> float | None:
        """Once a signal has come, ask the ranks to save, and say until when they may."""
        if self.received is None:
            return None
        # a disk that stumbles is asked again at the next turn
        with suppress(OSError, RunError):
            if not (attempt / STOP_REQUEST).exists():
                (attempt / STOP_REQUEST).touch()
            if self.node == 0 and not (attempt / SIGNALLED).exists():
                self._note_signal(attempt)
        warned = self.on_slurm and self.received in TIME_LIMIT_SIGNALS
        lead_s = self.launch.cluster.signal_delay_s - SLURM_SLACK_S
        return self.received_at + (max(10, lead_s) if warned else SAVE_GRACE_S)

    def _note_signal(self, attempt: Path) -> None:
        """Write down why SLURM signals, at once as well as we know: we may be killed any moment."""
        held = self.launch.ledger.orders.held.get(self.run.name)
        warned = self.received in TIME_LIMIT_SIGNALS
        if held:
            self._write_signal(attempt, "cancelled", held)
        elif not self.on_slurm:
            self._write_signal(attempt, "stopped", "asked to stop")
        else:
            likely: Cause = "timeout" if warned else "preempted"
            said_nothing = f"signal {self.received}; SLURM has not said why"
            self._write_signal(attempt, likely, said_nothing, is_guess=True)
            said = words_of(self.launch.path, self.token, own_job.task_id()) if self.token else ""
            with suppress(SchedulerError):
                why = own_job.why_signalled(warned, said)
                self._report_bad(why.lost, "SLURM lost it")
                self._write_signal(attempt, why.cause, why.message)

    def _write_signal(self, attempt: Path, cause: Cause, message: str, is_guess: bool = False) -> None:
        note = {"signal": self.received, "cause": cause, "message": message, "is_guess": is_guess}
        write_json(attempt / SIGNALLED, note | {"at": time.time()})

    def _cause(self, attempt: Path, exit_code: int) -> tuple[Cause, str]:
        if self.folder.is_done:
            return "done", "finished"
        checkpointed = attempt / CHECKPOINTED
        saved = f"saved at update {read_json(checkpointed)['step']}" if checkpointed.exists() else ""
        if (attempt / SIGNALLED).exists():
            signalled = read_json(attempt / SIGNALLED)
            return signalled["cause"], f"{saved or 'ended before it could save'}: {signalled['message']}"
        if (attempt / HUNG).exists():
            silent, last = read_json(attempt / HUNG)["silent_s"], self.folder.read_progress()
            where = "at {stage} {done}/{total}".format(**last) if last else "before its first step"
            return "hang", f"no rank moved for {silent} s, {where}; every rank's stack is in {attempt}/stacks"
        # without a request it was torchrun that stopped the others of a rank that failed
        if saved and (attempt / STOP_REQUEST).exists():  # by `latentbridge cancel` without SLURM
            return ("cancelled" if self.run.name in self.launch.ledger.orders.held else "stopped"), saved
        return self._failure(attempt, exit_code)

    def _failure(self, attempt: Path, exit_code: int) -> tuple[Cause, str]:
        """What made the ranks fail: told by this node's logs, or by what other nodes say or keep silent."""
        others = range(1, self.run.resources.nodes) if self.on_slurm else range(0)
        found = classify(exit_code, attempt, self._oom_kills(), self.counts_own_kills)
        if others and found.is_aftermath:
            ends = [end_file(attempt, node) for node in others]
            self._wait(lambda: all(end.exists() for end in ends), PEER_PATIENCE_S)
        told = {node: read_json(end) for node in others if (end := end_file(attempt, node)).exists()}
        for end in told.values():
            if end["cause"]:
                return end["cause"], end["message"]
        if not found.is_aftermath:
            return found.cause, found.message
        if silent := [node for node in others if node not in told]:
            names = [node_names(os.environ["SLURM_JOB_NODELIST"])[node] for node in silent]
            self._report_bad(names, "its peers lost it")
            return "node_fail", f"no word from {', '.join(names)}; the others lost it: {found.message}"
        kills = self._oom_kills() + sum(end["oom_kills"] for end in told.values())
        found = classify(exit_code, attempt, kills, self.counts_own_kills)
        return found.cause, found.message

    def _oom_kills(self) -> int:
        return own_job.count_oom_kills()[0] - self.oom_kills


def main() -> None:
    """Entry point of both kinds of worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("launch", type=Path)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run")
    which.add_argument("--token")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    launch = Launch(args.launch)
    if args.run:
        # without a launcher: save what there is, and leave
        die_with_parent(signal.SIGTERM)
        run = launch.run(args.run)
    else:
        run = own_job.find_run(launch, args.token)
    raise SystemExit(Worker(launch, run, args.threads, args.token).work())


if __name__ == "__main__":
    main()
