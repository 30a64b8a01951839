"""What every run of a launch is doing: its markers first, then the queue; silence is never failure."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from latentbridge.errors import SchedulerError
from latentbridge.launch.ledger import Ledger, Submission
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.submit import ANSWER_PATIENCE_S, COMMENT, squeue
from latentbridge.rundir import RunDir, read_json, read_jsonl

Phase = Literal["planned", "pending", "running", "done", "failed", "stopped", "lost", "unknown"]
ACTIVE = ("pending", "running")
ENDED: dict[str, Phase] = {"DONE": "done", "FAILED": "failed", "STOPPED": "stopped"}
# SLURM's short states of a job that will still run, or is running
QUEUED = {"PD": "pending", "CF": "pending", "RQ": "pending", "R": "running", "CG": "running", "S": "running"}


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
    jobs, answered = _ask_queue(submissions)
    # markers are read after the queue: a run that left the queue before has written its own by now
    return [_of(run, submissions.get(run.name), jobs, answered) for run in launch.runs.values()]


def _ask_queue(submissions: dict[str, Submission]) -> tuple[dict[str, tuple[str, str]], bool]:
    """Task id -> (short state, reason) and token -> the same, and whether SLURM answered at all."""
    if not submissions:
        return {}, True
    try:
        lines = squeue("%F|%K|%t|%r|%k")
    except SchedulerError:
        return {}, False
    jobs: dict[str, tuple[str, str]] = {}
    for line in lines:
        array, index, state, reason, comment = line.split("|", 4)
        token = comment.removeprefix(COMMENT)
        jobs[array if index == "N/A" else f"{array}_{index}"] = (state, reason)
        jobs[f"{token}.{0 if index == 'N/A' else index}"] = (state, reason)
    return jobs, True


def _of(
    run: PlannedRun, submission: Submission | None, jobs: dict[str, tuple[str, str]], answered: bool
) -> RunStatus:
    phase, detail, job = _phase(run, submission, jobs, answered)
    step = max((record["step"] for record in read_jsonl(run.folder.train_log)), default=0)
    attempts = len(run.folder.list_attempts())
    return RunStatus(name=run.name, phase=phase, attempts=attempts, step=step, detail=detail, job=job)


def _phase(
    run: PlannedRun, submission: Submission | None, jobs: dict[str, tuple[str, str]], answered: bool
) -> tuple[Phase, str, str | None]:
    state = run.folder.state
    job = submission.task_id(run.name) if submission else None
    queued = None
    if submission:
        index = submission.runs.index(run.name)
        queued = jobs.get(job or "") or jobs.get(f"{submission.token}.{index}")
    if state == "DONE":
        return "done", "", job
    if queued and queued[0] in QUEUED:
        reason = queued[1] if queued[1] not in ("None", "") else ""
        return ("pending" if QUEUED[queued[0]] == "pending" else "running"), reason, job
    if run.folder.is_locked():
        return "running", progress(run.folder), job
    if state:
        return ENDED[state], str(run.folder.read_marker().get("message", "")), job
    if not submission:
        return ("lost" if run.folder.list_attempts() else "planned"), "", None
    if not answered:
        return "unknown", "SLURM does not answer", job
    if submission.job_id is None and time.time() - submission.created < ANSWER_PATIENCE_S:
        return "unknown", "submitted moments ago, no answer yet", job
    return "lost", "it left the queue without a marker: killed, or its node died", job


def progress(run: RunDir) -> str:
    """What the current attempt last said it was doing, e.g. "training 120/400"."""
    attempts = run.list_attempts()
    file: Path | None = attempts[-1] / "progress.json" if attempts else None
    if file is None or not file.exists():
        return "starting"
    record = read_json(file)
    return f"{record['stage']} {record['done']}/{record['total']}"


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
