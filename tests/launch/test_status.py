"""Markers first, then the queue; silence is never failure."""

from __future__ import annotations

import fcntl

import pytest

from latentbridge.launch.cluster import Resources
from latentbridge.launch.ledger import Submission
from latentbridge.launch.record import PlannedRun
from latentbridge.launch.status import _phase
from latentbridge.rundir import RunDir


@pytest.fixture
def run(tmp_path):
    return PlannedRun(
        name="b",
        cell="b",
        id="1",
        seed=3,
        job="count",
        needs=(),
        resources=Resources(),
        folder=RunDir(tmp_path),
    )


def submitted(job_id="7", created=0.0):
    return Submission(token="abc", runs=("a", "b", "c"), created=created, job_id=job_id)


@pytest.mark.parametrize(
    ("short", "phase"),
    [("PD", "pending"), ("SE", "pending"), ("RH", "pending"), ("R", "running"), ("ST", "running")],
)
def test_any_job_that_squeue_lists_is_alive(run, short, phase):
    assert _phase(run, submitted(), {"abc.1": (short, "None")}) == (phase, "")


def test_another_task_of_the_array_says_nothing_of_this_one(run):
    assert _phase(run, submitted(), {"abc.0": ("R", "None")})[0] == "lost"


def test_a_queue_that_does_not_answer_makes_no_run_lost(run):
    assert _phase(run, submitted(), None)[0] == "unknown"


def test_done_stays_done_whatever_the_queue_says(run):
    run.folder.mark("DONE", {})

    assert _phase(run, submitted(), None)[0] == "done"
    assert _phase(run, submitted(), {"abc.1": ("R", "None")})[0] == "done"


def test_a_requeued_run_is_pending_although_its_last_attempt_left_a_marker(run):
    run.folder.mark("STOPPED", {"message": "preempted"})

    assert _phase(run, submitted(), {"abc.1": ("PD", "BeginTime")}) == ("pending", "BeginTime")


def test_asking_whether_a_run_is_locked_never_locks_it(run):
    run.folder.rank_lock.touch()
    with open(run.folder.rank_lock, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # somebody else asks at this moment
        assert not run.folder.is_locked()
        fcntl.flock(other, fcntl.LOCK_EX)
        assert run.folder.is_locked()
