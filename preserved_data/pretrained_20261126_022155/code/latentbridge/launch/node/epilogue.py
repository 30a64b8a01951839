"""The last word of a job, spoken by its batch shell: how the attempt ended if its worker could not say so,
and whatever the launch can do next.

python -m latentbridge.launch.node.epilogue LAUNCH --token TOKEN --code EXIT_CODE_OF_SRUN
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from latentbridge.errors import LatentbridgeError, SchedulerError
from latentbridge.launch.advance import advance, finish_waits, may_free_something
from latentbridge.launch.node import own_job
from latentbridge.launch.node.attempt import Ending, close_lost, conclude, failed_to_begin_on
from latentbridge.launch.node.causes import Cause
from latentbridge.launch.node.job_log import last_line, words_of
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.rundir import read_json, write_json

# the GPUs are still ours while this waits for its turn to submit; the finishing job makes up for who gave up
PATIENCE_S = 20
_OOM = re.compile(r"oom[-_ ]kill|Out Of Memory", re.IGNORECASE)
_LOST_NODE = re.compile(r"^.*(?:node failure|missing step on node).*$", re.IGNORECASE | re.MULTILINE)
SILENT = "it printed nothing"
# what srun returns for a task that died of SIGKILL
KILLED = 128 + signal.SIGKILL


def close(launch: Launch, run: PlannedRun, token: str, code: int) -> None:
    """Write down the end of this job's attempt if its worker did not, and start it again where that helps."""
    attempt = own_job.find_attempt(run.folder, token)
    said = words_of(launch.path, token, own_job.task_id())
    if attempt:
        silent = not (attempt / "exit.json").exists()
        again = silent and close_lost(launch, run, *_why_silent(said, code))
    elif code == 0 or run.folder.is_locked() or own_job.has_left(launch, token, own_job.task_id(), now=True):
        return  # there was nothing left to do, or another job is at this run and ours left it alone
    else:
        cause, message = _why_not_begun(launch, run, said, code)
        attempt = run.folder.new_attempt()
        write_json(
            attempt / "env.json",
            {
                "slurm": own_job.identity(),
                "token": token,
                "nodes": own_job.node_name(),
                "started": own_job.began(),
                "began": False,
            },
        )
        again = conclude(
            launch, run, attempt, Ending(cause=cause, message=message, exit_code=code, ended=time.time())
        )
    if again:
        own_job.requeue(launch, run.resources.nodes, beside=failed_to_begin_on(run))


def _why_not_begun(launch: Launch, run: PlannedRun, said: str, code: int) -> tuple[Cause, str]:
    """Why no worker opened an attempt: SLURM or a person ended the job as it began, or it failed."""
    if held := launch.ledger.orders.held.get(run.name):
        return "cancelled", held
    with suppress(SchedulerError):
        if why := own_job.why_ending(said):
            return why.cause, why.message
    return "error", f"the worker did not start (srun: exit code {code}): {last_line(said) or SILENT}"


def _why_silent(said: str, code: int) -> tuple[Cause, str]:
    if _OOM.search(said):
        return "host_oom", "the kernel killed the worker for want of memory"
    if lost := _LOST_NODE.search(said):
        return "node_fail", f"srun lost a node of the job: {lost[0]}"
    if code == KILLED:
        return "killed", "the worker was killed by SIGKILL from outside"
    return "error", f"the worker failed (srun: exit code {code}): {last_line(said) or SILENT}"


def _ending(run: PlannedRun, token: str) -> tuple[Path, dict[str, Any]] | None:
    """Where and how the end of this job's attempt is written down."""
    attempt = own_job.find_attempt(run.folder, token)
    file = attempt / "exit.json" if attempt else None
    return (file, read_json(file)) if file and file.exists() else None


def _is_wanted(launch: Launch, run: PlannedRun, token: str) -> bool:
    """Whether this end should let something else start."""
    ending = _ending(run, token)
    # who cancels all jobs does not want new ones; if the job that comes last is left, it goes on
    if ending and ending[1]["cause"] == "cancelled":
        return False
    return may_free_something(launch) or not finish_waits(launch)


def _stranded(run: PlannedRun, token: str) -> str | None:
    """This task, if its run is to go on and yet SLURM will not start it again, for the site forbids that."""
    ending = _ending(run, token)
    return own_job.task_id() if ending and ending[1]["again"] and own_job.is_last_start() else None


def release(run: PlannedRun, token: str) -> None:
    """Write down until when this job held its GPUs."""
    if ending := _ending(run, token):
        write_json(ending[0], ending[1] | {"released": time.time()})


def main() -> None:
    """Entry point in the batch shell; its exit code is the job's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("launch", type=Path)
    parser.add_argument("--token", required=True)
    parser.add_argument("--code", type=int, required=True)
    args = parser.parse_args()
    launch = Launch(args.launch)
    try:
        run = own_job.find_run(launch, args.token)
        close(launch, run, args.token, args.code)
        try:
            stranded = _stranded(run, args.token)
            if stranded or _is_wanted(launch, run, args.token):
                step = advance(launch, patience_s=PATIENCE_S, again_after=stranded)
                for complaint in step.complaints:
                    print(complaint, file=sys.stderr)
        finally:
            release(run, args.token)
    except LatentbridgeError as error:  # another will do it: the job that comes last, watch, or a person
        print(error, file=sys.stderr)
    raise SystemExit(args.code)


if __name__ == "__main__":
    main()
