"""What every run of a launch is doing: its markers first, the queue second, accounting third.

Silence is never failure: what left the queue without a word counts as lost only after a deadline.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from latentbridge.errors import ConfigError, DamageError, RunError, SchedulerError
from latentbridge.job import STOP_REQUEST
from latentbridge.launch.account import HOUR_S, gpu_hours
from latentbridge.launch.ledger import NO_ANSWER, SKIPPED, Orders, Place, Submission
from latentbridge.launch.node.attempt import ranks_of, silent_for
from latentbridge.launch.node.causes import Cause
from latentbridge.launch.node.job_log import job_logs, last_line, words_of
from latentbridge.launch.node.own_job import has_left
from latentbridge.launch.record import PLAN, Launch, PlannedRun
from latentbridge.launch.slurm import sacct
from latentbridge.launch.slurm.limits import cluster_name
from latentbridge.launch.slurm.squeue import Job, Queue, Task, read_queue
from latentbridge.launch.submit import ANSWER_PATIENCE_S
from latentbridge.launch.twins import is_sound
from latentbridge.rundir import RunDir, State, read_object

Phase = Literal[
    "done",
    "failed",
    "cancelled",
    "stopped",  # saved or ended for a cause that another attempt cures; the launch goes on with it
    "held",  # left out by --only or --skip
    "blocked",  # needs a run that will not be done as things are
    "waiting",  # for the runs it needs, or for its twin in an earlier launch
    "planned",
    "pending",
    "running",
    "lost",
    "unknown",
]
ACTIVE = ("pending", "running")
# nothing happens to these unless somebody asks
ENDED: tuple[Phase, ...] = ("done", "failed", "cancelled", "held", "blocked", "lost")
# nothing changes in these unless somebody submits the run again
SETTLED = ("done", "failed", "cancelled", "stopped", "planned", "held")
# a launch that has jobs in the queue goes on with these by itself
TO_GO_ON = ("planned", "waiting", "stopped", "lost", "unknown")
# of a run without SLURM, inside its launch folder
WORKER_LOG = "ledger/{run}.worker.log"
SILENT = "SLURM does not answer"
NO_WORD = "it left the queue without a word: killed, or its node died"
JUST_SUBMITTED = "submitted moments ago, no answer yet"
# ends of jobs before their worker opened an attempt; that somebody cancelled one is none
FAILED_TO_BEGIN = ("error", "killed", "node_fail", "host_oom", "timeout", "preempted")
# how squeue and sacct tell of a job whose script or log could not be opened on its node
NO_START = ("JobLaunchFailure", "RaisedSignal:53", "exit code 0:53")
# disks of several hosts show a marker late
LOST_AFTER_S = 12
# accounting that has not heard of an end yet is asked again
ASK_AGAIN_S = 30
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run, as of now."""

    name: str
    phase: Phase
    attempts: int = 0  # the number of the last one
    step: int = 0
    stage: str = ""  # of a running attempt, with how far it is
    cause: Cause | None = None  # of the last attempt that ended
    detail: str = ""
    job: str | None = None
    nodes: str = ""
    gpu_hours: float = 0.0
    twin: str | None = None  # LAUNCH/RUN that it waits for: the same experiment in an earlier launch
    is_open: bool = False  # its last attempt has no end yet

    @property
    def can_be_closed(self) -> bool:
        """Whether its loss can be written down, and judged by the rules for another attempt."""
        return self.phase == "lost" and (self.is_open or self.cause in FAILED_TO_BEGIN)


@dataclass(frozen=True)
class _Seen:
    """What a run was found to do, and what was known of it then."""

    key: Any
    state: RunStatus
    # when the folders changed that a run at work writes into
    changed: tuple[int, ...] | None
    at: float


