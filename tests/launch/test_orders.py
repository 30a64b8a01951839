"""What people ask about single runs holds until they ask otherwise."""

from __future__ import annotations

import subprocess

import pytest
from folders import end, planned_launch

from latentbridge.errors import ConfigError, RunError, SchedulerError
from latentbridge.job import STOP_REQUEST
from latentbridge.launch import orders as orders_module
from latentbridge.launch import slurm
from latentbridge.launch.orders import CANCELLED, bring_back, cancel, find_skipped, select
from latentbridge.launch.status import RunStatus, status
from latentbridge.rundir import hold_lock


@pytest.fixture
def launch(project, write_spec):
    """Three runs, for this machine."""
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {}, ab: {steps: 4}, c: {steps: 5}}")
    return planned_launch(project)


def held(launch):
    return launch.ledger.orders.held


def phases(launch):
    return {state.name: state.phase for state in status(launch)}


def test_only_keeps_what_matches_and_skip_takes_from_it():
    cells = {"a": "a", "ab": "ab", "c": "c"}
    assert find_skipped(cells, only=["a*"], skip=["ab"]) == ["ab", "c"]
    assert find_skipped(cells, only=[], skip=["a*"]) == ["a", "ab"]


def test_a_cell_means_its_runs_and_no_other_cell_s():
    cells = {"a-s1": "a", "a-s2": "a", "ab-s1": "ab", "ab-s2": "ab"}
    assert find_skipped(cells, only=["a"], skip=[]) == ["ab-s1", "ab-s2"]
    assert find_skipped(cells, only=["a"], skip=["*-s2"]) == ["a-s2", "ab-s1", "ab-s2"]


def test_the_last_choice_counts_and_none_means_all_but_what_was_cancelled(launch):
    cancel(launch, ["c"])
    select(launch, ["a", "c"])
    assert phases(launch) == {"a": "held", "ab": "planned", "c": "cancelled"}

    select(launch, [])

    assert held(launch) == {"c": CANCELLED}


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match="'abc' matches no run and no cell; runs: a, ab, c"):
        find_skipped({"a": "a", "ab": "ab", "c": "c"}, only=["a"], skip=["abc"])


def test_what_has_ended_is_not_cancelled(launch):
    end(launch.run("a"), "done")
    end(launch.run("ab"), "error")

    assert cancel(launch, ["a", "ab", "c"]) == ["c"]
    assert phases(launch) == {"a": "done", "ab": "failed", "c": "cancelled"}


def test_brought_back_runs_may_start_with_their_earlier_attempts_forgiven(launch):
    end(launch.run("ab"), "error")
    cancel(launch, ["c"])

    assert bring_back(launch, ["a", "ab", "c"]) == ["ab", "c"]
    assert launch.ledger.orders.forgiven == {"ab": 1, "c": 0}
    assert phases(launch) == {"a": "planned", "ab": "stopped", "c": "planned"}


def states_of(monkeypatch, *states):
    monkeypatch.setattr(orders_module, "status", lambda launch: list(states))


def test_jobs_are_cancelled_by_their_tasks_after_the_order_is_on_disk(launch, monkeypatch):
    states_of(
        monkeypatch,
        RunStatus(name="a", phase="pending", job="7_0"),
        RunStatus(name="ab", phase="running", job="7_1", is_open=True),
        RunStatus(name="c", phase="running", job="7_2"),
    )
    seen = []

    def call(*argv):
        seen.append((argv, dict(held(launch))))
        return subprocess.CompletedProcess(argv, 0, "", "")

    monkeypatch.setattr(slurm, "call", call)

    cancel(launch, ["a", "ab", "c"])

    orders = dict.fromkeys(("a", "ab", "c"), CANCELLED)
    # SLURM would kill after KillWait what is asked to save
    assert seen == [(("scancel", "--signal=TERM", "7_1"), orders), (("scancel", "7_0", "7_2"), orders)]

    cancel(launch, ["ab"])

    assert seen[2:] == [(("scancel", "7_1"), orders)], "who asks twice does not want to wait"


def test_where_slurm_cannot_be_told_the_order_stands_all_the_same(launch, monkeypatch):
    states_of(monkeypatch, RunStatus(name="a", phase="running", job="7"))
    failed = subprocess.CompletedProcess([], 1, "", "Unable to contact slurm controller")
    monkeypatch.setattr(slurm, "call", lambda *argv: failed)

    with pytest.raises(SchedulerError, match="marked as cancelled, but their jobs may live on"):
        cancel(launch, ["a"])

    assert held(launch) == {"a": CANCELLED}


def test_without_slurm_a_run_at_work_is_asked_by_file(launch, monkeypatch):
    attempt = launch.run("a").folder.new_attempt()
    # its worker opened the attempt since it was looked at
    states_of(monkeypatch, RunStatus(name="a", phase="running"))

    cancel(launch, ["a"])

    assert (attempt / STOP_REQUEST).exists()


def test_a_run_that_is_trained_by_hand_is_for_that_person_to_stop_and_the_others_are_cancelled(launch):
    attempt = launch.run("ab").folder.new_attempt()
    by_hand, others = launch.run("a").folder.rank_lock, launch.run("ab").folder.worker_lock
    with (
        hold_lock(by_hand, 0),
        hold_lock(others, 0),
        hold_lock(launch.run("c").folder.worker_lock, 0),  # its first attempt is about to be opened
        pytest.raises(RunError, match=r"^a: trained by a process that somebody started by hand"),
    ):
        cancel(launch, ["a", "ab", "c"])

    assert (attempt / STOP_REQUEST).exists()
    assert held(launch) == dict.fromkeys(("a", "ab", "c"), CANCELLED)


def test_the_first_cancel_of_a_run_that_was_left_out_while_at_work_lets_it_save(launch, monkeypatch):
    select(launch, ["a"])
    states_of(monkeypatch, RunStatus(name="a", phase="running", job="7", is_open=True))
    asked = []
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(slurm, "call", lambda *argv: asked.append(argv) or done)

    cancel(launch, ["a"])

    assert asked == [("scancel", "--signal=TERM", "7")]


def test_who_retries_what_is_still_ending_waits_for_its_end(launch, monkeypatch):
    cancel(launch, ["a"])
    ending, ended = RunStatus(name="a", phase="running", job="7"), RunStatus(name="a", phase="cancelled")
    looks = [[ending], [ending], [ended]]
    monkeypatch.setattr(orders_module, "POLL_S", 0)
    monkeypatch.setattr(orders_module, "status", lambda launch: looks.pop(0))

    assert bring_back(launch, ["a"]) == ["a"]
    assert looks == []
