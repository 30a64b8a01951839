"""Runs on SLURM: one array per set of equal requests, rendered and submitted by submitit.

Nothing is pickled: the array's command names the launch and a token, and the worker looks its run up in
the ledger. So a job whose submission was cut short in any place still finds what it has to do.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from latentbridge.errors import PreflightError, SchedulerError
from latentbridge.launch.cluster import Cluster, Resources
from latentbridge.launch.ledger import Ledger, Submission
from latentbridge.launch.record import Launch, PlannedRun

COMMENT = "latentbridge:"
# the ledger's name for the job that comes after all runs
FINISH = "(finish)"
# how long SLURM may take to show a job whose submission was not answered
ANSWER_PATIENCE_S = 30


def group_runs(runs: list[PlannedRun]) -> list[list[PlannedRun]]:
    """Runs that one array can hold: same request, same needs; those needed come before those in need."""
    by_name = {run.name: run for run in runs}

    def key(run: PlannedRun) -> tuple[Any, ...]:
        return _depth(run, by_name), run.needs, run.resources.model_dump_json()

    return [list(group) for _, group in groupby(sorted(runs, key=key), key=key)]


def _depth(run: PlannedRun, runs: dict[str, PlannedRun]) -> int:
    return max((1 + _depth(runs[need], runs) for need in run.needs if need in runs), default=0)


def worker_command(launch: Path, token: str, threads: int) -> str:
    """The shell command that SLURM starts once on every node."""
    words = [sys.executable, "-u", "-m", "latentbridge.launch.worker", str(launch), "--token", token]
    return shlex.join([*words, f"--threads={threads}"])


def parameters(cluster: Cluster, resources: Resources, launch: Path, token: str) -> dict[str, Any]:
    """What submitit's SLURM executor is told about one array."""
    ranks = resources.gpus_per_node or 1
    code = shlex.quote(str(launch / "code"))
    wanted = {
        "job_name": f"lb-{launch.name}",
        "comment": COMMENT + token,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": resources.gpus_per_node,
        "cpus_per_task": ranks * resources.cpus_per_gpu,
        "mem": f"{resources.mem_gb}G" if resources.mem_gb else None,
        "time": resources.timeout_min,
        "signal_delay_s": cluster.signal_delay_s,
        "array_parallelism": cluster.max_parallel,
        "setup": [
            *cluster.setup,
            f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        ],
        # one node's failure must end the others, which would wait for it until the time limit
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True, **cluster.additional_parameters},
    }
    return {key: value for key, value in wanted.items() if value is not None}


def script(cluster: Cluster, resources: Resources, launch: Path, token: str, count: int) -> str:
    """The sbatch file of one array, as submitit renders it; for reading before anything is submitted."""
    from submitit.slurm.slurm import _make_sbatch_string

    settings = parameters(cluster, resources, launch, token)
    command = worker_command(launch, token, resources.cpus_per_gpu)
    return str(
        _make_sbatch_string(
            command, launch / "slurm" / token, **settings, map_count=count if count > 1 else None
        )
    )


def submit(launch: Launch, pending: list[PlannedRun]) -> list[Submission]:
    """Submit every pending run; each intent is on disk before sbatch is called, each answer right after."""
    ledger = Ledger(launch.path / "ledger")
    made: list[Submission] = []
    for group in group_runs(pending):
        first = group[0]
        # what is needed may have been submitted by an earlier launcher
        latest = ledger.latest()
        needed = {latest[n].job_id for n in first.needs if n in latest and not launch.runs[n].folder.is_done}
        after = sorted(job for job in needed if job)
        settings = {"dependency": f"afterany:{':'.join(after)}"} if after else {}
        intent = ledger.intend([run.name for run in group])
        settings |= parameters(launch.cluster, first.resources, launch.path, intent.token)
        command = worker_command(launch.path, intent.token, first.resources.cpus_per_gpu)
        made.append(call_sbatch(launch, ledger, intent, command, settings))
    return made


def adopt_lost(launch: Launch) -> None:
    """Give every submission whose answer was lost the job id that SLURM shows for its token, if any."""
    ledger = Ledger(launch.path / "ledger")
    lost = [submission for submission in ledger if submission.job_id is None and submission.refused is None]
    jobs = queue() if lost else {}
    for submission in lost:
        if submission.token in jobs:
            ledger.accepted(submission, jobs[submission.token][0])


