"""What accounting remembers of jobs that left the queue: one sacct call for any number of them."""

from __future__ import annotations

from collections.abc import Sequence

from latentbridge.errors import SchedulerError
from latentbridge.launch import slurm
from latentbridge.launch.node.causes import Cause

# by long state of sacct, and by short state of squeue
CAUSES: dict[str, Cause] = {
    "OUT_OF_MEMORY": "host_oom",
    "OOM": "host_oom",
    "NODE_FAIL": "node_fail",
    "NF": "node_fail",
    "BOOT_FAIL": "node_fail",
    "BF": "node_fail",
    "TIMEOUT": "timeout",
    "TO": "timeout",
    "PREEMPTED": "preempted",
    "PR": "preempted",
    "CANCELLED": "cancelled",
    "CA": "cancelled",
    "FAILED": "killed",
    "F": "killed",
    "DEADLINE": "timeout",
    "DL": "timeout",
}
# ids in one call: a command line has an end
MOST_JOBS = 500


def endings(tasks: Sequence[str]) -> dict[str, tuple[Cause, str] | None]:
    """How each of these tasks ended by the word of accounting; None for those it calls alive or knows not.

    A step that ran out of memory decides: SLURM calls its job merely FAILED.
    Empty where accounting is silent.
    """
    jobs = sorted({task.partition("_")[0] for task in tasks})[:MOST_JOBS]
    try:
        lines = slurm.ask(
            "sacct", "--noheader", "--parsable2", f"--jobs={','.join(jobs)}", "--format=JobID,State,ExitCode"
        )
    except SchedulerError:
        return {}
    found: dict[str, tuple[Cause, str] | None] = dict.fromkeys(tasks)
    for line in lines:
        job, state, code = line.split("|")[:3]
        task, _, step = job.partition(".")
        cause = CAUSES.get(state.partition(" ")[0])
        if task in found and cause and (not step or cause == "host_oom") and not _is_oom(found[task]):
            found[task] = cause, f"accounting: {state}, exit code {code}"
    return found


def _is_oom(known: tuple[Cause, str] | None) -> bool:
    return known is not None and known[0] == "host_oom"
