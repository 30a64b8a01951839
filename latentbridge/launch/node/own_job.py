"""What a process on a node can find out about the SLURM job it is in, and ask of it."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

from latentbridge.errors import SchedulerError
from latentbridge.launch import slurm
from latentbridge.launch.node.causes import Cause
from latentbridge.launch.node.nodes import dead_among, nodes_to_avoid
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.slurm.text import parse_fields
from latentbridge.rundir import RunDir, read_json

# set by the batch shell, for SLURM 22.05 does not say when a job began
BEGAN_VARIABLE = "LATENTBRIDGE_BEGAN"


def task_id() -> str:
    """This job's id for scontrol; of an array's last task the plain id is that of the whole array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


def identity() -> str | None:
    """What tells this start of this job from every other: SLURM keeps the id when it requeues."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else None


def find_run(launch: Launch, token: str) -> PlannedRun:
    """The run that this array task is for."""
    submission = launch.ledger.read(token)
    name = submission.runs[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
    if not launch.ledger.is_current(token, name):
        # its answer came after everybody had given it up
        raise SystemExit(f"{name} was submitted once more before this job turned up; it leaves the run alone")
    return launch.run(name)


def find_attempt(folder: RunDir) -> Path | None:
    """The attempt that this start of this job opened, if it has."""
    for attempt in reversed(folder.list_attempts()):
        environment = attempt / "env.json"
        if environment.exists() and read_json(environment)["slurm"] == identity():
            return attempt
    return None


def node_name() -> str:
    """This node as SLURM calls it."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def began() -> float:
    """When this job started, seconds since the epoch."""
    return float(os.environ.get(BEGAN_VARIABLE) or time.time())


def why_signalled(warned: bool) -> tuple[Cause, str]:
    """Why SLURM signals this job, asked while it still knows; SchedulerError if it is silent.

    warned: by the signal that comes before the time limit
    """
    (line,) = slurm.ask("scontrol", "show", "job", task_id(), "--oneliner")[:1]
    job = parse_fields(line)
    requeued = int(job.get("Restarts", "0")) > int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if requeued or job["JobState"] == "NODE_FAIL":
        dead = dead_among(os.environ["SLURM_JOB_NODELIST"])
        if dead:
            return "node_fail", f"SLURM lost {', '.join(dead)}"
    if requeued or job["JobState"] == "PREEMPTED" or job.get("PreemptTime", "None") != "None":
        return "preempted", "SLURM gave its nodes to a job of higher priority, or an operator requeued it"
    if job.get("Reason") == "TimeLimit":
        return "timeout", "the time limit was reached"
    if warned:
        return "timeout", "the time limit came near"
    if job["JobState"] == "RUNNING":
        return "preempted", "SIGTERM while SLURM calls it running: the grace time before preemption"
    return "cancelled", "by scancel"


def requeue(launch: Launch, needed: int) -> None:
    """Ask SLURM to start this job again, away from bad nodes; where the site forbids it, `advance` does.

    needed: nodes that it takes
    """
    try:
        slurm.ask("scontrol", "requeue", task_id())
        if avoid := nodes_to_avoid(launch, needed):
            names = ",".join([launch.cluster.exclude, *avoid] if launch.cluster.exclude else avoid)
            slurm.ask("scontrol", "update", f"JobId={task_id()}", f"ExcNodeList={names}")
    except SchedulerError as error:  # for one, SLURM is requeueing it already
        print(error, file=sys.stderr)


def count_oom_kills() -> int:
    """Processes of this job step that the kernel has killed for want of memory so far."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            counter = f"/sys/fs/cgroup/memory{path}/memory.oom_control"
        elif controllers == "":
            counter = f"/sys/fs/cgroup{path}/memory.events"
        else:
            continue
        if found := re.search(r"^oom_kill (\d+)", _read(counter), re.MULTILINE):
            return int(found.group(1))
    # without a cgroup of our own the whole host's count must do
    found = re.search(r"^oom_kill (\d+)", _read("/proc/vmstat"), re.MULTILINE)
    return int(found.group(1)) if found else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