class Monitor:
    """Watches one launch; a poll asks squeue once and reads again only what may have changed."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.queue: Queue | None = Queue()
        self._seen: dict[str, _Seen] = {}
        # runs that stay as they are for as long as ledger and orders do and no job of theirs lives
        self._settled: dict[str, RunStatus] = {}
        self._basis: tuple[dict[str, Place], Orders] = ({}, Orders())
        # what accounting said, by task id, and when it may be asked about those that it did not know
        self._told: dict[str, tuple[Cause, str]] = {}
        self._ask_again_at = 0.0
        self._is_right_cluster = False
        # of earlier launches, by folder
        self._others: dict[Path, Monitor] = {}

    def poll(self, queue: Queue | None = None, *, asks_accounting: bool = True) -> list[RunStatus]:
        """The state of every run now; at most one call of squeue and one of sacct.

        queue: SLURM's answer of a moment ago, where only our own files have changed since
        """
        places, orders = self.launch.ledger.latest(), self.launch.ledger.orders
        self.queue = queue or self._ask_queue()
        if self.queue is None or self._basis != (places, orders):
            self._settled.clear()
        self._basis = places, orders
        self._forget_revived()
        # markers are read after the queue: a run that left the queue before has written its own by now
        states = {
            name: self._settled.get(name) or self._look(run, places.get(name), orders)
            for name, run in self.launch.runs.items()
        }
        states |= self._with_twins(states)
        lost = [state for state in states.values() if state.phase == "lost"]
        if asks_accounting:
            self._ask_accounting(lost)
        states |= {state.name: self._with_log(self._with_account(state), places) for state in lost}
        return list(self._with_needs(states).values())

    def _forget_revived(self) -> None:
        """Look again at runs that had settled and whose job somebody started once more."""
        for token, job in self.queue.jobs.items() if self.queue and self._settled else ():
            runs = self.launch.ledger.read(token).runs if self.launch.ledger.has(token) else ()
            for index, task in job.tasks.items():
                if not task.ended and index < len(runs):
                    self._settled.pop(runs[index], None)

    def _ask_queue(self) -> Queue | None:
        if not self.launch.is_slurm:
            return Queue()
        try:
            if not self._is_right_cluster:
                self._check_cluster()
            return read_queue(self.launch.owner)
        except SchedulerError:
            return None

    def _check_cluster(self) -> None:
        """ConfigError where SLURM's tools here talk to another cluster than the one with our jobs."""
        ours = self.launch.limits.cluster_name if self.launch.limits else None
        here = cluster_name() if ours else None
        if ours != here:
            raise ConfigError(
                f"{self.launch.path}: its jobs are on cluster '{ours}', and SLURM here is that of '{here}'; "
                f"give the command on a login node of '{ours}'"
            )
        self._is_right_cluster = True

    def _task(self, place: Place | None) -> Task | None:
        if place is None or self.queue is None:
            return None
        submission = place.submission
        job = self.queue.find(submission.token, submission.job_id, self.launch.name)
        return job.tasks.get(place.index) if job else None

    def _look(self, run: PlannedRun, place: Place | None, orders: Orders) -> RunStatus:
        task = self._task(place)
        # nobody has touched a run whose job is in the same state, but one that is at work
        key = (place, task, orders.held.get(run.name), orders.forgiven.get(run.name), self.queue is None)
        known = self._seen.get(run.name)
        if known and known.key == key:
            if self._is_still(run, known.state, task):
                if not (task and task.waits):
                    self._settled[run.name] = known.state
                return known.state
            if known.changed and known.changed == _when_changed(run.folder, known.state.attempts):
                # it is at work, and has said nothing new
                hours = known.state.gpu_hours + (time.time() - known.at) * ranks_of(run) / HOUR_S
                return replace(known.state, gpu_hours=hours)
        at_work = task is not None and not task.ended and not task.waits
        try:
            state = self._read(run, place, task, orders)
        except (OSError, RunError) as error:
            # one damaged file must not hide the other runs
            self._seen.pop(run.name, None)
            job = place.task if place else None
            return RunStatus(name=run.name, phase="unknown", detail=str(error), job=job)
        changed = _when_changed(run.folder, state.attempts) if at_work and state.attempts else None
        self._seen[run.name] = _Seen(key, state, changed, time.time())
        return state

    def _is_still(self, run: PlannedRun, state: RunStatus, task: Task | None) -> bool:
        if state.phase == "done":
            return True
        if state.phase == "planned" and run.twins:
            return False  # it may have been taken over
        # without SLURM runs start without a submission
        return self.launch.is_slurm and (state.phase in SETTLED or bool(task and task.waits))

    def _read(self, run: PlannedRun, place: Place | None, task: Task | None, orders: Orders) -> RunStatus:
        folder = run.folder
        if place is None and not orders.held and _is_untouched(folder):
            return RunStatus(name=run.name, phase="planned")
        attempts = folder.list_attempts()
        last = attempts[-1] / "exit.json" if attempts else None
        ending = read_object(last, "cause") if last and last.exists() else {}
        state = RunStatus(
            name=run.name,
            phase="planned",
            attempts=int(attempts[-1].name) if attempts else 0,
            step=folder.last_step(),
            cause=ending.get("cause"),
            detail=str(ending.get("message", "")),
            job=place.task if place else None,
            nodes=task.nodes if task else "",
            gpu_hours=gpu_hours(run) if attempts else 0.0,
            is_open=bool(last and not ending),
        )
        return replace(state, **self._phase(run, place, task, orders, ending))

    def _phase(
        self, run: PlannedRun, place: Place | None, task: Task | None, orders: Orders, ending: dict[str, Any]
    ) -> dict[str, Any]:
        """What is special about a run, most trustworthy source first."""
        marker: State | None = run.folder.state
        if marker == "DONE":
            taken_from = run.folder.read_marker().get("taken_from") if run.twins else None
            detail = f"taken over from {taken_from}" if taken_from else ""
            return {"phase": "done", "detail": detail, "cause": "done"}
        if task and not task.ended:
            if task.waits:
                return {"phase": "pending", "detail": task.reason}
            return {"phase": "running", "detail": "", "stage": stage_of(run.folder)}
        if run.folder.is_locked():
            # its job may have ended, and its worker not yet
            unseen = "" if place is None else "a process is at work here of which SLURM shows no job"
            return {"phase": "running", "detail": unseen, "stage": stage_of(run.folder)}
        if held := orders.held.get(run.name):
            return {"phase": "cancelled" if held.startswith("cancelled") else "held", "detail": held}
        last = max((int(attempt.name) for attempt in run.folder.list_attempts()), default=0)
        forgiven = last <= orders.forgiven.get(run.name, -1)
        if marker and not forgiven:
            told = run.folder.read_marker()
            phase: Phase = "failed" if marker == "FAILED" else "stopped"
            # one that was skipped when its job began, or saved, is chosen again now
            if told.get("cause") == "cancelled" and not str(told.get("message")).endswith(SKIPPED):
                phase = "cancelled"
            return {"phase": phase, "cause": told.get("cause"), "detail": str(told.get("message", ""))}
        if place is None:
            if run.folder.list_attempts() and not ending:
                log = "" if self.launch.is_slurm else f"; see {WORKER_LOG.format(run=run.name)}"
                return {"phase": "lost", "detail": f"its worker was killed{log}"}
            return {"phase": "stopped" if ending else "planned"}
        if self.queue is None:
            return {"phase": "unknown", "detail": SILENT}
        submission = place.submission
        if submission.job_id is None and time.time() - submission.created < ANSWER_PATIENCE_S:
            return {"phase": "unknown", "detail": JUST_SUBMITTED}
        if submission.job_id is None and not run.folder.list_attempts():
            return {"phase": "planned", "detail": NO_ANSWER}
        if ending and _is_of(ending, submission):
            # it waits for its next attempt, unless somebody took it out of the queue since it was last wanted
            is_cancelled = task and sacct.CAUSES.get(task.state) == "cancelled" and not forgiven
            return {"phase": "lost", **_what_squeue_remembers(task)} if is_cancelled else {"phase": "stopped"}
        if min(silent_for(run.folder), time.time() - submission.created) < LOST_AFTER_S:
            return {"phase": "unknown", "detail": "it left the queue moments ago"}
        return {"phase": "lost", "cause": None, **_what_squeue_remembers(task)}

    def _ask_accounting(self, lost: Iterable[RunStatus]) -> None:
        asked = [state.job for state in lost if state.job and state.job not in self._told and not state.cause]
        limits = self.launch.limits
        if not asked or (limits and not limits.accounting) or time.monotonic() < self._ask_again_at:
            return
        self._ask_again_at = time.monotonic() + ASK_AGAIN_S
        self._told |= {task: told for task, told in sacct.endings(asked).items() if told}

    def _with_account(self, state: RunStatus) -> RunStatus:
        if state.phase != "lost" or state.cause:
            return state
        if told := self._told.get(state.job or ""):
            return replace(state, cause=told[0], detail=told[1])
        # a batch shell that was left alive would have said how it ended
        return replace(state, cause="node_fail") if state.is_open and self.launch.is_slurm else state

    def _with_log(self, state: RunStatus, places: dict[str, Place]) -> RunStatus:
        """What the log of a job tells whose worker never opened an attempt."""
        place = places.get(state.name)
        if state.is_open or place is None or place.task is None or state.cause not in (None, "killed"):
            return state
        if has_left(self.launch, place.submission.token, place.task):
            return replace(state, phase="stopped", detail="its job left it to another process")
        log = (self.launch.path, place.submission.token, place.task)
        said = last_line(words_of(*log))
        # SLURM 24.11 makes the log's folder where it is missing, on one node perhaps; the job fails later
        logged_elsewhere = state.cause == "killed" and not list(job_logs(*log))
        if not said and (logged_elsewhere or any(word in state.detail for word in NO_START)):
            said = f"is {self.launch.path} there, on {state.nodes or 'its node'}, and yours to write?"
        if not said:
            return state
        return replace(state, cause="error", detail=f"its worker never started: {said}")

    def _with_twins(self, states: dict[str, RunStatus]) -> dict[str, RunStatus]:
        """Those that could begin, but whose twin in an earlier launch is done, or will be."""
        fresh = [
            self.launch.runs[name]
            for name in self._twinned
            if states[name].phase == "planned" and not states[name].attempts and not states[name].job
        ]
        if self.queue is None:
            silent: dict[str, Any] = {"phase": "unknown", "detail": SILENT}
            return {run.name: replace(states[run.name], **silent) for run in fresh}
        launches = {twin.path.parent for run in fresh for twin in run.twins}
        standing: dict[Path, RunStatus] = {}
        unreadable: dict[Path, str] = {}
        for launch in sorted(launches):
            try:
                standing |= self._others_of(launch, self.queue)
            except DamageError:
                continue
            except (OSError, RunError) as error:
                unreadable[launch] = str(error)
        found = {}
        for run in fresh:
            twins = [twin.path for twin in run.twins if twin.path in standing]
            silent_disk = [unreadable[t.path.parent] for t in run.twins if t.path.parent in unreadable]
            if not twins and silent_disk:
                found[run.name] = replace(states[run.name], phase="unknown", detail=silent_disk[0])
            if twins:
                best = min(twins, key=lambda path: standing[path].phase != "done")
                place, phase = f"{best.parent.name}/{best.name}", standing[best].phase
                detail = f"{place}, the same experiment, is {phase}; its results are taken over"
                found[run.name] = replace(states[run.name], phase="waiting", twin=place, detail=detail)
        return found

    def _others_of(self, path: Path, queue: Queue) -> dict[Path, RunStatus]:
        """The runs of another launch that are done, at work, or sure to be."""
        if not (path / PLAN).exists():
            return {}  # somebody removed it
        if path not in self._others:
            self._others[path] = Monitor(Launch(path))
        other = self._others[path]
        goes_on = bool(live_jobs(other.launch, queue))

        def is_hopeful(state: RunStatus) -> bool:
            if state.phase == "done":
                return is_sound(RunDir(path / state.name))
            if state.phase in ACTIVE:
                return True
            return state.phase in TO_GO_ON if goes_on else state.detail == JUST_SUBMITTED

        states = other.poll(queue, asks_accounting=False)
        return {path / state.name: state for state in states if is_hopeful(state)}

    @cached_property
    def _twinned(self) -> list[str]:
        return [name for name, run in self.launch.runs.items() if run.twins]

    def _with_needs(self, states: dict[str, RunStatus]) -> dict[str, RunStatus]:
        """Tell runs that may start from those that wait for others, or wait in vain."""
        judged: dict[str, RunStatus] = {}

        def judge(name: str) -> RunStatus:
            if name not in judged:
                judged[name] = _after(states[name], [judge(need) for need in self.launch.runs[name].needs])
            return judged[name]

        for name in self._in_need:
            judge(name)
        return states | judged

    @cached_property
    def _in_need(self) -> list[str]:
        return [name for name, run in self.launch.runs.items() if run.needs]


