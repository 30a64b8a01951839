"""A pretend SLURM cluster: jobs, array tasks and nodes in simulated time, moved on only by advance()."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

from simulator.folding import unfold_names

# in simulated seconds
REQUEUE_DELAY_S = 60
REPAIR_S = 3600
MIN_JOB_AGE_S = 300

How = Literal["done", "error", "refused", "cancelled", "preempted", "node_fail", "vanished"]
ENDS: dict[How, str] = {"done": "COMPLETED", "cancelled": "CANCELLED", "vanished": "VANISHED"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The cluster, and what goes wrong on it; rates are per attempt unless said otherwise."""

    nodes: int = 1000
    seed: int = 1
    # length of a run without interruptions: log-normal around this median
    median_s: float = 3600
    error_rate: float = 0.02
    preemption_rate: float = 0.1
    node_death_rate: float = 0.01
    # the controller forgets the task, and its processes are gone
    vanish_rate: float = 0.002
    # of the runs: they fail whenever they are tried
    broken_rate: float = 0.01
    # of the commands: what was asked is done, and the answer is a time-out
    lost_answer_rate: float = 0.0
    max_array_size: int = 1001
    # of the user's tasks in the queue; None: any number
    max_submit: int | None = None
    accounting: bool = True


@dataclass(eq=False)
class Task:
    """One element of an array, or the only one of a plain job."""

    job: Job
    index: int
    number: int
    state: str = "PENDING"
    nodes: tuple[str, ...] = ()
    restarts: int = 0
    began: float | None = None
    ended: float | None = None
    eligible: float = 0

    @property
    def name(self) -> str:
        """What users call it: 17, or 17_4 of an array."""
        return f"{self.job.number}_{self.index}" if self.job.is_array else str(self.number)

    @property
    def is_live(self) -> bool:
        return self.state in ("PENDING", "RUNNING")


@dataclass(eq=False)
class Job:
    """One sbatch call."""

    number: int
    options: dict[str, str]
    script: str
    throttle: int | None
    tasks: list[Task] = field(default_factory=list)
    pending: deque[Task] = field(default_factory=deque)
    running: int = 0

    @property
    def is_array(self) -> bool:
        return "array" in self.options

    @cached_property
    def num_nodes(self) -> int:
        return int(self.options.get("nodes", "1"))

    @property
    def excluded(self) -> frozenset[str]:
        return frozenset(unfold_names(self.options.get("exclude", "")))


class Workers(Protocol):
    """What runs inside the tasks."""

    def start(self, task: Task, now: float) -> tuple[float, How]:
        """Begin a task; returns after how many seconds it will end, and how."""

    def end(self, task: Task, how: How, now: float) -> bool:
        """End a task; True if its worker asks to be started again."""


