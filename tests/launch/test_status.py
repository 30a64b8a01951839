"""Markers first, then the queue, then accounting; silence is never failure."""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import asdict

import pytest
from folders import end
from recorded import limits_2205

from latentbridge.errors import ConfigError, SchedulerError
from latentbridge.launch import status as status_module
from latentbridge.launch.ledger import SKIPPED, Orders
from latentbridge.launch.plan import make_plan, write_launch
from latentbridge.launch.record import Launch
from latentbridge.launch.slurm.squeue import Job, Queue, Task
from latentbridge.launch.status import Monitor
from latentbridge.launch.submit import ANSWER_PATIENCE_S
from latentbridge.rundir import read_json, write_json

SPEC = """
name: s
job: count
cluster: test
runs: {a: {steps: 4}, b: {steps: 5}, c: {steps: 6}}
needs: {c: [b]}
"""


@pytest.fixture
def launch(project, write_spec):
    """A launch of three runs of which a and b are one array, submitted a minute ago; c needs b."""
    (project / "slurm" / "test.yaml").write_text("executor: slurm\nresources: {gpus_per_node: 1}\n")
    write_spec(SPEC)
    plan = make_plan("spec", cluster=None, settings=[], root=project)
    made = write_launch(plan, project / "runs", [], None)
    made.ledger.accepted(made.ledger.intend(["a", "b"]), "7")
    (submission,) = made.ledger
    record = asdict(submission) | {"created": time.time() - 60}
    write_json(made.ledger.folder / f"{submission.token}.json", record)
    return Launch(made.path)


@pytest.fixture
def queue(launch, monkeypatch):
    """Set what squeue says of the array, by index; None: SLURM is silent. Accounting knows nothing."""
    answer: dict[str, Queue | None] = {"now": Queue()}
    token = next(iter(launch.ledger)).token

    def read(uid):
        if answer["now"] is None:
            raise SchedulerError("silent")
        return answer["now"]

    def say(*tasks: Task | None, silent: bool = False):
        job = Job("7", {i: task for i, task in enumerate(tasks) if task})
        answer["now"] = None if silent else Queue({token: job} if job.tasks else {})

    monkeypatch.setattr(status_module, "read_queue", read)
    monkeypatch.setattr(status_module.sacct, "endings", lambda tasks: dict.fromkeys(tasks))
    return say


def phases(launch):
    return {state.name: state.phase for state in Monitor(launch).poll()}


RUNNING, WAITS = Task("R", "", "gpu01"), Task("PD", "Priority", "")


@pytest.mark.parametrize(
    ("short", "phase"),
    [("PD", "pending"), ("SE", "pending"), ("RH", "pending"), ("R", "running"), ("ST", "running")],
)
def test_any_job_that_squeue_lists_as_alive_is_alive(launch, queue, short, phase):
    queue(RUNNING, Task(short, "", ""))

    assert phases(launch)["b"] == phase


def test_another_task_of_the_array_says_nothing_of_this_one(launch, queue):
    queue(RUNNING, None)

    assert phases(launch) == {"a": "running", "b": "lost", "c": "waiting"}


def test_a_queue_that_does_not_answer_makes_no_run_lost(launch, queue):
    queue(silent=True)

    assert phases(launch)["a"] == "unknown"


def test_a_job_that_left_the_queue_moments_ago_is_not_lost_yet(launch, queue):
    attempt = launch.run("a").folder.new_attempt()
    queue(None, WAITS)
    assert phases(launch)["a"] == "unknown"

    old = time.time() - 30
    os.utime(attempt, (old, old))

    assert phases(launch)["a"] == "lost"


def test_done_stays_done_whatever_the_queue_says(launch, queue):
    launch.run("a").folder.mark("DONE", {})

    queue(RUNNING, RUNNING)
    assert phases(launch)["a"] == "done"
    queue(silent=True)
    assert phases(launch)["a"] == "done"


def test_a_requeued_run_is_pending_although_its_last_attempt_left_a_marker(launch, queue):
    launch.run("b").folder.mark("FAILED", {"message": "x"})
    queue(None, WAITS)

    assert phases(launch)["b"] == "pending"