def _is_of(ending: dict[str, Any], submission: Submission) -> bool:
    """Whether an attempt that ended was a job of this submission."""
    if token := ending.get("token"):
        return bool(token == submission.token)
    return bool(ending["ended"] >= submission.created)


def _when_changed(folder: RunDir, attempts: int) -> tuple[int, ...] | None:
    """When a run at work last began an attempt, got a marker or said how far it is; None: nobody knows."""
    progress = folder.progress_file(folder.attempts / str(attempts))
    try:
        return tuple(os.stat(path).st_mtime_ns for path in (folder.path, folder.attempts, progress))
    except OSError:
        return None


def _is_untouched(folder: RunDir) -> bool:
    """Whether nobody, not even a person at a terminal, has done anything in a run's folder yet."""
    return set(os.listdir(folder.path)) <= {folder.config.name, folder.manifest.name}


def _after(state: RunStatus, needs: list[RunStatus]) -> RunStatus:
    if state.phase not in ("planned", "stopped"):
        return state
    bad = [need for need in needs if need.phase in ("failed", "cancelled", "held", "blocked")]
    if bad:
        names = ", ".join(f"{need.name} ({need.phase})" for need in bad)
        return replace(state, phase="blocked", detail=f"needs {names}")
    unmet = [need.name for need in needs if need.phase != "done"]
    return replace(state, phase="waiting", detail=f"for {', '.join(unmet)}") if unmet else state


