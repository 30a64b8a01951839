"""GPU-hours: what a plan may cost at most, what a launch has used, failed attempts included."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from latentbridge.launch.cluster import Resources
from latentbridge.launch.node.attempt import last_sign, ranks_of, read_opening
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.rundir import read_object

HOUR_S = 3600
# an attempt without an end that was silent for so long ended at its last sign of life
SILENCE_S = 120


def at_most(resources: Iterable[Resources]) -> float:
    """GPU-hours if every run needed all the time it asks for, once."""
    return sum(r.nodes * (r.gpus_per_node or 1) * r.timeout_min / 60 for r in resources)


def gpu_hours(run: PlannedRun) -> float:
    """What all attempts of a run have used so far; on a machine without GPUs ranks count instead."""
    return sum(attempt_s(attempt) for attempt in run.folder.list_attempts()) * ranks_of(run) / HOUR_S


def attempt_s(attempt: Path) -> float:
    """How long an attempt has held its GPUs, in seconds."""
    if (attempt / "exit.json").exists():
        record = read_object(attempt / "exit.json", "began", "ended")
        # of a job on SLURM the GPUs are held until its batch shell has spoken its last word
        return max(0.0, float(record.get("released", record["ended"]) - record["began"]))
    started = read_opening(attempt).get("started")
    if started is None:
        return 0.0
    now, sign = time.time(), last_sign(attempt)
    return max(0.0, (now if now - sign < SILENCE_S else sign) - float(started))


def spent(launch: Launch) -> float:
    """GPU-hours that all runs of a launch have used so far."""
    return sum(gpu_hours(run) for run in launch.runs.values())


def over_budget(launch: Launch) -> bool:
    """Whether nothing more may start."""
    return launch.budget_gpu_hours is not None and spent(launch) >= launch.budget_gpu_hours
