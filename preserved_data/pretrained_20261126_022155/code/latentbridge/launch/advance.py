"""The one step that brings a launch forward: find what nobody is working on, submit what may start.

The launch command, `watch`, every job's epilogue and the job that comes last all take it, one at a time.
It may be taken at any moment, any number of times: what is done, queued or held is left alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from latentbridge.errors import LatentbridgeError, PreflightError, RunError, SchedulerError
from latentbridge.launch import slurm
from latentbridge.launch.lease import Lease, lease
from latentbridge.launch.ledger import Orders, Submission
from latentbridge.launch.node.attempt import close_lost, close_unbegun
from latentbridge.launch.record import Launch, PlannedRun, settle_config
from latentbridge.launch.slurm.squeue import Job, Queue
from latentbridge.launch.status import ACTIVE, LOST_AFTER_S, NO_WORD, Monitor, RunStatus, live_jobs
from latentbridge.launch.submit import (
    FINISH,
    SubmitLimitError,
    group_runs,
    settle_open,
    submit_array,
    submit_finish,
)
from latentbridge.launch.twins import say_damaged, take_over

LOCK = "ledger/lock"


@dataclass
class Advance:
    """What one step did."""

    states: list[RunStatus]
    submitted: list[Submission] = field(default_factory=list)
    # runs that may start as soon as limits let them
    left: int = 0
    over_budget: bool = False
    # SLURM took less than it seemed to have room for
    is_full: bool = False
    # whether a job waits in the queue that goes on from here
    is_followed: bool = False
    # what was refused, for reasons that waiting does not cure; the rest was submitted
    refusals: list[LatentbridgeError] = field(default_factory=list)
    # what else people should know
    warnings: list[str] = field(default_factory=list)

    @property
    def complaints(self) -> list[str]:
        """What went wrong, in words."""
        return [*map(str, self.refusals), *self.warnings]

    @property
    def num_submitted(self) -> int:
        """Runs, not jobs."""
        return sum(len(submission.runs) for submission in self.submitted)

    @property
    def has_ended(self) -> bool:
        """Whether no run is at work or will be, as things are."""
        return not is_moving(self.states) and (self.left == 0 or self.over_budget)


def is_moving(states: list[RunStatus]) -> bool:
    """Whether any run is queued or at work, here or in an earlier launch, as far as anybody knows."""
    return any(state.phase in (*ACTIVE, "unknown") or state.twin for state in states)


def advance(
    launch: Launch, *, by_user: bool = False, patience_s: float = 0, again_after: str | None = None
) -> Advance:
    """Take one step; LockedError if someone else does for `patience_s`, SchedulerError if SLURM is silent.

    by_user: somebody asked for it now, so runs whose job vanished from the queue before it began, by an
    operator's hand perhaps, are submitted again as well.
    again_after: a task whose run another job must go on with, as soon as it has ended
    """
    with lease(launch.path / LOCK, f"submitting {launch.name}", patience_s) as held:
        monitor = Monitor(launch)
        states, queue = _poll(monitor, wait=by_user)
        held.check()
        warnings: list[str] = []
        changes = [
            settle_open(launch, queue),
            _close_silent(launch, states),
            _hold_cancelled(launch, states),
            _take_over(launch, states, warnings),
        ]
        if any(changes):
            states = monitor.poll(queue)
        ready = [launch.runs[state.name] for state in states if _may_start(state, by_user)]
        warnings += [text for run in ready for text in say_damaged(run)]
        step = Advance(states, left=len(ready), warnings=warnings)
        budget = launch.budget_gpu_hours
        step.over_budget = budget is not None and sum(state.gpu_hours for state in states) >= budget
        if not step.over_budget:
            _submit(launch, held, queue, ready, step)
        _follow_up(launch, held, queue, step, again_after)
        if step.submitted:
            step.states = monitor.poll()
        return step


def may_free_something(launch: Launch) -> bool:
    """Whether the end of one job may let another start: told from the ledger alone, without asking SLURM."""
    placed = launch.ledger.latest()
    held = launch.ledger.orders.held
    arrays = {place.submission.token for run, place in placed.items() if run != FINISH}
    return (
        len(arrays) > 1 or FINISH not in placed or any(run not in placed | held for run in launch.run_names)
    )


def finish_waits(launch: Launch) -> bool:
    """Whether the job that comes last is in the queue; True too where SLURM does not say."""
    place = launch.ledger.latest().get(FINISH)
    if place is None or place.task is None:
        return False
    answer = slurm.call("squeue", "--noheader", f"--jobs={place.task}", "--format=%t")
    # an id that SLURM has forgotten is an error to it
    return bool(answer.stdout.split()) or slurm.is_silence(answer.stderr)


def _poll(monitor: Monitor, wait: bool) -> tuple[list[RunStatus], Queue]:
    """The states now; with `wait`, once those that left the queue moments ago have settled."""
    deadline = time.monotonic() + (3 * LOST_AFTER_S if wait else 0)
    while True:
        states = monitor.poll()
        if monitor.queue is None:
            raise SchedulerError(
                "SLURM does not say which runs are alive, so nothing was submitted. Run the same command "
                "again when it answers"
            )
        if time.monotonic() >= deadline or not any(state.phase == "unknown" for state in states):
            return states, monitor.queue
        time.sleep(1)


def _close_silent(launch: Launch, states: list[RunStatus]) -> bool:
    """Write down how starts ended of which no worker or batch shell could tell; True if there were any."""
    lost = [state for state in states if state.can_be_closed]
    for state in lost:
        run, cause = launch.runs[state.name], state.cause or "node_fail"
        if state.is_open:
            is_told = state.detail != NO_WORD
            close_lost(launch, run, cause, state.detail, up_to=state.attempts, is_told=is_told)
        else:
            token = launch.ledger.latest()[state.name].submission.token
            close_unbegun(launch, run, token, cause, state.detail, state.nodes)
    return bool(lost)


def _hold_cancelled(launch: Launch, states: list[RunStatus]) -> bool:
    """Leave out runs whose job was taken out of the queue between two attempts, while SLURM remembers it."""
    cancelled = [state for state in states if state.phase == "lost" and state.cause == "cancelled"]
    # one that never began may have been removed to make room, and is asked for again by the launch command
    found = [state.name for state in cancelled if state.attempts and not state.is_open]
    if found:
        orders = launch.ledger.orders
        held = orders.held | dict.fromkeys(found, "cancelled by scancel, while it waited to go on")
        launch.ledger.order(Orders(held=held, forgiven=orders.forgiven))
    return bool(found)


def _take_over(launch: Launch, states: list[RunStatus], warnings: list[str]) -> bool:
    """Take over what twins have done; True if there was any. What a disk does not give is asked for again."""
    taken = False
    for state in states:
        if state.twin:
            try:
                taken |= take_over(launch.runs[state.name])
            except (OSError, RunError) as error:
                warnings.append(f"{state.name}: {state.twin} could not be taken over: {error}")
    return taken


def _may_start(state: RunStatus, by_user: bool) -> bool:
    if state.phase == "lost":
        # it never began: somebody may have taken it out of the queue
        return by_user
    return state.phase in ("planned", "stopped")


def _submit(launch: Launch, held: Lease, queue: Queue, ready: list[PlannedRun], step: Advance) -> None:
    """Submit what the limits of site and spec let in, in the order of the plan."""
    capacity = launch.cluster.max_parallel - _committed(launch, queue)
    capacity -= _raise_throttle(launch, queue, capacity)
    room = _room(launch, queue)
    for group in group_runs(_with_settled_config(launch, ready, step) if capacity > 0 and room > 0 else []):
        while group and capacity > 0 and room > 0:
            chunk = group[: min(room, _longest_array(launch))]
            parallel = min(capacity, len(chunk))
            try:
                step.submitted.append(submit_array(launch, held, chunk, parallel))
            except SubmitLimitError:
                # more was queued than we were told of: half, and at last none until something ends
                step.is_full = True
                room = len(chunk) // 2
                continue
            except PreflightError as refusal:
                step.refusals.append(refusal)
                step.left -= len(group)
                break
            group = group[len(chunk) :]
            step.left -= len(chunk)
            room -= len(chunk)
            capacity -= parallel


def _with_settled_config(launch: Launch, ready: list[PlannedRun], step: Advance) -> list[PlannedRun]:
    """Those whose references to other runs could be resolved; a metric that turned out void bars a run."""
    sound = []
    for run in ready:
        try:
            settle_config(launch, run)
        except RunError as refusal:
            step.refusals.append(refusal)
            step.left -= 1
        else:
            sound.append(run)
    return sound


def _arrays(launch: Launch, queue: Queue) -> list[tuple[Submission, Job]]:
    """This launch's arrays and jobs in the queue, the finishing job apart."""
    found = [(s, queue.find(s.token, s.job_id, launch.name)) for s in launch.ledger if s.runs != (FINISH,)]
    return [(submission, job) for submission, job in found if job and job.alive]


