"""Tables a person can read: one line a run, never more than asked for."""

from __future__ import annotations

import io

import pytest
from folders import end, planned_launch
from rich.console import Console

from latentbridge.launch.checks.rehearse import Report, Verdict
from latentbridge.launch.plan import make_plan
from latentbridge.launch.status import RunStatus, status
from latentbridge.launch.view import display
from latentbridge.launch.view.display import plan_table, rehearsal_table, status_table


def rendered(table, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue().splitlines()


@pytest.fixture
def launch(project, write_spec):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {}, b_of_a_long_name: {steps: 4}}")
    return planned_launch(project)


def test_a_run_takes_one_line_however_much_its_error_says(launch):
    end(launch.run("b_of_a_long_name"), "error", "ValueError: [red]first[/] " + "word " * 50 + "\nsecond")

    lines = rendered(status_table(launch, status(launch)))

    (line,) = [line for line in lines if "b_of_a_long_name" in line]
    assert "failed" in line and "error: ValueError: [red]first[/]" in line and line.rstrip().endswith("…")
    assert not any("second" in line for line in lines)
    assert max(map(len, lines)) <= 100


def test_columns_that_say_nothing_are_left_out(launch):
    header = rendered(status_table(launch, status(launch)))[2]

    assert header.split() == ["run", "state", "detail"]


def test_a_narrow_terminal_is_spared_job_and_nodes(launch, monkeypatch):
    states = [RunStatus(name="a", phase="pending", job="7_1", nodes="gpu01", detail="Priority")]
    for width, header in [(120, "run state job nodes detail"), (119, "run state detail")]:
        monkeypatch.setattr(display, "console", Console(width=width))
        assert " ".join(rendered(status_table(launch, states), width)[2].split()) == header


def many(**phases):
    return [RunStatus(name="a", phase=phase) for phase, count in phases.items() for _ in range(count)]


def test_a_table_of_many_runs_shows_what_matters_and_counts_the_rest(launch):
    lines = rendered(status_table(launch, many(done=190, failed=3, pending=57)))

    assert len([line for line in lines if line.startswith(" a ")]) == 3
    assert "247 more; --json for all" in lines
    assert "250 runs: 190 done, 57 pending, 3 failed" in lines


def test_a_table_of_200_runs_is_whole_and_in_the_order_of_the_spec(launch):
    lines = rendered(status_table(launch, many(done=150, failed=50)))

    assert [line.split()[1] for line in lines if line.startswith(" a ")] == ["done"] * 150 + ["failed"] * 50


@pytest.mark.parametrize("height", [11, 24])
def test_a_table_fits_the_height_it_is_given(launch, height):
    lines = rendered(status_table(launch, many(done=30, running=5, failed=1), height))

    assert len(lines) <= height
    shown = [line.split()[1] for line in lines if line.startswith(" a ")]
    assert shown[0] == "failed" and shown[1] == "running"


def test_a_plan_of_many_runs_is_told_in_groups(project, write_spec):
    write_spec(
        "name: s\njob: count\ncluster: local\ngrid: {steps: [" + ", ".join(map(str, range(201))) + "]}"
    )
    plan = make_plan("spec", cluster=None, settings=[], root=project)

    lines = rendered(plan_table(plan), width=150)

    assert len(lines) < 12
    assert any("steps=0, 1, 2, 3, 4, 5, 6, 7 and 193 more" in line for line in lines)


def test_a_plan_tells_what_each_run_and_all_together_may_cost(project, write_spec):
    write_spec("""
        name: s
        job: count
        cluster: local
        budget_gpu_hours: 2
        runs: {a: {}, b: {steps: 4, resources: {nodes: 2, gpus_per_node: 3}}}
        resources: {timeout_min: 30}
        """)
    plan = make_plan("spec", cluster=None, settings=[], root=project)

    lines = rendered(plan_table(plan), width=150)

    # half an hour of 1 and of 2 x 3 GPUs
    assert [line.split()[5] for line in lines if line.startswith((" a ", " b "))] == ["0.5", "3"]
    assert lines[-1].startswith("at most 3.5 GPU-hours") and "budget_gpu_hours 2 stops it" in lines[-1]


def test_what_a_check_showed_of_some_runs_is_not_said_of_all():
    routers = [("static", "no layer is routed"), ("routed_a", "taught"), ("routed_b", "taught")]
    gradients = [(f"run_{i}", f"{i} weights") for i in (3, 5, 7, 11)]
    verdicts = [Verdict("routers", (run,), True, text) for run, text in routers]
    verdicts += [
        Verdict("gradients", (run, f"{run}_again")[: i + 1], True, text)
        for i, (run, text) in enumerate(gradients)
    ]

    lines = [line.split() for line in rendered(rehearsal_table(Report(tuple(verdicts), (), 2.0)))]

    assert [line for line in lines if "weights" in line or "other" in line] == [
        ["gradients", "2", "5", "weights"],
        ["2", "7", "weights"],
        ["3", "2", "other", "answers"],
    ]
    assert ["routers", "2", "taught"] in lines and ["1", "no", "layer", "is", "routed"] in lines
