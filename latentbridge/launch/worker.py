"""The task on every node: it owns the signals, starts torchrun, and writes down how each attempt ended.

python -m latentbridge.launch.worker LAUNCH --run NAME       one run, on this machine
python -m latentbridge.launch.worker LAUNCH --token TOKEN    this SLURM task's run, from the ledger
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from latentbridge.errors import LockedError
from latentbridge.job import (
    ATTEMPT_VARIABLE,
    CHECKPOINTED,
    GUARDIAN_VARIABLE,
    LOCK_PATIENCE_S,
    STOP_REQUEST,
    die_with_parent,
)
from latentbridge.launch.causes import Cause, classify, may_retry
from latentbridge.launch.ledger import Ledger
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.torchrun import child_environment, free_port, head_address, torchrun_command
from latentbridge.rundir import hold_lock, read_json, read_jsonl, write_json

# STOPPED: saved on request. AGAIN: outside SLURM nobody requeues, so whoever started the worker does it again
EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_AGAIN = 0, 1, 85, 86
# outside SLURM ranks may take this long to save after a request to stop, before they are killed
SAVE_GRACE_S = 600
# SLURM looks at time limits twice a minute; what is left of the signal's lead after that is ours
SLURM_SLACK_S = 30
JOIN_TIMEOUT_S = LOCK_PATIENCE_S + 60
# a node whose ranks failed says so by this file; torchrun on the others may not notice by itself
NODE_FAILED = "node_failed"
NODE_FAILED_GRACE_S = 15
TIME_LIMIT_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)


class Worker:
    """One node's part in one run."""

    def __init__(self, launch: Launch, run: PlannedRun, threads: int, on_slurm: bool) -> None:
        self.launch, self.run, self.threads = launch, run, threads
        # not read from SLURM_JOB_ID: a local launch inside somebody's allocation must leave that job alone
        self.on_slurm = on_slurm
        self.folder = run.folder
        self.node = int(os.environ.get("SLURM_NODEID", "0")) if on_slurm else 0
        self.received: int | None = None

    def work(self) -> int:
        """Run one attempt; returns the exit code of this task."""
        if self.folder.state == "DONE":
            return EXIT_DONE
        for number in (signal.SIGTERM, *TIME_LIMIT_SIGNALS, signal.SIGINT):
            signal.signal(number, self._remember)
        return self._lead() if self.node == 0 else self._follow()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    def _lead(self) -> int:
        unmet = [need for need in self.run.needs if self.launch.runs[need].folder.state != "DONE"]
        if unmet:
            self.folder.mark("STOPPED", {"cause": "needs", "message": f"not DONE: {', '.join(unmet)}"})
            return EXIT_STOPPED
        try:
            lock = hold_lock(self.folder.worker_lock, LOCK_PATIENCE_S)
        except LockedError as error:
            print(error, file=sys.stderr)
            return EXIT_STOPPED if self.on_slurm and requeue() else EXIT_AGAIN
        try:
            return self._attempt()
        finally:
            lock.close()

    def _attempt(self) -> int:
        self._close_lost_attempts()
        self.folder.clear_marker()
        attempt = self.folder.new_attempt()
        self._open_attempt(attempt)
        began = time.time()
        exit_code = self._torchrun(attempt, read_json(attempt / "env.json"))
        return self._conclude(attempt, exit_code, began)

    def _follow(self) -> int:
        """Another node: join the attempt that the head node opened for this start of this job."""
        attempt = self._find_attempt()
        if attempt is None:
            print(
                f"the head node opened no attempt of {self.run.name} in {JOIN_TIMEOUT_S} s", file=sys.stderr
            )
            return EXIT_FAILED
        exit_code = self._torchrun(attempt, read_json(attempt / "env.json"))
        if exit_code == 0:
            return EXIT_DONE
        # our exit ends the whole job step: the head must have written down how the attempt ended before
        (attempt / NODE_FAILED).touch()
        deadline = time.monotonic() + 4 * NODE_FAILED_GRACE_S
        while time.monotonic() < deadline and not (attempt / "exit.json").exists():
            time.sleep(0.2)
        return EXIT_FAILED

    def _find_attempt(self) -> Path | None:
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while time.monotonic() < deadline:
            for attempt in reversed(self.folder.list_attempts()):
                environment = attempt / "env.json"
                if environment.exists() and read_json(environment)["slurm"] == slurm_identity():
                    return attempt
            time.sleep(0.2)
        return None

    def _open_attempt(self, attempt: Path) -> None:
        write_json(
            attempt / "env.json",
            {
                "slurm": slurm_identity() if self.on_slurm else None,
                "host": os.uname().nodename,
                "nodes": os.environ.get("SLURM_JOB_NODELIST", os.uname().nodename),
                "pid": os.getpid(),
                "head": head_address(self.run.resources.nodes) if self.on_slurm else "127.0.0.1",
                "port": free_port(),
                "started": time.time(),
            },
        )

    def _torchrun(self, attempt: Path, environment: dict[str, Any]) -> int:
        resources = self.run.resources
        if not self.on_slurm and resources.nodes > 1:
            # no second node here: the same ranks, side by side on this machine
            total = resources.nodes * (resources.gpus_per_node or 1)
            resources = resources.model_copy(update={"nodes": 1, "gpus_per_node": total})
        job = self.launch.code / "jobs" / f"{self.run.job}.py"
        command = torchrun_command(
            job,
            self.folder.config,
            resources,
            node=self.node,
            head=environment["head"],
            port=environment["port"],
        )
        variables = child_environment(self.launch.cluster, self.launch.code, self.threads)
        variables |= {ATTEMPT_VARIABLE: str(attempt), GUARDIAN_VARIABLE: str(os.getpid())}
        suffix = f"_node{self.node}" if self.node else ""
        with (
            open(attempt / f"stdout{suffix}.log", "ab") as out,
            open(attempt / f"stderr{suffix}.log", "ab") as err,
        ):
            child = subprocess.Popen(
                command,
                stdout=out,
                stderr=err,
                env=variables,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            return self._watch(child, attempt)

    def _watch(self, child: subprocess.Popen[bytes], attempt: Path) -> int:
        """Wait for torchrun; a signal becomes a request to save and stop, and after the grace a kill."""
        deadline = None
        while True:
            try:
                return child.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                pass
            if deadline is None and self.received:
                (attempt / STOP_REQUEST).touch()
                deadline = time.monotonic() + self._grace_s()
            if deadline is None and (attempt / NODE_FAILED).exists():
                deadline = time.monotonic() + NODE_FAILED_GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                os.killpg(child.pid, signal.SIGKILL)
                deadline = math.inf

    def _grace_s(self) -> float:
        if self.on_slurm and self.received in TIME_LIMIT_SIGNALS:
            return max(10, self.launch.cluster.signal_delay_s - SLURM_SLACK_S)
        return SAVE_GRACE_S

    def _conclude(self, attempt: Path, exit_code: int, began: float) -> int:
        cause, message = self._cause(attempt, exit_code)
        record = {"cause": cause, "message": message, "exit_code": exit_code, "step": self._last_step()}
        write_json(
            attempt / "exit.json", record | {"began": began, "ended": time.time(), "gpus": self._gpus()}
        )
        if cause == "done":
            return EXIT_DONE
        failed = cause in ("error", "refused", "oom", "node_fail")
        if may_retry(self.folder, cause, self.launch.retry):
            if not self.on_slurm:
                return EXIT_AGAIN
            if requeue():
                return EXIT_STOPPED
        self.folder.mark("FAILED" if failed else "STOPPED", record | {"attempt": attempt.name})
        return EXIT_FAILED if failed else EXIT_STOPPED

    def _cause(self, attempt: Path, exit_code: int) -> tuple[Cause, str]:
        if self.folder.state == "DONE":
            return "done", "finished"
        near_the_limit = self.received in TIME_LIMIT_SIGNALS
        if (attempt / CHECKPOINTED).exists():
            step = read_json(attempt / CHECKPOINTED)["step"]
            if near_the_limit:
                return "timeout", f"saved at update {step}: the time limit came near"
            return "stopped", f"saved at update {step}: asked to stop"
        if self.received:
            return ("timeout" if near_the_limit else "preempted"), "ended before it could save"
        return classify(exit_code, attempt)

    def _close_lost_attempts(self) -> None:
        """Give every attempt that ended without a word an exit record: it was killed from outside."""
        for attempt in self.folder.list_attempts():
            if not (attempt / "exit.json").exists():
                message = "ended without an exit record: preempted, or its node or worker was killed"
                record = {
                    "cause": "preempted",
                    "message": message,
                    "exit_code": None,
                    "step": self._last_step(),
                }
                write_json(attempt / "exit.json", record)

    def _last_step(self) -> int:
        return max((record["step"] for record in read_jsonl(self.folder.train_log)), default=0)

    def _gpus(self) -> int:
        return self.run.resources.nodes * (self.run.resources.gpus_per_node or 1)


def slurm_identity() -> str | None:
    """What tells this start of this job from every other: SLURM keeps the id when it requeues."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else None


def requeue() -> bool:
    """Ask SLURM to start this job again; False where the site forbids it, or SLURM is doing so already."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    # the last task of an array has the array's own id: by that, all tasks would be requeued
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    try:
        answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:  # inside a container, say
        print(f"scontrol requeue {job}: {error}", file=sys.stderr)
        return False
    if answer.returncode != 0:
        print(f"scontrol requeue {job}: {answer.stderr.strip()}", file=sys.stderr)
    return answer.returncode == 0


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
        name = args.run
    else:
        submission = Ledger(launch.path / "ledger").read(args.token)
        name = submission.runs[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
    raise SystemExit(Worker(launch, launch.runs[name], args.threads, on_slurm=bool(args.token)).work())


if __name__ == "__main__":
    main()