def _committed(launch: Launch, queue: Queue) -> int:
    """How many runs may be at work at a time, now or later, by what was submitted."""
    return sum(min(submission.parallel, len(job.alive)) for submission, job in _arrays(launch, queue))


def _raise_throttle(launch: Launch, queue: Queue, capacity: int) -> int:
    """Let an array whose tasks wait have the capacity that others no longer use; returns how much it took."""
    for submission, job in _arrays(launch, queue):
        more = min(capacity, len(job.alive) - submission.parallel)
        if more > 0:
            parallel = submission.parallel + more
            # written first: a bound that is believed higher than it is lets too few start, never too many
            launch.ledger.throttled(submission, parallel)
            slurm.call("scontrol", "update", f"JobId={job.job_id}", f"ArrayTaskThrottle={parallel}")
            return more
    return 0


def _room(launch: Launch, queue: Queue) -> int:
    """Jobs and array tasks that may be added to the queue; one place is kept for the finishing job.

    Where that is there already, at work perhaps, it comes back by itself if no other can be queued.
    """
    limits = launch.limits
    limit = limits.submit_limit(launch.cluster) if limits else launch.cluster.submit_limit
    if limit is None:
        return len(launch.runs)
    if limit < 2:
        raise PreflightError(
            "the site lets you queue one job at a time; a launch needs two: a run, and the job that goes on "
            "when it has ended. Ask the operators for a higher limit, or another account or QOS"
        )
    kept = 0 if any(job.alive for job in _finishing(launch, queue)) else 1
    return max(0, limit - queue.total - kept)


