"""GPU-hours before, during and after."""

from __future__ import annotations

import os
import time

import pytest
from folders import begin, end, planned_launch

from latentbridge.launch.account import SILENCE_S, at_most, gpu_hours, over_budget, spent
from latentbridge.launch.cluster import Resources
from latentbridge.rundir import read_json, write_json

SPEC = """
name: s
job: count
cluster: local
budget_gpu_hours: 0.5
runs: {a: {resources: {nodes: 2, gpus_per_node: 3}}, b: {steps: 5, resources.gpus_per_node: 1}}
"""


@pytest.fixture
def launch(project, write_spec):
    """Two runs, of six ranks and of one."""
    write_spec(SPEC)
    return planned_launch(project)


def test_a_plan_costs_at_most_all_its_gpus_for_all_the_time_they_are_asked_for():
    requests = [
        Resources(nodes=2, gpus_per_node=3, timeout_min=30),
        Resources(gpus_per_node=None, timeout_min=90),
    ]

    assert at_most(requests) == 3 + 1.5


def test_failed_attempts_count_like_others(launch):
    end(launch.run("a"), "error", took_s=60)
    end(launch.run("a"), "done", took_s=120)

    assert gpu_hours(launch.run("a")) == pytest.approx(6 * 180 / 3600)


def test_gpus_count_until_the_batch_shell_let_go_of_them(launch):
    ending = end(launch.run("b"), "done", took_s=60) / "exit.json"
    record = read_json(ending)

    write_json(ending, record | {"released": record["ended"] + 3})

    assert gpu_hours(launch.run("b")) == pytest.approx(63 / 3600)


def test_an_attempt_at_work_counts_until_now_and_a_silent_one_until_its_last_sign(launch):
    begin(launch.run("a"), ago_s=600)
    silent = begin(launch.run("b"), ago_s=600)
    then = time.time() - SILENCE_S - 60
    for path in (*silent.iterdir(), silent):
        os.utime(path, (then, then))

    assert gpu_hours(launch.run("a")) == pytest.approx(6 * 600 / 3600, rel=0.01)
    assert gpu_hours(launch.run("b")) == pytest.approx((600 - SILENCE_S - 60) / 3600, rel=0.01)


def test_the_budget_is_used_up_by_all_runs_together(launch):
    end(launch.run("a"), "done", took_s=240)
    assert (spent(launch), over_budget(launch)) == (pytest.approx(0.4), False)

    end(launch.run("b"), "error", took_s=360)

    assert (spent(launch), over_budget(launch)) == (pytest.approx(0.5), True)
