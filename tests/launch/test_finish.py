"""The job that comes last goes on, waits, or preserves."""

from __future__ import annotations

import pytest
from folders import planned_launch

from latentbridge.errors import LockedError, PreflightError, RunError, SchedulerError
from latentbridge.launch import finish as finish_module
from latentbridge.launch.advance import Advance
from latentbridge.launch.finish import go_on
from latentbridge.launch.status import RunStatus


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


def step(phase, left=0):
    return Advance([RunStatus(name="a", phase=phase)], left=left)


def test_where_runs_are_at_work_another_job_like_it_waits_for_them(launch, steps):
    steps(step("running"))

    assert not go_on(launch)


def test_a_run_that_left_the_queue_moments_ago_is_waited_for(launch, steps):
    taken = steps(step("unknown"), step("unknown"), step("done"))

    assert go_on(launch)
    assert len(taken) == 3


def test_an_outage_of_the_controller_is_sat_out(launch, steps, monkeypatch):
    steps(SchedulerError("silent"), SchedulerError("silent"), step("failed"))
    assert go_on(launch)

    monkeypatch.setattr(finish_module, "SILENCE_PATIENCE_S", -1)
    steps(SchedulerError("silent"))
    with pytest.raises(SchedulerError):
        go_on(launch)


@pytest.mark.parametrize("error", [RunError("x.json: damaged"), OSError(116, "Stale file handle")])
def test_a_disk_that_stumbles_does_not_end_the_chain_of_jobs(launch, steps, error):
    steps(error, error, step("done"))

    assert go_on(launch)


def test_what_has_ended_is_preserved_even_if_slurm_refuses_the_rest(launch, steps, capsys):
    refused = step("done")
    refused.refusals.append(PreflightError("sbatch refused: no such account"))
    refused.warning = "nobody preserves"
    steps(refused)

    assert go_on(launch)
    assert capsys.readouterr().err == "sbatch refused: no such account\nnobody preserves\n"


def test_while_somebody_else_submits_nothing_is_preserved_behind_their_back(launch, steps):
    steps(LockedError("in the hands of process 1"))

    with pytest.raises(LockedError):
        go_on(launch)
