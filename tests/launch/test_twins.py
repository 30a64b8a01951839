"""One experiment, one computation: what an earlier launch has of it is taken over, or waited for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from folders import begin, end
from launching import steps_of, wait_for

from latentbridge.errors import SchedulerError
from latentbridge.launch import status as status_module
from latentbridge.launch import twins as twins_module
from latentbridge.launch.advance import is_moving
from latentbridge.launch.ledger import SKIPPED, Orders
from latentbridge.launch.plan import make_plan, write_launch
from latentbridge.launch.slurm.squeue import Job, Queue, Task
from latentbridge.launch.status import Monitor
from latentbridge.launch.twins import find_twins, take_over
from latentbridge.launch.view.explain import explain
from latentbridge.rundir import hold_lock, read_json

REPOSITORY = Path(__file__).parents[2]
SPEC = "name: s\njob: count\ncluster: local\nruns: {{a: {{steps: 4}}, b: {{steps: {b}}}}}\n"
SLURM_SPEC = SPEC.replace("local", "test")


@pytest.fixture
def make(project, write_spec):
    """Make a launch of a spec, as launch.py does, with nothing started; a plan's launch folder is new."""
    (project / "slurm" / "test.yaml").write_text("executor: slurm\nresources: {gpus_per_node: 1}\n")

    def launch(text):
        write_spec(text)
        plan = make_plan("spec", cluster=None, settings=[], root=project)
        found, _ = find_twins(plan, project / "runs")
        return write_launch(plan, project / "runs", ["launch.py", "spec"], None, found)

    return launch


def twins_of(launch):
    return {run["name"]: run["twins"] for run in launch.plan["runs"]}


def phases(launch):
    return {state.name: state.phase for state in Monitor(launch).poll()}


