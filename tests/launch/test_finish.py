"""The job that comes last goes on, waits, or preserves."""

from __future__ import annotations

import sys

import pytest
from folders import begin, end, planned_launch

from latentbridge.errors import LockedError, PreflightError, RunError, SchedulerError
from latentbridge.launch import finish as finish_module
from latentbridge.launch.advance import Advance
from latentbridge.launch.archive import verify
from latentbridge.launch.finish import go_on
from latentbridge.launch.orders import cancel
from latentbridge.launch.status import RunStatus
from latentbridge.rundir import read_json


@pytest.fixture
def launch(project, write_spec):
    """One run, for this machine."""
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {}}")
    return planned_launch(project)


@pytest.fixture
def steps(monkeypatch):
    """Set what one advance after another does; returns how many were taken."""
    monkeypatch.setattr(finish_module, "POLL_S", 0)
    taken = []

    def set_steps(*outcomes):
        left = list(outcomes)

        def advance(launch, patience_s):
            taken.append(patience_s)
            outcome = left.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(finish_module, "advance", advance)
        return taken

    return set_steps


def step(phase, left=0, **more):
    return Advance([RunStatus(name="a", phase=phase)], left=left, **more)


@pytest.fixture
def requeued(monkeypatch):
    """The calls by which this job asks to be started again, and what SLURM says to that."""
    asked, answers = [], [True]
    monkeypatch.setattr(finish_module, "requeue", lambda launch, **words: asked.append(words) or answers[-1])
    monkeypatch.setattr(finish_module, "UNKNOWN_PATIENCE_S", -1)
    monkeypatch.setattr(finish_module.signal, "signal", lambda number, handler: None)
    return asked, answers


def test_where_runs_are_at_work_another_job_like_it_waits_for_them(launch, steps):
    steps(step("running", is_followed=True))

    assert not go_on(launch)


def test_where_no_other_job_can_be_queued_this_one_comes_back(launch, steps, requeued):
    asked, answers = requeued
    for stuck in (step("running"), step("planned", left=3), step("unknown")):
        steps(stuck)
        assert not go_on(launch)
    assert asked == [{"needed": 1, "delay_min": 10}] * 3

    answers.append(False)
    steps(step("planned", left=3))
    with pytest.raises(SchedulerError, match="SLURM takes no job that goes on"):
        go_on(launch)


def test_after_a_no_slurm_is_not_asked_again_at_once(launch, steps, monkeypatch):
    pauses = []
    monkeypatch.setattr(finish_module.time, "sleep", pauses.append)
    refused = step("running")
    refused.warnings.append("no job waits for the end of these runs")
    steps(refused, step("running", is_full=True), step("running"), step("done"))

    assert go_on(launch)

    assert pauses == [30, 0, 30, 0, 0]


def test_what_nobody_can_tell_after_many_returns_is_left_to_people(launch, steps, requeued, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "12")
    unclear = step("unknown")
    unclear.states[0] = RunStatus(name="a", phase="unknown", detail="exit.json: damaged")
    steps(unclear)

    with pytest.raises(RunError, match=r"nobody can tell what became of a: exit\.json: damaged"):
        go_on(launch)


def test_a_run_that_left_the_queue_moments_ago_is_waited_for(launch, steps):
    taken = steps(step("unknown"), step("unknown"), step("done"))

    assert go_on(launch)
    assert len(taken) == 3


def test_an_outage_of_the_controller_is_sat_out_however_long(launch, steps, monkeypatch):
    monkeypatch.setattr(finish_module, "DISK_PATIENCE_S", -1)
    steps(SchedulerError("silent"), SchedulerError("silent"), step("failed"))
    assert go_on(launch)

    steps(RunError("x.json: damaged"))
    with pytest.raises(RunError):
        go_on(launch)


@pytest.mark.parametrize("error", [RunError("x.json: damaged"), OSError(116, "Stale file handle")])
def test_a_disk_that_stumbles_does_not_end_the_chain_of_jobs(launch, steps, error):
    steps(error, error, step("done"))

    assert go_on(launch)


