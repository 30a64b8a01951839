"""Runs on SLURM: one array per set of equal requests, rendered and submitted by submitit.

Nothing is pickled: the array's command names the launch and a token, and the worker looks its run up in
the ledger. So a job whose submission was cut short in any place still finds what it has to do.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from latentbridge.errors import PreflightError, SchedulerError
from latentbridge.launch import slurm
from latentbridge.launch.cluster import Cluster, Resources
from latentbridge.launch.lease import Lease
from latentbridge.launch.ledger import NO_ANSWER, Submission
from latentbridge.launch.node.attempt import failed_to_begin_on
from latentbridge.launch.node.job_log import START_LINE
from latentbridge.launch.node.nodes import nodes_to_avoid
from latentbridge.launch.node.own_job import BEGAN_VARIABLE
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.slurm.squeue import COMMENT, JOB_NAME, Queue, read_queue

# the ledger's name for the job that comes after all runs
FINISH = "(finish)"
# a controller that takes longer than this to answer sbatch may still have taken the job
SBATCH_PATIENCE_S = 60
# how long SLURM may take to show a job whose submission was not answered
ANSWER_PATIENCE_S = 30
# when the job that comes last looks again, where it has no job to wait for
COME_BACK_MIN = 10
_ACCEPTED = re.compile(r"^Submitted batch job (\d+)\b", re.MULTILINE)


class SubmitLimitError(PreflightError):
    """The site's limit on queued jobs is reached; nothing is wrong with the request."""


def group_runs(runs: list[PlannedRun]) -> list[list[PlannedRun]]:
    """Runs that one array can hold, those that ask for the same; groups in the order of the plan."""
    order = {run.name: number for number, run in enumerate(runs)}

    def key(run: PlannedRun) -> str:
        return run.resources.model_dump_json()

    groups = [list(group) for _, group in groupby(sorted(runs, key=key), key=key)]
    return sorted(groups, key=lambda group: order[group[0].name])


def interpreter(cluster: Cluster) -> str:
    """The Python that runs on the nodes."""
    return cluster.python or sys.executable


def batch_command(cluster: Cluster, launch: Path, token: str, threads: int) -> str:
    """What the batch shell does: the worker on every node (after submitit's srun), then the epilogue."""
    python = [interpreter(cluster), "-u", "-m"]
    worker = [
        *python,
        "latentbridge.launch.node.worker",
        str(launch),
        "--token",
        token,
        f"--threads={threads}",
    ]
    epilogue = [*python, "latentbridge.launch.node.epilogue", str(launch), "--token", token]
    return f"{shlex.join(worker)}; {shlex.join(epilogue)} --code=$?"


def parameters(
    cluster: Cluster, resources: Resources, launch: Path, token: str, parallel: int, bad: Sequence[str] = ()
) -> dict[str, Any]:
    """What submitit's SLURM executor is told about one array.

    parallel: how many of its tasks run at a time;  bad: nodes to leave out beside the profile's
    """
    ranks = resources.gpus_per_node or 1
    code = shlex.quote(str(launch / "code"))
    wanted = {
        "job_name": JOB_NAME + launch.name,
        "comment": COMMENT + token,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": ",".join([*([cluster.exclude] if cluster.exclude else []), *bad]) or None,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": resources.gpus_per_node,
        "cpus_per_task": ranks * resources.cpus_per_gpu,
        "mem": f"{resources.mem_gb}G" if resources.mem_gb else None,
        "time": resources.timeout_min,
        "signal_delay_s": cluster.signal_delay_s,
        "array_parallelism": parallel,
        "setup": [
            *cluster.setup,
            f"export {BEGAN_VARIABLE}=$(date +%s.%N)",
            f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
            # a requeued job goes on in the same log
            f"echo '{START_LINE}' >&2",
            # a cancelled job's shell lives until the epilogue has spoken
            "trap : TERM",
        ],
        # one node's failure must end the others, which would wait for it until the time limit
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True, **cluster.additional_parameters},
    }
    return {key: value for key, value in wanted.items() if value is not None}


def script(
    cluster: Cluster, resources: Resources, launch: Path, token: str, count: int, parallel: int
) -> str:
    """The sbatch file of one array; for reading before anything is submitted."""
    settings = parameters(cluster, resources, launch, token, parallel)
    command = batch_command(cluster, launch, token, resources.cpus_per_gpu)
    return _render(command, launch / "slurm" / token, settings, count)


def _render(command: str, folder: Path, settings: dict[str, Any], count: int) -> str:
    from submitit.slurm.slurm import _make_sbatch_string

    return str(_make_sbatch_string(command, folder, **settings, map_count=count if count > 1 else None))


