"""What every run of a launch is doing: its markers first, then the queue; silence is never failure."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from latentbridge.errors import SchedulerError
from latentbridge.launch.ledger import Ledger, Submission
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.submit import ANSWER_PATIENCE_S, COMMENT, squeue
from latentbridge.rundir import RunDir, read_json, read_jsonl

Phase = Literal["planned", "pending", "running", "done", "failed", "stopped", "lost", "unknown"]
ACTIVE = ("pending", "running")
# of a run without SLURM, inside its launch folder
WORKER_LOG = "ledger/{run}.worker.log"
ENDED: dict[str, Phase] = {"DONE": "done", "FAILED": "failed", "STOPPED": "stopped"}
# short states of jobs that wait; squeue shows live jobs only, so any other state is one at work
WAITING = ("PD", "CF", "RQ", "RH", "RD", "RF", "SE")


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run, as of now."""

    name: str
    phase: Phase
    attempts: int
    step: int
    detail: str = ""
    job: str | None = None

    def as_record(self) -> dict[str, Any]:
        """Plain data for --json."""
        return asdict(self)


def status(launch: Launch) -> list[RunStatus]:
    """The state of every run, with at most one call to SLURM whatever the number of runs."""
    submissions = Ledger(launch.path / "ledger").latest()
    jobs = _ask_queue(submissions)
    # markers are read after the queue: a run that left the queue before has written its own by now
    return [_of(run, submissions.get(run.name), jobs) for run in launch.runs.values()]


def _ask_queue(submissions: dict[str, Submission]) -> dict[str, tuple[str, str]] | None:
    """`token.task` to (short state, reason); None if SLURM did not answer."""
    if not submissions:
        return {}
    try:
        lines = squeue("%K|%t|%r|%k")
    except SchedulerError:
        return None
    jobs = {}
    for line in lines:
        index, state, reason, comment = line.split("|", 3)
        # by token, never by job id: a controller that lost its state gives out old ids again
        jobs[f"{comment.removeprefix(COMMENT)}.{0 if index == 'N/A' else index}"] = (state, reason)
    return jobs


def _of(run: PlannedRun, submission: Submission | None, jobs: dict[str, tuple[str, str]] | None) -> RunStatus:
    phase, detail = _phase(run, submission, jobs)
    return RunStatus(
        name=run.name,
        phase=phase,
        attempts=len(run.folder.list_attempts()),
        step=max((record["step"] for record in read_jsonl(run.folder.train_log)), default=0),
        detail=detail,
        job=submission.task_id(run.name) if submission else None,
    )


def _phase(
    run: PlannedRun, submission: Submission | None, jobs: dict[str, tuple[str, str]] | None
) -> tuple[Phase, str]:
    state = run.folder.state
    if state == "DONE":
        return "done", ""
    if submission and jobs:
        queued = jobs.get(f"{submission.token}.{submission.runs.index(run.name)}")
        if queued:
            waits = queued[0] in WAITING
            return ("pending" if waits else "running"), "" if queued[1] == "None" else queued[1]
    if run.folder.is_locked():
        stage, done, total = progress(run.folder)
        return "running", f"{stage} {done}/{total}" if total else stage
    if state:
        return ENDED[state], str(run.folder.read_marker().get("message", ""))
    if submission is None:
        where = f"its worker ended without a word; see {WORKER_LOG.format(run=run.name)}"
        return ("lost", where) if run.folder.list_attempts() else ("planned", "")
    if jobs is None:
        return "unknown", "SLURM does not answer"
    if submission.job_id is None and time.time() - submission.created < ANSWER_PATIENCE_S:
        return "unknown", "submitted moments ago, no answer yet"
    return "lost", "it left the queue without a marker: killed, or its node died"


def progress(run: RunDir) -> tuple[str, int, int | None]:
    """Stage, done and total of what the current attempt last said it was doing."""
    attempts = run.list_attempts()
    file = attempts[-1] / "progress.json" if attempts else None
    if file is None or not file.exists():
        return "starting", 0, None
    record = read_json(file)
    return str(record["stage"]), int(record["done"]), int(record["total"])


def wait_for_others(launch: Launch) -> None:
    """Return once no process is at work on a run: workers of a killed launcher save before they leave."""
    while any(run.folder.is_locked() for run in launch.runs.values()):
        time.sleep(0.2)


def to_submit(launch: Launch, retry_failed: bool) -> tuple[list[PlannedRun], list[RunStatus]]:
    """Runs that nobody is working on and that are not finished, and the state of all."""
    states = status(launch)
    if any(state.phase == "unknown" for state in states):
        raise SchedulerError(
            "SLURM does not say which runs are alive; nothing was submitted, try again later"
        )
    wanted = {"planned", "stopped", "lost"} | ({"failed"} if retry_failed else set())
    return [launch.runs[state.name] for state in states if state.phase in wanted], states
