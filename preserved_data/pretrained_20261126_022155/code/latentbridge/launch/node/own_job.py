"""What a process on a node can find out about the SLURM job it is in, and ask of it."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from latentbridge.errors import SchedulerError
from latentbridge.launch import slurm
from latentbridge.launch.node.causes import Cause
from latentbridge.launch.node.nodes import dead_among, nodes_to_avoid
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.slurm.text import node_names, parse_fields
from latentbridge.rundir import RunDir, read_json

# set by the batch shell, for SLURM 22.05 does not say when a job began
BEGAN_VARIABLE = "LATENTBRIDGE_BEGAN"
_LOST_NODE = re.compile(r"^srun: error: Node failure on (\S+)", re.MULTILINE)


def task_id() -> str:
    """This job's id for scontrol; of an array's last task the plain id is that of the whole array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


def identity() -> str | None:
    """What tells this start of this job from every other: SLURM keeps the id when it requeues."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"{job}.{restarts()}" if job else None


def find_run(launch: Launch, token: str) -> PlannedRun:
    """The run that this array task is for."""
    submission = launch.ledger.read(token)
    name = submission.runs[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
    if not launch.ledger.is_current(token, name):
        # its answer came after everybody had given it up
        raise SystemExit(f"{name} was submitted once more before this job turned up; it leaves the run alone")
    return launch.run(name)


def find_attempt(folder: RunDir, token: str | None) -> Path | None:
    """The attempt that this start of this job opened, if it has.

    token: of its submission, since a controller that lost its state gives out old job ids again
    """
    for attempt in reversed(folder.list_attempts()):
        environment = attempt / "env.json"
        if environment.exists():
            opened = read_json(environment)
            if (opened["slurm"], opened.get("token")) == (identity(), token):
                return attempt
    return None


def note_left(launch: Launch, token: str) -> None:
    """Say that this start opened no attempt, and that nothing went wrong."""
    (launch.path / "slurm" / token / f"{task_id()}.{restarts()}.left").touch()


def has_left(launch: Launch, token: str, task: str, now: bool = False) -> bool:
    """Whether the worker of a task said so, in this start of ours or in any."""
    start = restarts() if now else "*"
    return any(True for _ in (launch.path / "slurm" / token).glob(f"{task}.{start}.left"))


def restarts() -> int:
    """How often SLURM has started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def node_name() -> str:
    """This node as SLURM calls it."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def began() -> float:
    """When this job started, seconds since the epoch."""
    return float(os.environ.get(BEGAN_VARIABLE) or time.time())


class Why(NamedTuple):
    """Why SLURM ends a job, in words, and the nodes that it lost."""

    cause: Cause
    message: str
    lost: Sequence[str] = ()


def why_signalled(warned: bool, said: str) -> Why:
    """Why SLURM signals this job, asked while it still knows; SchedulerError if it is silent.

    warned: by the signal that comes before the time limit;  said: the job's log since it started
    """
    if known := why_ending(said):
        return known
    if warned:
        return Why("timeout", "the time limit came near")
    return Why("preempted", "SIGTERM while SLURM calls it running: the grace time before preemption")


def why_ending(said: str) -> Why | None:
    """Why SLURM is ending this job, if it is; SchedulerError if it is silent."""
    (line,) = slurm.ask("scontrol", "show", "job", task_id(), "--oneliner")[:1]
    job = parse_fields(line)
    requeued = int(job.get("Restarts", "0")) > restarts()
    if requeued or job["JobState"] == "NODE_FAIL":
        # the node may be back by now: newer SLURM tells which it missed, and every srun does in the log
        missed = [*node_names(job.get("FailedNode", "")), *_LOST_NODE.findall(said)]
        lost = sorted({*missed, *dead_among(os.environ["SLURM_JOB_NODELIST"])})
        if lost or "DUE TO NODE FAILURE" in said:
            return Why("node_fail", f"SLURM lost {', '.join(lost) or 'a node'}", lost)
    if requeued or job["JobState"] == "PREEMPTED" or job.get("PreemptTime", "None") != "None":
        return Why(
            "preempted", "SLURM gave its nodes to a job of higher priority, or an operator requeued it"
        )
    if job.get("Reason") == "TimeLimit":
        return Why("timeout", "the time limit was reached")
    return None if job["JobState"] == "RUNNING" else Why("cancelled", "by scancel")


def requeue(launch: Launch, needed: int, delay_min: int = 0, beside: Sequence[str] = ()) -> bool:
    """Ask SLURM to start this job again, away from bad nodes; whether it was not refused.

    needed: nodes that it takes;  delay_min: not before so many minutes;  beside: further nodes to avoid
    """
    try:
        slurm.ask("scontrol", "requeue", task_id())
    except SchedulerError as error:  # for one, SLURM is requeueing it already, or the site forbids it
        print(error, file=sys.stderr)
        return False
    try:
        if delay_min:
            slurm.ask("scontrol", "update", f"JobId={task_id()}", f"StartTime=now+{delay_min}minutes")
        if avoid := nodes_to_avoid(launch, needed, beside):
            names = ",".join([launch.cluster.exclude, *avoid] if launch.cluster.exclude else avoid)
            slurm.ask("scontrol", "update", f"JobId={task_id()}", f"ExcNodeList={names}")
    except SchedulerError as error:
        print(error, file=sys.stderr)
    return True


def is_last_start() -> bool:
    """Whether SLURM will not start this job again, for it was never requeued; False where it does not say."""
    try:
        (line,) = slurm.ask("scontrol", "show", "job", task_id(), "--oneliner")[:1]
    except SchedulerError:
        return False
    return int(parse_fields(line).get("Restarts", "0")) == restarts()


def count_oom_kills() -> tuple[int, bool]:
    """How many processes the kernel has killed so far for want of memory, and whether all were of this step.

    Without a cgroup of the step's own they are the whole host's.
    """
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            counter = f"/sys/fs/cgroup/memory{path}/memory.oom_control"
        elif controllers == "":
            counter = f"/sys/fs/cgroup{path}/memory.events"
        else:
            continue
        if found := re.search(r"^oom_kill (\d+)", _read(counter), re.MULTILINE):
            return int(found.group(1)), True
    found = re.search(r"^oom_kill (\d+)", _read("/proc/vmstat"), re.MULTILINE)
    return (int(found.group(1)) if found else 0), False


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