def launch_here(*words):
    command = [sys.executable, str(REPOSITORY / "launch.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_after_one_cell_was_changed_only_that_one_is_computed(write_spec, project):
    write_spec(SPEC.format(b=5))
    launch_here("spec")
    (first,) = (project / "runs").glob("s_*")
    write_spec(SPEC.format(b=6))

    changed = launch_here("spec")

    assert changed.returncode == 0, changed.stderr
    assert f"1 of its runs are the same experiments as in {first.name}" in changed.stdout
    (second,) = [path for path in (project / "runs").glob("s_*") if path != first]
    assert not (second / "a" / "attempts").exists()
    assert read_json(second / "a" / "DONE") == read_json(first / "a" / "DONE") | {
        "taken_from": f"{first.name}/a"
    }
    assert steps_of(second / "a") == [1, 2, 3, 4]
    assert steps_of(second / "b") == [1, 2, 3, 4, 5, 6]
    assert read_json(second / "a" / "manifest.json")["launch"] == first.name, "whose code computed it"
    assert (project / "preserved_data" / second.name / "a" / "train.jsonl").exists()
    again = launch_here("spec")
    assert "nothing to run" in again.stdout


def test_a_new_launch_computes_everything_itself(write_spec, project):
    write_spec(SPEC.format(b=5))
    launch_here("spec")
    launch_here("spec", "--new")

    attempts = [len(list(path.iterdir())) for path in project.glob("runs/s_*/*/attempts")]
    assert attempts == [1, 1, 1, 1]


def test_what_other_code_or_other_packages_computed_is_computed_again_and_counted(make, project, monkeypatch):
    first = make(SPEC.format(b=5))
    end(first.run("a"), "done")

    def twins():
        return find_twins(make_plan("spec", cluster=None, settings=[], root=project), project / "runs")

    assert twins() == ({"a": [f"{first.name}/a"], "b": [f"{first.name}/b"]}, 0)
    with monkeypatch.context() as patch:
        patch.setattr(twins_module, "versions", lambda: {"torch": "3.0"})
        assert twins() == ({}, 1)
    (project / "jobs" / "count.py").write_text((project / "jobs" / "count.py").read_text() + "\nX = 1\n")
    assert twins() == ({}, 1)


def test_launches_of_other_names_are_not_looked_at(make, project):
    first = make(SPEC.format(b=5).replace("name: s", "name: s_2"))
    end(first.run("a"), "done")

    assert twins_of(make(SPEC.format(b=5))) == {"a": [], "b": []}


def test_a_run_is_no_twin_where_a_run_that_it_needs_has_none(make):
    spec = (
        "name: s\njob: count\ncluster: local\nruns: {a: {steps: %d}, b: {steps: 5}, c: {}}\nneeds: {b: [a]}"
    )
    first = make(spec % 4)

    assert twins_of(make(spec % 6)) == {"a": [], "b": [], "c": [f"{first.name}/c"]}


def test_a_twin_that_failed_is_run_here_and_one_of_several_that_is_done_is_taken(make):
    first = make(SPEC.format(b=5))
    end(first.run("a"), "error")
    end(first.run("b"), "error")
    second = make(SPEC.format(b=6))
    assert phases(second) == {"a": "planned", "b": "planned"}
    end(second.run("a"), "done")

    third = make(SPEC.format(b=5))

    assert twins_of(third)["a"] == [f"{first.name}/a", f"{second.name}/a"]
    assert phases(third) == {"a": "waiting", "b": "planned"}
    assert take_over(third.run("a"))
    assert third.run("a").folder.read_marker()["taken_from"] == f"{second.name}/a"
    assert not take_over(third.run("b"))


def test_while_its_twin_is_at_work_a_run_waits_and_what_needs_it_waits_too(make, monkeypatch):
    spec = SLURM_SPEC.format(b=5) + "needs: {b: [a]}\n"
    first = make(spec)
    token = first.ledger.accepted(first.ledger.intend(["a"]), "7").token
    begin(first.run("a"))
    second = make(spec.replace("5", "6"))
    monitor = Monitor(second)

    def look(state):
        jobs = {token: Job("7", {0: Task(state, "", "gpu01")})} if state else {}
        states = {s.name: s for s in monitor.poll(Queue(jobs))}
        return states["a"].phase, states["b"].phase, states["a"].twin, is_moving(list(states.values()))

    place = f"{first.name}/a"
    assert look("R") == look("PD") == ("waiting", "waiting", place, True)
    pending = Queue({token: Job("7", {0: Task("PD", "", "")})})
    monkeypatch.setattr(status_module, "read_queue", lambda uid: pending)
    assert f"{place}, the same experiment, is pending" in explain(second, "a")[1]
    # its job has gone, and nothing of its launch is left in the queue that would bring it back
    first.run("a").folder.mark("STOPPED", {"cause": "timeout"})
    assert look(None) == ("planned", "waiting", None, False)


def test_a_run_whose_twin_is_done_waits_for_the_next_step_to_take_it_over(make):
    first = make(SLURM_SPEC.format(b=5))
    end(first.run("a"), "done")
    second = make(SLURM_SPEC.format(b=6))

    monitor = Monitor(second)

    (a, b) = monitor.poll(Queue())

    assert (a.phase, a.twin, b.phase) == ("waiting", f"{first.name}/a", "planned")
    assert is_moving([a]), "so that nothing is preserved without it"
    assert take_over(second.run("a"))
    assert [state.phase for state in monitor.poll(Queue())] == ["done", "planned"]


def test_while_slurm_is_silent_nobody_knows_whether_a_twin_is_at_work(make, monkeypatch):
    first = make(SLURM_SPEC.format(b=5))
    begin(first.run("a"))
    second = make(SLURM_SPEC.format(b=6))

    def silent(uid):
        raise SchedulerError("silent")

    monkeypatch.setattr(status_module, "read_queue", silent)

    assert phases(second) == {"a": "unknown", "b": "planned"}


def test_a_run_that_has_begun_or_is_held_does_not_look_at_its_twin(make):
    first = make(SPEC.format(b=5))
    for name in ("a", "b"):
        end(first.run(name), "done")
    second = make(SPEC.format(b=5))
    end(second.run("a"), "error")
    second.ledger.order(Orders(held={"b": SKIPPED}))

    assert phases(second) == {"a": "failed", "b": "held"}


def test_the_folder_of_an_earlier_launch_may_be_removed(make, project):
    first = make(SPEC.format(b=5))
    end(first.run("a"), "done")
    second = make(SPEC.format(b=6))
    first.path.rename(project / "elsewhere")

    assert phases(second) == {"a": "planned", "b": "planned"}


def test_a_take_over_that_was_killed_is_done_again_and_shares_weights_but_no_records(make, monkeypatch):
    first = make(SPEC.format(b=5))
    source = first.run("a").folder
    end(first.run("a"), "done")
    source.train_log.write_text('{"step": 4, "loss": 0.25}\n')
    (source.checkpoints / "best-4-x").mkdir(parents=True)
    (source.checkpoints / "best-4-x" / "model.safetensors").write_bytes(b"weights")
    (source.checkpoints / "best").symlink_to("best-4-x")
    run = make(SPEC.format(b=6)).run("a")

    def die():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(twins_module, "sync_disk", lambda folder: die())
        take_over(run)
    assert run.folder.state is None

    assert take_over(run)

    copied, own = run.folder.checkpoints / "best" / "model.safetensors", source.checkpoints / "best-4-x"
    assert copied.stat().st_ino == (own / "model.safetensors").stat().st_ino
    assert run.folder.train_log.read_text() == source.train_log.read_text()
    assert run.folder.train_log.stat().st_ino != source.train_log.stat().st_ino
    assert sorted(path.name for path in run.folder.path.iterdir()) == [
        "DONE",
        "checkpoints",
        "config.yaml",
        "manifest.json",
        "train.jsonl",
    ]
    assert run.folder.read_manifest()["name"] == "a"


def test_without_slurm_a_run_waits_for_the_process_that_works_on_its_twin(make, project, write_spec):
    first = make(SPEC.format(b=5))
    lock = hold_lock(first.run("a").folder.worker_lock, 1)
    second = make(SPEC.format(b=6))
    assert phases(second) == {"a": "waiting", "b": "planned"}
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "launch.py"), "spec"], stdout=subprocess.PIPE, text=True
    )
    b = second.run("b").folder
    wait_for(lambda: b.is_done)
    assert process.poll() is None
    assert not second.run("a").folder.list_attempts()

    first.run("a").folder.mark("DONE", {"steps": 4})
    lock.close()

    process.communicate(timeout=60)
    assert process.returncode == 0
    assert second.run("a").folder.read_marker()["taken_from"] == f"{first.name}/a"


def test_without_slurm_a_twin_that_is_damaged_is_computed_afresh(make, write_spec):
    first = make(SPEC.format(b=5))
    for name in ("a", "b"):
        end(first.run(name), "done")
    first.run("a").folder.manifest.write_text("{")
    write_spec(SPEC.format(b=6))

    done = launch_here("spec")

    assert f"a is computed afresh: {first.path}/a is damaged" in done.stderr
    (second,) = [path for path in first.path.parent.glob("s_*") if path != first.path]
    assert steps_of(second / "a") == [1, 2, 3, 4]