def _finishing(launch: Launch, queue: Queue) -> list[Job]:
    """This launch's jobs that come last, in the queue or remembered; there may be one for a stranded task."""
    found = [queue.find(s.token, s.job_id, launch.name) for s in launch.ledger if s.runs == (FINISH,)]
    return [job for job in found if job]


def _longest_array(launch: Launch) -> int:
    """Tasks in one array: their indices, from 0 on, must lie below MaxArraySize, and 0 forbids arrays."""
    size = launch.limits.max_array_size if launch.limits else None
    return 1000 if size is None else max(1, size)


def _follow_up(launch: Launch, held: Lease, queue: Queue, step: Advance, again_after: str | None) -> None:
    """See to it that a job waits for all that is queued, to go on from there or to preserve.

    Where nothing of ours is, and yet the launch has not ended, it comes back in some minutes.
    """
    active = {job.job_id for _, job in _arrays(launch, queue)}
    active |= {submission.job_id for submission in step.submitted if submission.job_id}
    others = {state.twin.partition("/")[0] for state in step.states if state.twin}
    active |= {job.job_id for other in others for job in live_jobs(Launch(launch.path.parent / other), queue)}
    step.is_followed = any(task.waits for job in _finishing(launch, queue) for task in job.alive)
    is_wanted = bool(active) or not (step.has_ended or _settles_soon(step))
    if again_after or (is_wanted and not step.is_followed):
        try:
            submit_finish(launch, held, [again_after] if again_after else sorted(active, key=int))
        except PreflightError as error:
            step.warnings.append(f"no job waits for the end of these runs, to go on or preserve: {error}")
        else:
            step.is_followed = True


def _settles_soon(step: Advance) -> bool:
    """Whether all that is not known yet is what became of jobs that left the queue moments ago."""
    return step.left == 0 and not any(state.phase in ACTIVE or state.twin for state in step.states)