def submit_finish(launch: Launch, after: set[str]) -> Submission | None:
    """Submit the small job that summarises and preserves once the jobs `after` have ended.

    None if one is waiting already: it looks at all runs, whenever they were submitted.
    """
    ledger = Ledger(launch.path / "ledger")
    earlier = ledger.latest().get(FINISH)
    if earlier and queue().get(earlier.token, ("", ""))[1] == "PD":
        return None
    intent = ledger.intend([FINISH])
    small = Resources(gpus_per_node=1, timeout_min=60)
    settings = parameters(launch.cluster, small, launch.path, intent.token)
    del settings["gpus_per_node"]
    settings["dependency"] = f"afterany:{':'.join(sorted(after))}"
    command = shlex.join([sys.executable, "-m", "latentbridge.launch.finish", str(launch.path)])
    return call_sbatch(launch, ledger, intent, command, settings)


def call_sbatch(
    launch: Launch, ledger: Ledger, intent: Submission, command: str, settings: dict[str, Any]
) -> Submission:
    """Submit one array; after a doubtful answer SLURM is asked for the token before anyone gives up."""
    import submitit

    folder = launch.path / "slurm" / intent.token
    folder.mkdir(parents=True)
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(**settings)
    if len(intent.runs) > 1:
        executor.parameters["map_count"] = len(intent.runs)
    try:
        with outside_of_jobs():
            return ledger.accepted(intent, executor._submit_command(command).job_id)
    except Exception as error:  # submitit raises its job errors, RuntimeError and subprocess's alike
        reason = " ".join(str(error).split())
    found = find_by_token(intent.token, ANSWER_PATIENCE_S if is_doubtful(reason) else 0)
    if found:
        return ledger.accepted(intent, found)
    if is_doubtful(reason):
        # not written down as refused: should the job turn up after all, its token still leads to it
        raise SchedulerError(f"sbatch gave no clear answer: {reason}. Run the same command again in a minute")
    ledger.refused(intent, reason)
    raise PreflightError(
        f"sbatch refused: {reason}. {folder} holds what was asked; nothing of it was submitted"
    )


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Hide a surrounding SLURM job from sbatch, which would pass it on; where SLURM is stays known."""
    kept = dict(os.environ)
    inside = "SLURM_JOB_ID" in kept  # elsewhere SBATCH_ACCOUNT and its like are what the user wants
    for key in kept:
        if inside and key.startswith(("SLURM_", "SBATCH_", "SRUN_")) and not key.startswith("SLURM_CONF"):
            del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(kept)


DOUBTFUL = (
    "timed out",
    "time out",
    "no answer",
    "unable to contact",
    "connection",
    "communication",
    "zero bytes",
    "transport endpoint",
    "temporarily",
    "message receive",
    "job id",  # submitit found none in what sbatch printed
)


def is_doubtful(reason: str) -> bool:
    """Whether an error leaves open if the job was accepted: a refusal is final, a silence is not."""
    return any(words in reason.lower() for words in DOUBTFUL)


def find_by_token(token: str, patience_s: float) -> str | None:
    """The id of the job that carries our token in its comment; None once SLURM has surely not got it."""
    deadline = time.monotonic() + patience_s
    while True:
        jobs = queue()
        if token in jobs:
            return jobs[token][0]
        if time.monotonic() >= deadline:
            return None
        time.sleep(2)


def queue() -> dict[str, tuple[str, str]]:
    """Our jobs in the queue: token to (array) job id and short state; SchedulerError if SLURM is silent."""
    found = {}
    for line in squeue("%F|%t|%k"):
        job_id, state, comment = line.split("|", 2)
        if comment.startswith(COMMENT):
            found[comment.removeprefix(COMMENT)] = (job_id, state)
    return found


def squeue(form: str) -> list[str]:
    """Lines of one squeue call over this user's jobs, array tasks apart."""
    command = [
        "squeue",
        "--noheader",
        "--array",
        f"--user={os.getuid()}",
        f"--format={form}",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SchedulerError(f"squeue did not answer ({error}); run the same command again later") from None
    if answer.returncode != 0:
        raise SchedulerError(f"squeue failed: {answer.stderr.strip()}; run the same command again later")
    return answer.stdout.splitlines()
