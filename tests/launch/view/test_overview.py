"""A launch in a few lines: the right runs first, sums that can be checked by hand."""

from __future__ import annotations

import pytest
from folders import begin, end, planned_launch

from latentbridge.launch.node.nodes import report_bad
from latentbridge.launch.plan import make_plan
from latentbridge.launch.status import RunStatus, status
from latentbridge.launch.view.overview import by_interest, in_words, plan_cost, plan_groups, shortened, totals

SPEC = """
    name: s
    job: count
    cluster: local
    budget_gpu_hours: 5
    runs: {a: {}, b: {steps: 4}, c: {steps: 5}}
    """


@pytest.fixture
def launch(project, write_spec):
    write_spec(SPEC)
    return planned_launch(project)


def test_failed_runs_come_first_and_equals_stay_in_the_order_of_the_spec():
    phases = ["done", "running", "failed", "pending", "lost", "failed"]
    states = [RunStatus(name=f"r{i}", phase=phase) for i, phase in enumerate(phases)]

    assert [state.name for state in by_interest(states)] == ["r2", "r5", "r4", "r1", "r3", "r0"]


def test_only_attempts_that_failed_count_as_lost(launch):
    end(launch.run("a"), "error", took_s=1800, gpus=2, again=True)
    end(launch.run("a"), "preempted", took_s=900, gpus=2, again=True)
    end(launch.run("a"), "done", took_s=3600, gpus=2)
    end(launch.run("b"), "hang", took_s=900, gpus=1)

    # 2 GPUs x 0.5 h + 1 GPU x 0.25 h; used is counted by what the runs ask for, one rank each
    assert totals(launch, status(launch))[:2] == [
        "3 runs: 1 done, 1 planned, 1 failed",
        "GPU-hours: 2.00 of 5 used, 1.25 of them by attempts that failed",
    ]


def test_what_was_lost_is_told_anew_after_another_attempt(launch):
    end(launch.run("a"), "error", took_s=3600, again=True)
    assert "1.00 of them" in totals(launch, status(launch))[1]

    end(launch.run("a"), "error", took_s=1800)

    assert "1.50 of them" in totals(launch, status(launch))[1]


def test_halved_micro_batches_and_nodes_left_out_are_told(launch, project):
    end(launch.run("b"), "device_oom", again=True)
    begin(launch.run("b"))
    run = launch.run("b").folder
    run.write_manifest(run.read_manifest() | {"backoff": 1})
    report_bad(project / "runs", ["gpu07"], "SLURM lost it", "a", hours=2)

    lines = totals(launch, status(launch))

    assert lines[2] == "micro-batch halved for want of memory: b"
    assert lines[3].startswith("gpu07 is left out until ") and lines[3].endswith(": SLURM lost it")


def test_a_state_in_words_is_one_line():
    failed = RunStatus(name="a", phase="failed", cause="error", detail="ValueError: first\n  second")
    again = RunStatus(name="b", phase="pending", cause="timeout", detail="Priority")

    assert in_words(failed) == "error: ValueError: first second"
    assert in_words(again) == "Priority, after timeout"
    assert in_words(RunStatus(name="c", phase="done", cause="done")) == ""


def test_a_long_list_ends_in_a_count():
    assert shortened(["a", "b", "c"], most=3) == "a, b, c"
    assert shortened(["a", "b", "c", "d", "e"], most=3) == "a, b, c and 2 more"


def test_a_plan_costs_at_most_all_the_time_it_asks_for(write_spec, project):
    text = "name: s\njob: count\ncluster: local\n{}grid: {{steps: [3, 4, 5]}}\n"
    text += "resources: {{gpus_per_node: 2, timeout_min: 30}}\n"
    for budget, said in [("", ""), ("2", "stops it before that"), ("3", "allows that")]:
        write_spec(text.format(f"budget_gpu_hours: {budget}\n" if budget else ""))
        plan = make_plan("spec", cluster=None, settings=[], root=project)

        # 3 runs x 2 GPUs x 0.5 h
        assert plan_cost(plan).startswith("at most 3 GPU-hours")
        assert plan_cost(plan).endswith(said)


def test_a_large_plan_is_told_by_what_varies(write_spec, project):
    write_spec("""
        name: s
        job: count
        cluster: local
        runs: {plain: {}, wide: {steps: 9, resources: {nodes: 2}}}
        seeds: [1, 2, 3]
        """)
    plan = make_plan("spec", cluster=None, settings=[], root=project)

    assert plan_groups(plan) == [("3", "1 x 1", ""), ("3", "2 x 1", "steps=9; resources.nodes=2")]


def test_a_launch_that_has_ended_and_was_not_preserved_says_so(launch, project):
    for name in ("a", "b", "c"):
        end(launch.run(name), "done")
    assert "not preserved yet" in totals(launch, status(launch))[-1]

    (project / "preserved_data" / launch.name).mkdir(parents=True)

    assert "not preserved" not in totals(launch, status(launch))[-1]