class Cluster:
    """Gives whole nodes to whoever came first and fits."""

    def __init__(self, settings: Settings, workers: Workers) -> None:
        self.settings, self.workers = settings, workers
        self.now = time.time()
        width = len(str(settings.nodes))
        self.nodes = {f"node{number:0{width}}": "IDLE" for number in range(1, settings.nodes + 1)}
        self.jobs: dict[int, Job] = {}
        # what squeue knows: live tasks, and those that ended MIN_JOB_AGE_S ago at most
        self.known: dict[int, Task] = {}
        self._free = dict.fromkeys(self.nodes)
        self._waiting: dict[int, Job] = {}
        self._numbers = itertools.count(1001)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def submit(self, options: dict[str, str], script: str, indices: list[int], throttle: int | None) -> Job:
        """Queue one job; indices: of its array, or [0]."""
        # no job may begin before the moment at which its launcher asked for it
        self.advance(max(0, time.time() - self.now))
        job = Job(next(self._numbers), options, script, throttle)
        for index in indices:
            # the last task that is split off keeps the array's own number
            number = job.number if index == indices[-1] else next(self._numbers)
            task = Task(job, index, number)
            job.tasks.append(task)
            self.known[number] = task
        job.pending.extend(job.tasks)
        self.jobs[job.number] = self._waiting[job.number] = job
        return job

    def advance(self, seconds: float) -> None:
        """Let simulated time pass; what was asked since is begun now, for SLURM too takes a moment."""
        until = self.now + seconds
        if seconds > 0:
            self._schedule()
        while self._events and self._events[0][0] <= until:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
            self._schedule()
        self.now = until

    def cancel(self, task: Task) -> None:
        """What scancel does to a task; nothing to one that has ended."""
        if task.state == "RUNNING":
            self._end(task, "cancelled")
        elif task.state == "PENDING":
            if task in task.job.pending:
                task.job.pending.remove(task)
            self._close(task, "CANCELLED")

    def requeue(self, task: Task) -> bool:
        """What an operator's requeue does to a task at work; False if it is not at work."""
        if task.state != "RUNNING":
            return False
        self._end(task, "preempted")
        return True

    def why_pending(self, task: Task) -> str:
        """The reason squeue gives."""
        if task.state != "PENDING":
            return "None"
        if task.eligible > self.now:
            return "BeginTime"
        if not self._may_begin(task.job):
            return "Dependency"
        throttle = task.job.throttle
        return "JobArrayTaskLimit" if throttle and task.job.running >= throttle else "Resources"

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), happen))

    def _may_begin(self, job: Job) -> bool:
        numbers = [int(n) for n in job.options.get("dependency", "").split(":")[1:]]
        return not any(task.is_live for n in numbers if n in self.jobs for task in self.jobs[n].tasks)

    def _schedule(self) -> None:
        for job in list(self._waiting.values()):
            if not job.pending:
                del self._waiting[job.number]
            elif len(self._free) >= job.num_nodes and self._may_begin(job):
                while job.pending and not (job.throttle and job.running >= job.throttle):
                    nodes = self._choose(job)
                    if nodes is None:
                        break
                    self._start(job.pending.popleft(), nodes)

    def _choose(self, job: Job) -> tuple[str, ...] | None:
        allowed = (node for node in self._free if node not in job.excluded)
        found = tuple(itertools.islice(allowed, job.num_nodes))
        return found if len(found) == job.num_nodes else None

    def _start(self, task: Task, nodes: tuple[str, ...]) -> None:
        for node in nodes:
            del self._free[node]
            self.nodes[node] = "ALLOCATED"
        task.state, task.nodes, task.began = "RUNNING", nodes, self.now
        task.job.running += 1
        seconds, how = self.workers.start(task, self.now)
        life = task.restarts

        def finish() -> None:
            if task.state == "RUNNING" and task.restarts == life:
                self._end(task, how)

        self._after(seconds, finish)

    def _end(self, task: Task, how: How) -> None:
        again = self.workers.end(task, how, self.now)
        task.job.running -= 1
        if how == "node_fail":
            self._lose(task.nodes[0])
            self._release(task.nodes[1:])
        else:
            self._release(task.nodes)
        if again or how in ("preempted", "node_fail"):
            self._requeue(task)
        else:
            self._close(task, ENDS.get(how, "FAILED"))
        if how == "vanished":
            del self.known[task.number]

    def _release(self, nodes: tuple[str, ...]) -> None:
        for node in nodes:
            self.nodes[node] = "IDLE"
            self._free[node] = None

    def _lose(self, node: str) -> None:
        self.nodes[node] = "DOWN"
        self._after(REPAIR_S, lambda: self._release((node,)))

    def _requeue(self, task: Task) -> None:
        task.state, task.nodes, task.began = "PENDING", (), None
        task.eligible = self.now + REQUEUE_DELAY_S
        task.restarts += 1

        def queue_again() -> None:
            if task.state == "PENDING":
                task.job.pending.append(task)
                self._waiting[task.job.number] = task.job

        self._after(REQUEUE_DELAY_S, queue_again)

    def _close(self, task: Task, state: str) -> None:
        task.state, task.ended = state, self.now

        def forget() -> None:
            self.known.pop(task.number, None)

        self._after(MIN_JOB_AGE_S, forget)
