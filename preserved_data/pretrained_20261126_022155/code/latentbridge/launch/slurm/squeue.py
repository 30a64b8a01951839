"""The queue as SLURM shows it: one squeue call, whatever the number of jobs, arrays left folded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import lru_cache

from latentbridge.launch import slurm

COMMENT = "latentbridge:"
JOB_NAME = "lb-"
# short states of jobs that wait, and of jobs that ended and are still remembered
WAITING = ("PD", "CF", "RQ", "RH", "RD", "RF", "SE")
ENDED = ("CD", "CA", "F", "TO", "NF", "OOM", "PR", "DL", "BF", "RV")
_FIELDS = "%F|%K|%t|%r|%N|%j|%k"
# a site may have added words of its own
_TOKEN = re.compile(rf"\b{COMMENT}([0-9a-f]+)")


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
    """One user's jobs."""

    jobs: dict[str, Job] = field(default_factory=dict)  # by token
    # by id and name: ours as well, where the site puts a comment of its own in the place of our token
    renamed: dict[tuple[str, str], Job] = field(default_factory=dict)
    # jobs and array tasks that are queued or at work, other people's launches and other work included
    total: int = 0

    def find(self, token: str, job_id: str | None, launch: str) -> Job | None:
        """The job of one submission of a launch, if it is queued or remembered."""
        return self.jobs.get(token) or self.renamed.get((job_id or "", JOB_NAME + launch))


def read_queue(uid: int | None = None) -> Queue:
    """Ask SLURM once for the jobs of a user, by default our own; SchedulerError if it is silent."""
    queue = Queue()
    user = f"--user={os.getuid() if uid is None else uid}"
    for line in slurm.ask("squeue", "--noheader", "--states=all", user, f"--format={_FIELDS}"):
        fields = line.split("|", 5)
        if len(fields) < 6 or not fields[0].isdigit():
            continue  # the comment of other work may have several lines
        job_id, index, state, reason, nodes, rest = fields
        indices = parse_indices(index)
        if (state, reason) == ("F", "BadConstraints"):
            continue  # sbatch refused it, and yet SLURM keeps a record of it
        task = Task(state, "" if reason == "None" else reason, nodes)
        queue.total += 0 if task.ended else len(indices)
        # a name or comment of other work may hold anything
        name, _, comment = rest.partition("|")
        if token := _TOKEN.search(comment):
            # by token, never by job id alone: a controller that lost its state gives out old ids again
            job = queue.jobs.setdefault(token[1], Job(job_id))
        elif name.startswith(JOB_NAME):
            job = queue.renamed.setdefault((job_id, name), Job(job_id))
        else:
            continue
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
