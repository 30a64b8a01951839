"""Why runs ended, on a cluster without accounting that forgets every job after seconds."""

from __future__ import annotations

import os
import signal
import time

import pytest
from launching import wait_for
from mishaps import Lab, causes, counted, is_done

from latentbridge.rundir import read_json


@pytest.fixture
def lab(cluster_without_accounting, project):
    """A project on a cluster of one node that remembers jobs for 5 s; all tests find the node alive."""
    made = Lab(cluster_without_accounting, project)
    yield made
    made.tidy_up()


def is_forgotten(lab, run):
    return not lab.job(run)


@pytest.mark.repeats(3)
def test_six_ends_are_told_apart_though_slurm_has_forgotten_the_jobs(lab, record_property):
    folder = lab.launch(
        """
        cancelled: {steps: 900, step_s: 0.2}, scancelled: {steps: 901, step_s: 0.2},
        killed: {steps: 902, step_s: 0.2}, outgrown: {mishap: memory, resources.mem_gb: 1},
        exited: {mishap: exit}, done: {steps: 4},
        """,
        profile="max_parallel: 6",
        **{"killed": 0, "error": 0, "oom": 0},
    )
    wait_for(lambda: all(counted(folder / name) for name in ("cancelled", "scancelled", "killed")))

    struck = time.monotonic()
    assert lab.command("cancel", folder / "cancelled").returncode == 0
    lab.cluster.run("scancel", lab.state(folder / "scancelled")["job"])
    os.kill(read_json(folder / "killed" / "attempts" / "1" / "env.json")["pid"], signal.SIGKILL)
    for name in ("cancelled", "scancelled", "killed"):
        wait_for(lambda name=name: causes(folder / name))
        record_property(f"{name}: cause known after, s", round(time.monotonic() - struck, 1))

    ends = {
        "cancelled": ["cancelled"],
        "scancelled": ["cancelled"],
        "killed": ["killed"],
        "outgrown": ["host_oom"],
        "exited": ["error"],
        "done": ["done"],
    }
    wait_for(lambda: all(causes(folder / name) for name in ends))
    wait_for(lambda: not lab.cluster.run("squeue", "--noheader").stdout.strip())
    wait_for(lambda: all(is_forgotten(lab, folder / name) for name in ends))
    assert {name: causes(folder / name) for name in ends} == ends
    assert {name: state["cause"] for name, state in lab.states(folder).items()} == {
        name: cause for name, (cause,) in ends.items()
    }
    assert {state["phase"] for state in lab.states(folder).values()} == {"cancelled", "failed", "done"}


@pytest.mark.torture
@pytest.mark.repeats(3)
@pytest.mark.parametrize("requeue", [True, False])
def test_a_run_whose_only_node_died_goes_on_when_it_is_back(lab, requeue, record_property):
    run = lab.launch("a: {steps: 30, step_s: 0.3}") / "a"
    if not requeue:
        lab.forbid_requeue(run)
    wait_for(lambda: counted(run) > 2)

    lab.crash("gpu01")

    wait_for(lambda: lab.is_down("gpu01"))
    if not requeue:
        noticed = time.monotonic()
        wait_for(lambda: lab.state(run)["cause"] == "node_fail")
        after_s = round(time.monotonic() - noticed, 1)
        record_property("node death: cause shown after SLURM noticed it, s", after_s)
        assert after_s < 15
        wait_for(lambda: is_forgotten(lab, run))
        state = lab.state(run)
        assert (state["phase"], state["cause"]) == ("lost", "node_fail")
    lab.restore()
    wait_for(lambda: is_done(run))
    assert causes(run) == ["node_fail", "done"]
