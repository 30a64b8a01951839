"""Why SLURM signals a job, by what its tools said at such moments on a real cluster."""

from __future__ import annotations

import pytest

from latentbridge.launch.node.own_job import (
    find_attempt,
    is_last_start,
    requeue,
    why_ending,
    why_signalled,
)
from latentbridge.rundir import RunDir, write_json

RUNNING = "JobId=7 JobState=RUNNING Reason=None Requeue=1 Restarts=1 TimeLimit=00:10:00"
COMPLETING = "JobId=7 JobState=COMPLETING Reason=None Requeue=1 Restarts=1 EndTime=2026-11-22T14:46:15"


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Have scontrol say this of the job and of its nodes; returns the file of what it was asked."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, value in {"JOB_ID": "7", "RESTART_COUNT": "1", "JOB_NODELIST": "gpu[01-02]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)

    def answer(job: str, second_node: str = "IDLE", code: int = 0):
        (tmp_path / "scontrol").write_text(
            f"""#!/bin/sh
            echo "$*" >> {tmp_path}/asked
            case "$2" in
                job) echo '{job}' ;;
                node) echo 'NodeName=gpu01 State=MIXED'; echo 'NodeName=gpu02 State={second_node}' ;;
            esac
            exit {code}
            """
        )
        (tmp_path / "scontrol").chmod(0o755)
        return tmp_path / "asked"

    return answer


@pytest.mark.parametrize(
    ("job", "second_node", "warned", "cause"),
    [
        (COMPLETING, "IDLE", False, "cancelled"),
        (COMPLETING.replace("Reason=None", "Reason=TimeLimit"), "IDLE", False, "timeout"),
        (COMPLETING.replace("Restarts=1", "Restarts=2"), "MIXED", False, "preempted"),
        (COMPLETING.replace("Restarts=1", "Restarts=2"), "DOWN+NOT_RESPONDING", False, "node_fail"),
        ("JobId=7 JobState=NODE_FAIL Restarts=1", "DOWN", False, "node_fail"),
        (COMPLETING.replace("Restarts=1", "FailedNode=gpu02 Restarts=2"), "IDLE", False, "node_fail"),
        (RUNNING, "IDLE", True, "timeout"),
        (RUNNING + " PreemptTime=2026-11-22T14:46:15", "IDLE", True, "preempted"),
        (RUNNING + " PreemptTime=None", "IDLE", False, "preempted"),
    ],
)
def test_the_reason_of_a_signal_is_read_from_the_job_and_its_nodes(scontrol, job, second_node, warned, cause):
    scontrol(job, second_node)

    assert why_signalled(warned, "").cause == cause


def test_only_the_attempt_of_this_start_of_this_job_is_its_own(tmp_path, scontrol):
    run = RunDir(tmp_path)
    for identity, token in (("7.1", "of a lost controller"), ("7.0", "aa"), ("7.1", "aa"), ("8.1", "aa")):
        write_json(run.new_attempt() / "env.json", {"slurm": identity, "token": token})

    assert find_attempt(run, "aa").name == "3"


@pytest.mark.parametrize(
    ("job", "cause"),
    [(RUNNING, None), (COMPLETING, "cancelled"), (RUNNING.replace("Restarts=1", "Restarts=2"), "preempted")],
)
def test_a_job_that_nobody_ends_has_no_reason_to(scontrol, job, cause):
    scontrol(job)

    assert (why_ending("") or (None,))[0] == cause


def test_where_the_site_forbids_to_requeue_the_worker_says_so_and_leaves(scontrol, capsys):
    asked = scontrol("", code=1)

    assert not requeue(None, needed=1)

    assert asked.read_text() == "requeue 7\n"
    assert "scontrol failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("srun: error: Node failure on gpu02\n", ["gpu02"]),
        ("slurmstepd: error: *** STEP 7.0 ON gpu01 CANCELLED AT now DUE TO NODE FAILURE, SEE LOG ***\n", []),
    ],
)
def test_a_node_that_is_back_by_the_time_slurm_is_asked_is_told_by_the_log(scontrol, said, lost):
    scontrol(COMPLETING.replace("Restarts=1", "Restarts=2"), "IDLE")

    why = why_signalled(False, said)

    assert (why.cause, list(why.lost)) == ("node_fail", lost)


@pytest.mark.parametrize(("restarts", "code", "last"), [(1, 0, True), (2, 0, False), (1, 1, False)])
def test_a_job_that_was_not_requeued_is_not_started_again(scontrol, restarts, code, last):
    scontrol(COMPLETING.replace("Restarts=1", f"Restarts={restarts}"), code=code)

    assert is_last_start() == last