def submit_array(launch: Launch, held: Lease, runs: list[PlannedRun], parallel: int) -> Submission:
    """Submit runs of one request; the intent is on disk before sbatch is called, the answer right after."""
    resources = runs[0].resources
    intent = launch.ledger.intend([run.name for run in runs], parallel)
    bad = nodes_to_avoid(launch, resources.nodes, [node for run in runs for node in failed_to_begin_on(run)])
    settings = parameters(launch.cluster, resources, launch.path, intent.token, parallel, bad)
    command = batch_command(launch.cluster, launch.path, intent.token, resources.cpus_per_gpu)
    return _call_sbatch(launch, held, intent, command, settings)


def submit_finish(launch: Launch, held: Lease, after: list[str]) -> Submission:
    """Submit the small job that goes on, or summarises and preserves, once the jobs `after` have ended.

    Without any it begins in some minutes: what is waited for is no job of ours.
    """
    intent = launch.ledger.intend([FINISH])
    small = Resources(
        gpus_per_node=1, timeout_min=min(60, *(r.resources.timeout_min for r in launch.runs.values()))
    )
    settings = parameters(launch.cluster, small, launch.path, intent.token, 1)
    del settings["gpus_per_node"]
    # it looks at the runs itself: SLURM's word on how they ended does not count
    if after:
        settings["dependency"] = f"afterany:{':'.join(after)}"
    else:
        settings["additional_parameters"] |= {"begin": f"now+{COME_BACK_MIN}minutes"}
    python = interpreter(launch.cluster)
    archives = f"--archives={launch.plan['archives']}"
    command = shlex.join([python, "-m", "latentbridge.launch.finish", str(launch.path), archives])
    return _call_sbatch(launch, held, intent, command, settings)


def settle_open(launch: Launch, queue: Queue) -> bool:
    """Find out what became of submissions without an answer; True if anything is known now that was not.

    One that SLURM does not show after all this time is given up: should its job turn up yet, it is cancelled,
    and leaves by itself if it has begun.
    """
    settled = False
    for submission in list(launch.ledger):
        job = queue.jobs.get(submission.token)
        if submission.refused and job and job.alive:
            slurm.call("scancel", job.job_id)
        if not submission.is_open:
            continue
        if job:
            launch.ledger.accepted(submission, job.job_id)
        elif time.time() - submission.created > ANSWER_PATIENCE_S:
            launch.ledger.refused(submission, NO_ANSWER)
        else:
            continue
        settled = True
    return settled


def _call_sbatch(
    launch: Launch, held: Lease, intent: Submission, command: str, settings: dict[str, Any]
) -> Submission:
    """Submit one array; after a doubtful answer SLURM is asked for the token before anyone gives up."""
    folder = launch.path / "slurm" / intent.token
    folder.mkdir(parents=True)
    script = folder / "sbatch.sh"
    script.write_text(_render(command, folder, settings, len(intent.runs)))
    held.check()
    job_id, reason, is_refusal = _sbatch(script)
    if job_id is None:
        job_id = find_by_token(intent.token, 0 if is_refusal else ANSWER_PATIENCE_S)
    if job_id is not None:
        return launch.ledger.accepted(intent, job_id)
    if not is_refusal:
        # not written down as refused: should the job turn up after all, its token still leads to it
        raise SchedulerError(f"sbatch gave no clear answer: {reason}. Run the same command again in a minute")
    launch.ledger.refused(intent, reason)
    for token in launch.ledger.forget_denied(intent):
        shutil.rmtree(launch.path / "slurm" / token, ignore_errors=True)
    kind = SubmitLimitError if slurm.is_full(reason) else PreflightError
    raise kind(f"sbatch refused: {reason}. {script} holds what was asked; nothing of it was submitted")


def _sbatch(script: Path) -> tuple[str | None, str, bool]:
    """The job id that sbatch gave, or what it said instead and whether that is a refusal or leaves doubt."""
    try:
        answer = slurm.call_settled("sbatch", str(script), patience_s=SBATCH_PATIENCE_S)
    except SchedulerError as error:
        return None, str(error), False
    accepted = _ACCEPTED.findall(answer.stdout)
    if answer.returncode == 0 and len(accepted) == 1:
        return accepted[0], "", False
    said = " ".join((answer.stderr or answer.stdout).replace("sbatch: error: ", "").split())[:500]
    is_refusal = answer.returncode != 0 and "error:" in answer.stderr and not slurm.is_silence(said)
    return None, said or f"exit code {answer.returncode}", is_refusal


def find_by_token(token: str, patience_s: float) -> str | None:
    """The id of the job that carries our token in its comment; None if SLURM does not show it in time."""
    deadline = time.monotonic() + patience_s
    while True:
        job = read_queue().jobs.get(token)
        if job:
            return job.job_id
        if time.monotonic() >= deadline:
            return None
        time.sleep(2)