def test_who_needs_a_failed_run_is_blocked_and_waits_again_once_it_is_brought_back(launch, queue):
    launch.run("b").folder.mark("FAILED", {"message": "x"})
    assert phases(launch)["c"] == "blocked"

    launch.ledger.order(Orders(forgiven={"b": 0}))
    queue(None, WAITS)

    assert phases(launch)["c"] == "waiting"


def test_a_settled_run_is_not_read_again_until_somebody_submits_it_again(launch, queue, monkeypatch):
    launch.run("a").folder.mark("FAILED", {"message": "x"})
    queue(None, WAITS)
    monitor = Monitor(launch)
    monitor.poll()
    read = []
    monkeypatch.setattr(Monitor, "_read", lambda self, run, *rest: read.append(run.name))

    monitor.poll()

    assert read == []


def test_what_squeue_still_remembers_of_an_ended_job_is_its_cause(launch, queue):
    queue(Task("OOM", "", ""), Task("NF", "", ""))

    causes = {state.name: (state.phase, state.cause) for state in Monitor(launch).poll()}

    assert causes["a"] == ("lost", "host_oom")
    assert causes["b"] == ("lost", "node_fail")


def test_accounting_is_asked_once_for_all_lost_runs_and_believed(launch, queue, monkeypatch):
    asked = []

    def endings(tasks):
        asked.append(sorted(tasks))
        return {"7_0": ("timeout", "accounting: TIMEOUT"), "7_1": ("node_fail", "accounting: NODE_FAIL")}

    monkeypatch.setattr(status_module.sacct, "endings", endings)
    queue(None, None)
    monitor = Monitor(launch)

    monitor.poll()
    states = monitor.poll()

    assert asked == [["7_0", "7_1"]]
    assert [state.cause for state in states] == ["timeout", "node_fail", None]