def test_what_has_ended_is_preserved_even_if_slurm_refuses_the_rest(launch, steps, capsys):
    refused = step("done")
    refused.refusals.append(PreflightError("sbatch refused: no such account"))
    refused.warnings.append("nobody preserves")
    steps(refused)

    assert go_on(launch)
    assert capsys.readouterr().err == "sbatch refused: no such account\nnobody preserves\n"


def test_while_somebody_else_submits_nothing_is_preserved_behind_their_back(launch, steps):
    steps(LockedError("in the hands of process 1"))

    with pytest.raises(LockedError):
        go_on(launch)


def test_a_figure_that_fails_leaves_its_traceback_and_costs_neither_export_nor_archive(
    launch, monkeypatch, tmp_path, capsys
):
    from latentbridge.audit import figures, seed_files

    def broken(folder):
        raise ZeroDivisionError("of one figure")

    exported = []
    monkeypatch.setattr(figures, "draw", broken)
    monkeypatch.setattr(seed_files, "export", exported.append)

    archive = finish_module.finish(launch, tmp_path / "archives")

    assert "of one figure" in (archive / "figure_failed.txt").read_text()
    assert exported == [launch.path]
    assert not (archive / "export_failed.txt").exists()
    assert "not every figure could be made" in capsys.readouterr().err


def test_the_base_install_says_what_the_report_needs_and_archives_no_traceback(
    launch, monkeypatch, tmp_path, capsys
):
    for name in ("jinja2", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)

    archive = finish_module.finish(launch, tmp_path / "archives")

    assert not list(archive.glob("*_failed.txt")) and not list(launch.path.glob("*_failed.txt"))
    assert capsys.readouterr().err == ("no report: jinja2 is missing: pip install 'latentbridge[report]'\n")


def test_every_way_a_run_can_end_is_preserved_and_named(project, write_spec, tmp_path):
    write_spec(
        "name: s\njob: count\ncluster: local\nneeds: {d: [b]}\n"
        "runs: {a: {steps: 7}, b: {steps: 8}, c: {steps: 9}, d: {steps: 10}, e: {steps: 11}}"
    )
    launch = planned_launch(project)
    end(launch.run("a"), "done")
    end(launch.run("b"), "oom", took_s=36)
    cancel(launch, ["c"])
    begin(launch.run("e"), ago_s=4000)

    archive = finish_module.finish(launch, tmp_path / "archives")

    assert verify(archive) == []
    runs = {run["name"]: run for run in read_json(archive / "archive.json")["runs"]}
    assert {name: run["state"] for name, run in runs.items()} == {
        "a": "DONE",
        "b": "FAILED",
        "c": "cancelled",
        "d": "blocked",
        "e": "lost",
    }
    assert (runs["b"]["cause"], runs["b"]["attempts"], runs["b"]["gpu_hours"]) == ("oom", 1, 0.01)
    assert "b" in runs["d"]["cause"]
    assert "1 DONE, 1 FAILED, 1 blocked, 1 cancelled, 1 lost" in (archive.parent / "README.md").read_text()


def test_a_second_finish_changes_no_byte_of_the_archive(launch, tmp_path):
    end(launch.run("a"), "done")
    archive = finish_module.finish(launch, tmp_path / "archives")
    before = {path: path.stat() for path in archive.rglob("*")}

    finish_module.finish(launch, tmp_path / "archives")

    after = {path: path.stat() for path in archive.rglob("*")}
    assert {p: (s.st_ino, s.st_mtime_ns) for p, s in after.items()} == {
        p: (s.st_ino, s.st_mtime_ns) for p, s in before.items()
    }


def test_a_rule_of_the_spec_that_matches_nothing_is_said_and_costs_no_archive(
    project, write_spec, tmp_path, capsys
):
    write_spec(
        "name: s\njob: count\ncluster: local\nruns: {a: {}}\n"
        "preserve: {leave_out: ['a/DONE', 'a/never'], compress: ['*/sample*']}"
    )
    launch = planned_launch(project)
    end(launch.run("a"), "done")

    archive = finish_module.finish(launch, tmp_path / "archives")

    said = capsys.readouterr().err
    assert read_json(archive / "archive.json")["idle"] == ["a/never", "*/sample*"]
    assert "no file matched 'a/never'" in said
    assert "no file matched '*/sample*'" in said
    assert "a/DONE" not in said
