"""Watching a launch: it tells changes and silence, starts what may start, and ends when all has ended."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from folders import begin, end, planned_launch

from latentbridge.errors import LockedError, PreflightError, RunError, SchedulerError
from latentbridge.launch import status
from latentbridge.launch.advance import Advance
from latentbridge.launch.ledger import Orders
from latentbridge.launch.slurm.squeue import Job, Queue, Task
from latentbridge.launch.status import RunStatus
from latentbridge.launch.view import watch
from latentbridge.launch.view.watch import Watcher, exit_code


@pytest.fixture
def local_launch(project, write_spec):
    write_spec("name: s\njob: count\ncluster: local\nbudget_gpu_hours: 2\nruns: {a: {}, b: {steps: 4}}")
    return planned_launch(project)


@pytest.fixture
def slurm_launch(project, write_spec):
    """Three runs on SLURM, the first two in one array."""
    (project / "slurm" / "test.yaml").write_text("executor: slurm\n")
    write_spec("name: s\njob: count\ncluster: test\nruns: {a: {}, b: {steps: 4}, c: {steps: 5}}")
    launch = planned_launch(project)
    launch.ledger.accepted(launch.ledger.intend(["a", "b"]), "7")
    return launch


@pytest.fixture
def slurm(slurm_launch, monkeypatch):
    """The queue that squeue shows: a list of (index, state), or None for a squeue that fails."""
    shown = [(0, "R"), (1, "PD")]
    (submission,) = slurm_launch.ledger

    def read_queue(uid):
        if None in shown:
            raise SchedulerError("squeue did not answer")
        tasks = {index: Task(state, "Priority" if state == "PD" else "", "") for index, state in shown}
        return Queue({submission.token: Job("7", tasks)})

    monkeypatch.setattr(status, "read_queue", read_queue)
    return shown


class FakeAdvance:
    """Counts the steps that were taken, and fails as it is told to."""

    def __init__(self):
        self.calls, self.error, self.over_budget = 0, None, False
        self.states, self.refusals = [], []

    def __call__(self, launch):
        self.calls += 1
        if self.error:
            raise self.error
        return Advance(self.states, over_budget=self.over_budget, refusals=self.refusals)


@pytest.fixture
def advance(monkeypatch):
    fake = FakeAdvance()
    monkeypatch.setattr(watch, "advance", fake)
    monkeypatch.setattr(watch, "ADVANCE_EVERY_S", 0)
    return fake


def test_a_launch_whose_runs_are_all_done_ends_at_once(local_launch, capsys):
    end(local_launch.run("a"), "done")
    end(local_launch.run("b"), "done")

    assert watch.watch(local_launch) == 0
    assert "2 runs: 2 done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("phases", "hours", "code"),
    [
        (["done", "held"], 0.0, 0),
        (["done", "failed"], 0.0, 1),
        (["done", "lost"], 0.5, 1),
        (["done", "planned"], 1.25, 3),
    ],
)
def test_the_exit_code_tells_good_bad_and_budget(local_launch, phases, hours, code):
    states = [
        RunStatus(name=name, phase=phase, gpu_hours=hours) for name, phase in zip("ab", phases, strict=True)
    ]

    assert exit_code(local_launch, states) == code


def test_ctrl_c_leaves_with_130(local_launch, monkeypatch):
    begin(local_launch.run("a"))
    monkeypatch.setattr(watch.Watcher, "has_ended", lambda self, states: False)
    monkeypatch.setattr(time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))

    assert watch.watch(local_launch) == 130


def test_lines_tell_only_what_changed(slurm_launch, capsys):
    first = [RunStatus(name="a", phase="running"), RunStatus(name="b", phase="pending", detail="Priority")]
    second = [replace(first[0], step=5, stage="training 5/9"), first[1]]
    third = [RunStatus(name="a", phase="done"), replace(first[1], phase="running", detail="", attempts=2)]
    with watch._lines(slurm_launch) as show:
        show(first, "")
        capsys.readouterr()
        show(second, "")
        assert capsys.readouterr().out == ""
        show(third, "")
        show(third, "")

    told = [line[9:] for line in capsys.readouterr().out.splitlines()]
    assert told == ["a: done", "b: running (attempt 2)"]


def test_while_slurm_is_silent_one_line_says_so_and_no_run_changes(slurm_launch, capsys):
    known = [RunStatus(name="a", phase="running"), RunStatus(name="b", phase="pending")]
    unknown = [replace(state, phase="unknown") for state in known]
    with watch._lines(slurm_launch) as show:
        show(known, "")
        capsys.readouterr()
        for _ in range(3):
            show(unknown, "SLURM does not answer since 12:00:00")
        show(known, "")

    told = [line[9:] for line in capsys.readouterr().out.splitlines()]
    assert told == ["SLURM does not answer since 12:00:00", "all is well again"]


def test_an_outage_is_noted_from_its_beginning_and_ends_nothing(slurm_launch, slurm, advance, monkeypatch):
    watcher = Watcher(slurm_launch)
    watcher.look()
    slurm.append(None)
    watcher.look()
    note, now = watcher.note, time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    states = watcher.look()

    assert note.startswith("SLURM does not answer since ") and watcher.note == note
    assert not watcher.has_ended(states)
    assert [state.phase for state in states] == ["unknown", "unknown", "planned"]
    assert advance.calls == 1, "nothing is submitted while SLURM is silent"
    slurm.remove(None)
    assert [state.phase for state in watcher.look()] == ["running", "pending", "planned"]
    assert watcher.note == ""


def test_a_step_is_taken_only_when_something_may_start_and_not_too_often(
    slurm_launch, slurm, advance, monkeypatch
):
    monkeypatch.setattr(watch, "ADVANCE_EVERY_S", 15)
    watcher = Watcher(slurm_launch)
    for _ in range(4):
        watcher.look()
    assert advance.calls == 1, "c may start"

    slurm_launch.ledger.order(Orders(held={"c": "left out"}))
    watcher = Watcher(slurm_launch)
    watcher.look()
    assert advance.calls == 1


def test_a_launch_that_was_never_submitted_is_not_submitted_by_looking(project, write_spec, advance):
    (project / "slurm" / "test.yaml").write_text("executor: slurm\n")
    write_spec("name: s\njob: count\ncluster: test\nruns: {a: {}}")
    watcher = Watcher(planned_launch(project))

    assert watcher.has_ended(watcher.look())
    assert advance.calls == 0


def test_somebody_else_at_work_is_a_line_and_no_end(slurm_launch, slurm, advance):
    slurm[:] = [(0, "CD"), (1, "CD")]
    for name in ("a", "b"):
        end(slurm_launch.run(name), "done")
    advance.error = LockedError("in the hands of process 9")
    watcher = Watcher(slurm_launch)

    assert not watcher.has_ended(watcher.look())
    assert "in the hands of process 9" in watcher.note
    advance.error = None
    watcher.look()
    assert watcher.note == ""


def test_a_refusal_is_not_asked_for_again_and_the_watch_ends(slurm_launch, slurm, advance):
    slurm[:] = [(0, "CD"), (1, "CD")]
    for name in ("a", "b"):
        end(slurm_launch.run(name), "done")
    advance.error = PreflightError("sbatch refused: Invalid qos")
    watcher = Watcher(slurm_launch)

    assert watcher.has_ended(watcher.look())
    watcher.look()
    assert advance.calls == 1 and "Invalid qos" in watcher.note


def test_a_used_up_budget_ends_the_watch_once_nothing_is_at_work(slurm_launch, slurm, advance):
    advance.over_budget = True
    watcher = Watcher(slurm_launch)
    assert not watcher.has_ended(watcher.look()), "a runs and b waits"

    slurm[:] = [(0, "CD"), (1, "CD")]
    for name in ("a", "b"):
        end(slurm_launch.run(name), "done")

    assert watcher.has_ended(watcher.look())
    assert watcher.note == watch.BUDGET_NOTE


def test_without_slurm_a_pause_between_runs_is_no_end(local_launch, monkeypatch):
    end(local_launch.run("a"), "done")
    watcher = Watcher(local_launch)
    assert not watcher.has_ended(watcher.look())

    monkeypatch.setattr(watch, "LOCAL_PAUSE_S", -1)

    assert watcher.has_ended(watcher.look()), "its launcher is gone"


def test_a_refusal_of_one_run_does_not_end_the_watch_over_the_others(
    slurm_launch, slurm, advance, monkeypatch
):
    advance.states = [RunStatus(name="a", phase="running"), RunStatus(name="c", phase="planned")]
    advance.refusals = [PreflightError("sbatch refused: Invalid qos")]
    watcher = Watcher(slurm_launch)
    now = time.monotonic()
    watcher.look()
    watcher.look()
    assert advance.calls == 1, "SLURM has just said no"

    monkeypatch.setattr(time, "monotonic", lambda: now + watch.REFUSED_PAUSE_S + 1)

    assert not watcher.has_ended(watcher.look())
    assert advance.calls == 2 and "Invalid qos" in watcher.note


@pytest.mark.parametrize("error", [OSError(116, "Stale file handle"), RunError("x.json: damaged")])
def test_a_disk_that_stumbles_does_not_end_the_watch(slurm_launch, slurm, advance, error):
    advance.error = error
    watcher = Watcher(slurm_launch)

    assert not watcher.has_ended(watcher.look())
    assert "tried again in" in watcher.note