def test_asking_whether_a_run_is_locked_never_locks_it(launch):
    run = launch.run("a")
    run.folder.rank_lock.touch()
    with open(run.folder.rank_lock, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # somebody else asks at this moment
        assert not run.folder.is_locked()
        fcntl.flock(other, fcntl.LOCK_EX)
        assert run.folder.is_locked()


def work(launch, name):
    """An attempt of a run that says how far it is."""
    folder = launch.run(name).folder
    attempt = folder.new_attempt()
    write_json(attempt / "env.json", {"started": time.time() - 60, "nodes": "gpu01"})
    write_json(folder.progress_file(attempt), {"stage": "training", "done": 1, "total": 4})
    return folder, attempt


def test_a_run_at_work_is_read_again_only_when_it_says_something_new(launch, queue, monkeypatch):
    folder, attempt = work(launch, "a")
    queue(RUNNING, WAITS)
    monitor = Monitor(launch)
    before = monitor.poll()[0]
    read = []
    original = Monitor._read
    monkeypatch.setattr(
        Monitor, "_read", lambda self, run, *rest: read.append(run.name) or original(self, run, *rest)
    )

    quiet = monitor.poll()[0]
    assert read == []
    assert quiet.gpu_hours > before.gpu_hours, "its GPUs are held all the same"
    write_json(folder.progress_file(attempt), {"stage": "training", "done": 2, "total": 4})

    assert monitor.poll()[0].stage == "training 2/4"
    assert read == ["a"]


def test_a_marker_of_a_run_at_work_is_seen_at_once(launch, queue):
    folder, _ = work(launch, "a")
    queue(RUNNING, WAITS)
    monitor = Monitor(launch)
    assert monitor.poll()[0].phase == "running"

    folder.mark("DONE", {})

    assert monitor.poll()[0].phase == "done"


def test_a_submission_without_an_answer_is_unknown_for_a_while_and_then_to_be_repeated(launch, queue):
    intent = launch.ledger.intend(["c"])
    launch.run("b").folder.mark("DONE", {})
    assert phases(launch)["c"] == "unknown"

    record = asdict(intent) | {"created": time.time() - ANSWER_PATIENCE_S - 1}
    write_json(launch.ledger.folder / f"{intent.token}.json", record)

    assert phases(Launch(launch.path))["c"] == "planned"


@pytest.mark.parametrize("message", [SKIPPED, f"saved at update 7: {SKIPPED}"])
def test_a_run_that_was_skipped_when_its_job_began_or_saved_is_chosen_again_with_the_others(
    launch, queue, message
):
    folder = launch.run("a").folder
    launch.ledger.order(Orders(held={"a": SKIPPED}))
    folder.mark("STOPPED", {"cause": "cancelled", "message": message})
    assert phases(launch)["a"] == "held"

    launch.ledger.order(Orders())

    assert phases(launch)["a"] == "stopped"


def test_accounting_that_knows_nothing_yet_is_asked_again_later(launch, queue, monkeypatch):
    answers = [{}, {"7_0": None, "7_1": None}, {"7_0": ("timeout", "accounting: TIMEOUT"), "7_1": None}]
    monkeypatch.setattr(status_module.sacct, "endings", lambda tasks: answers.pop(0))
    monkeypatch.setattr(status_module, "ASK_AGAIN_S", 0)
    queue(None, None)
    monitor = Monitor(launch)

    causes = [monitor.poll()[0].cause for _ in range(3)]

    assert causes == [None, None, "timeout"]


def test_what_a_person_did_by_hand_in_a_run_that_was_never_submitted_counts(launch, queue):
    launch.run("b").folder.mark("DONE", {})
    launch.run("c").folder.mark("DONE", {})

    assert phases(launch)["c"] == "done"


def test_one_damaged_file_hides_no_other_run(launch, queue):
    (launch.run("a").folder.attempts / "1").mkdir(parents=True)
    (launch.run("a").folder.attempts / "1" / "exit.json").write_text("{")
    queue(RUNNING, RUNNING)

    a, b, _ = Monitor(launch).poll()

    assert (a.phase, a.job, b.phase) == ("unknown", "7_0", "running")
    assert "exit.json: cannot be read" in a.detail


def test_on_the_login_node_of_another_cluster_nothing_is_concluded(launch, queue, monkeypatch):
    write_json(launch.path / "ledger" / "limits.json", limits_2205().as_record())
    monkeypatch.setattr(status_module, "cluster_name", lambda: "other")

    with pytest.raises(ConfigError, match="its jobs are on cluster 'testcluster', and SLURM here"):
        Monitor(Launch(launch.path)).poll()


def test_an_attempt_belongs_to_the_submission_whose_token_it_bears_whatever_clocks_say(launch, queue):
    (submission,) = launch.ledger
    queue(None, None)
    end(launch.run("a"), "timeout", again=True, token=submission.token, began=1.0, ended=2.0)
    end(launch.run("b"), "timeout", again=True, token="another")

    states = {state.name: state.phase for state in Monitor(launch).poll()}

    assert (states["a"], states["b"]) == ("stopped", "unknown"), "b left the queue moments ago"


def test_a_start_that_left_the_run_to_another_process_is_no_failure(launch, queue):
    (submission,) = launch.ledger
    folder = launch.path / "slurm" / submission.token
    folder.mkdir(parents=True)
    (folder / "7_0.0.left").touch()
    (folder / "7_1_log.err").touch()
    queue(Task("F", "NonZeroExitCode", "gpu01"), Task("F", "NonZeroExitCode", "gpu01"))

    a, b, _ = Monitor(launch).poll()

    assert (a.phase, b.phase, b.cause) == ("stopped", "lost", "killed")


def test_what_a_later_version_adds_to_the_files_of_a_launch_is_passed_over(launch):
    (submission,) = launch.ledger
    file = launch.ledger.folder / f"{submission.token}.json"
    write_json(file, read_json(file) | {"news": 1})
    plan = read_json(launch.path / "plan.json")
    plan["cluster"] |= {"news": 1}
    plan["cluster"]["resources"] |= {"news": 1}
    plan["retry"] |= {"news": 1}
    write_json(launch.path / "plan.json", plan)
    write_json(launch.path / "ledger" / "orders.json", {"held": {"c": "cancelled"}, "news": 1})

    again = Launch(launch.path)

    assert [s.runs for s in again.ledger] == [("a", "b")]
    assert again.ledger.orders.held == {"c": "cancelled"}
    assert (again.cluster, again.retry) == (launch.cluster, launch.retry)
