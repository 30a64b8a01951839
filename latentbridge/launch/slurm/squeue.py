"""The queue as SLURM shows it: one squeue call, whatever the number of jobs, arrays left folded."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache

from latentbridge.launch import slurm

COMMENT = "latentbridge:"
# short states of jobs that wait, and of jobs that ended and are still remembered
WAITING = ("PD", "CF", "RQ", "RH", "RD", "RF", "SE")
ENDED = ("CD", "CA", "F", "TO", "NF", "OOM", "PR", "DL", "BF", "RV")
_FIELDS = "%F|%K|%t|%r|%N|%k"


@dataclass(frozen=True)
class Task:
    """What SLURM says of one task."""

    state: str  # its short name
    reason: str
    nodes: str

    @property
    def waits(self) -> bool:
        return self.state in WAITING

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass
class Job:
    """One job or array of ours."""

    job_id: str
    tasks: dict[int, Task] = field(default_factory=dict)

    @property
    def alive(self) -> list[Task]:
        return [task for task in self.tasks.values() if not task.ended]


@dataclass
class Queue:
    """This user's jobs."""

    jobs: dict[str, Job] = field(default_factory=dict)  # by token
    # jobs and array tasks that are queued or at work, other people's launches and other work included
    total: int = 0


def read_queue() -> Queue:
    """Ask SLURM once; SchedulerError if it is silent."""
    queue = Queue()
    user = f"--user={os.getuid()}"
    for line in slurm.ask("squeue", "--noheader", "--states=all", user, f"--format={_FIELDS}"):
        job_id, index, state, reason, nodes, comment = line.split("|", 5)
        indices = parse_indices(index)
        task = Task(state, "" if reason == "None" else reason, nodes)
        queue.total += 0 if task.ended else len(indices)
        if not comment.startswith(COMMENT):
            continue
        # by token, never by job id: a controller that lost its state gives out old ids again
        job = queue.jobs.setdefault(comment.removeprefix(COMMENT), Job(job_id))
        job.tasks.update(dict.fromkeys(indices, task))
    return queue


@lru_cache(maxsize=1024)
def parse_indices(text: str) -> tuple[int, ...]:
    """The indices in `0-4,7%2`; a job without an array is task 0.

    The throttle behind them is not to be relied on: squeue hides it once a task was requeued.
    """
    if text == "N/A":
        return (0,)
    found: list[int] = []
    for span in text.partition("%")[0].split(","):
        first, _, last = span.partition("-")
        last, _, step = (last or first).partition(":")
        found.extend(range(int(first), int(last) + 1, int(step or 1)))
    return tuple(found)
