"""What the batch shell makes of a worker that could not say how its attempt ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from latentbridge.errors import SchedulerError
from latentbridge.launch.cluster import Resources
from latentbridge.launch.ledger import Orders
from latentbridge.launch.node import epilogue, own_job
from latentbridge.launch.node.epilogue import close
from latentbridge.launch.node.job_log import START_LINE
from latentbridge.launch.spec import Retry
from latentbridge.rundir import RunDir, hold_lock, read_json, write_json

OOM = "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0.\n"
TRACEBACK = "Traceback (most recent call last):\nOSError: [Errno 28] No space left on device\n"
AFTERWORD = "srun: error: gpu01: task 0: Exited with exit code 1\n"


@pytest.fixture
def close_after(tmp_path, monkeypatch):
    """Close run `a` of job 7 after it said this and srun returned that; returns its folder."""
    monkeypatch.setattr(own_job, "requeue", lambda launch, needed, beside: None)
    monkeypatch.setattr(own_job, "why_ending", lambda said: None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    folder = RunDir(tmp_path / "a")
    logs = tmp_path / "slurm" / "token"
    for path in (folder.path, logs):
        path.mkdir(parents=True)
    folder.config.write_text("steps: 4\n")
    ledger = SimpleNamespace(orders=Orders())
    launch = SimpleNamespace(path=tmp_path, retry=Retry(), ledger=ledger)
    run = SimpleNamespace(name="a", folder=folder, resources=Resources(gpus_per_node=1))

    def act(said: str, code: int, opened: bool = True) -> RunDir:
        (logs / "7_0_log.err").write_text(said)
        if opened:
            write_json(
                folder.new_attempt() / "env.json", {"slurm": "7.0", "token": "token", "started": 1000.0}
            )
        close(launch, run, "token", code)
        return folder

    return act


def ending(folder):
    record = read_json(folder.list_attempts()[-1] / "exit.json")
    return record["cause"], record["message"]


@pytest.mark.parametrize(
    ("said", "code", "cause", "message"),
    [
        ("", 137, "killed", "the worker was killed by SIGKILL from outside"),
        (OOM, 137, "host_oom", "the kernel killed the worker for want of memory"),
        (OOM + START_LINE + "\n", 137, "killed", "the worker was killed by SIGKILL from outside"),
        (
            "srun: error: Aborting, io error and missing step on node 1\nsrun: error: gpu01: Killed\n",
            137,
            "node_fail",
            "srun lost a node of the job: srun: error: Aborting, io error and missing step on node 1",
        ),
        (
            TRACEBACK + AFTERWORD,
            1,
            "error",
            "the worker failed (srun: exit code 1): OSError: [Errno 28] No space left on device",
        ),
    ],
    ids=["killed", "out of memory", "out of memory in an earlier start", "lost node", "failed itself"],
)
def test_a_silent_worker_is_spoken_for(close_after, said, code, cause, message):
    assert ending(close_after(said, code)) == (cause, message)


def test_a_worker_that_did_not_start_leaves_an_attempt_that_says_why(close_after):
    folder = close_after(
        "srun: error: x\nslurmstepd: error: execve(): python: No such file\n", 2, opened=False
    )

    assert ending(folder)[1] == (
        "the worker did not start (srun: exit code 2): slurmstepd: error: execve(): python: No such file"
    )


def test_a_run_that_another_job_is_at_gets_no_attempt_of_ours(close_after, tmp_path):
    with hold_lock(RunDir(tmp_path / "a").worker_lock, 0):
        folder = close_after("", 85, opened=False)

    assert folder.list_attempts() == []


def test_a_job_that_was_cancelled_as_it_began_is_not_taken_for_a_worker_that_failed(close_after, monkeypatch):
    asked = []
    monkeypatch.setattr(own_job, "why_ending", lambda said: own_job.Why("cancelled", "by scancel"))
    monkeypatch.setattr(own_job, "requeue", lambda *words: asked.append(words))

    folder = close_after("srun: error: gpu01: task 0: Terminated\n", 143, opened=False)

    assert ending(folder) == ("cancelled", "by scancel")
    assert (folder.state, asked) == ("STOPPED", [])


def test_where_slurm_does_not_say_why_a_start_failed_it_is_an_error(close_after, monkeypatch):
    def silent(said):
        raise SchedulerError("silent")

    monkeypatch.setattr(own_job, "why_ending", silent)

    assert ending(close_after("x\n", 143, opened=False))[0] == "error"


def test_a_worker_that_found_nothing_to_add_is_not_spoken_for(close_after, tmp_path):
    own_job.note_left(SimpleNamespace(path=tmp_path), "token")

    assert close_after("", 1, opened=False).list_attempts() == []


@pytest.mark.parametrize(
    ("cause", "may_free", "waits", "wanted"),
    [
        ("done", True, True, True),
        ("done", False, True, False),
        # somebody took the job that comes last out of the queue
        ("done", False, False, True),
        # scancel of everything must not make new jobs
        ("cancelled", True, False, False),
    ],
)
def test_the_end_of_a_job_lets_others_start_but_for_one_that_was_cancelled(
    monkeypatch, cause, may_free, waits, wanted
):
    monkeypatch.setattr(epilogue, "_ending", lambda run, token: (None, {"cause": cause}))
    monkeypatch.setattr(epilogue, "may_free_something", lambda launch: may_free)
    monkeypatch.setattr(epilogue, "finish_waits", lambda launch: waits)

    assert epilogue._is_wanted(None, None, "token") == wanted


@pytest.mark.parametrize(
    ("again", "is_last", "stranded"), [(True, True, "7"), (True, False, None), (False, True, None)]
)
def test_a_run_that_the_site_will_not_start_again_is_stranded(monkeypatch, again, is_last, stranded):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr(epilogue, "_ending", lambda run, token: (None, {"cause": "timeout", "again": again}))
    monkeypatch.setattr(own_job, "is_last_start", lambda: is_last)

    assert epilogue._stranded(None, "token") == stranded


def test_a_start_that_failed_on_a_node_is_repeated_elsewhere(close_after, monkeypatch):
    asked = []
    monkeypatch.setattr(own_job, "requeue", lambda launch, needed, beside: asked.append(beside))
    monkeypatch.setenv("SLURMD_NODENAME", "gpu03")

    close_after("no such interpreter\n", 2, opened=False)

    assert asked == [["gpu03"]]