def _what_squeue_remembers(task: Task | None) -> dict[str, Any]:
    cause = sacct.CAUSES.get(task.state) if task else None
    if task is None or cause is None:
        return {"detail": NO_WORD}
    return {"cause": cause, "detail": f"SLURM: {task.state} {task.reason}".strip()}


def live_jobs(launch: Launch, queue: Queue) -> list[Job]:
    """A launch's jobs that are queued or at work, the one that comes last too."""
    found = [queue.find(s.token, s.job_id, launch.name) for s in launch.ledger]
    return [job for job in found if job and job.alive]


def status(launch: Launch) -> list[RunStatus]:
    """The state of every run, once."""
    return Monitor(launch).poll()


def stage_of(folder: RunDir) -> str:
    """What the latest attempt last said it was doing, and how far it is."""
    progress = folder.read_progress()
    return "{stage} {done}/{total}".format(**progress) if progress else "starting"


def as_record(launch: Launch, states: list[RunStatus]) -> dict[str, Any]:
    """Everything for --json; keys are added in later versions, never renamed or dropped."""
    phases: dict[str, int] = {}
    for state in states:
        phases[state.phase] = phases.get(state.phase, 0) + 1
    return {
        "version": SCHEMA_VERSION,
        "launch": str(launch.path),
        "at": time.time(),
        "phases": phases,
        "gpu_hours": sum(state.gpu_hours for state in states),
        "budget_gpu_hours": launch.budget_gpu_hours,
        "runs": [asdict(state) for state in states],
    }


def wait_for_others(launch: Launch) -> Iterator[str]:
    """Go on once no process is at work on a run; says of each, once, what it is waited for.

    By their locks alone: those of workers that died with their machine are free.
    """
    said: set[str] = set()
    while at_work := [run.folder for run in launch.runs.values() if run.folder.is_locked()]:
        for line in (_what_is_waited_for(folder) for folder in at_work):
            if line not in said:
                said.add(line)
                yield line
        time.sleep(0.2)


def _what_is_waited_for(folder: RunDir) -> str:
    attempts = folder.list_attempts()
    # workers of a killed launcher save before they leave
    if attempts and (attempts[-1] / STOP_REQUEST).exists() and not (attempts[-1] / "exit.json").exists():
        return f"waiting for {folder.name} to finish stopping"
    return f"waiting for {folder.name}: a process is at work on it that this command did not start"
