"""One step: what nobody works on is submitted, within limits, whatever else goes wrong."""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from folders import begin, end, planned_launch

from latentbridge.errors import PreflightError, SchedulerError
from latentbridge.launch import advance as advance_module
from latentbridge.launch import launcher, slurm, submit
from latentbridge.launch import status as status_module
from latentbridge.launch.advance import advance, finish_waits, may_free_something
from latentbridge.launch.ledger import NO_ANSWER, Orders
from latentbridge.launch.node.nodes import bad_nodes
from latentbridge.launch.orders import bring_back, cancel
from latentbridge.launch.plan import make_plan, write_launch
from latentbridge.launch.record import Launch
from latentbridge.launch.slurm.squeue import Job, Queue, Task
from latentbridge.launch.status import Monitor
from latentbridge.rundir import hold_lock, read_json, write_json

SPEC = """
name: s
job: count
cluster: test
seeds: [1, 2, 3, 4, 5, 6, 7]
runs: {a: {}}
"""
RUNNING, WAITING, ENDED = Task("R", "", "gpu01"), Task("PD", "Priority", ""), Task("CA", "", "")


class Slurm:
    """Takes what is submitted, and shows it in its queue; `refuse` says no to scripts that contain a word."""

    def __init__(self, monkeypatch):
        self.queue = Queue()
        self.silent = False
        self.refuse: dict[str, str] = {}
        self.calls: list[tuple[str, ...]] = []
        monkeypatch.setattr(slurm, "call", self.call)
        monkeypatch.setattr(status_module, "read_queue", self.read_queue)
        monkeypatch.setattr(submit, "read_queue", self.read_queue)
        monkeypatch.setattr(status_module.sacct, "endings", lambda tasks: {})

    def read_queue(self, uid=None):
        if self.silent:
            raise SchedulerError("silent")
        return self.queue

    def call(self, *argv, patience_s=0):
        self.calls.append(argv)
        if argv[0] != "sbatch":
            return subprocess.CompletedProcess(argv, 0, "", "")
        text = Path(argv[1]).read_text()
        for word, said in self.refuse.items():
            if word in text:
                return subprocess.CompletedProcess(argv, 1, "", f"sbatch: error: {said}")
        number = str(100 + len(self.calls))
        assert (Path(argv[1]).parents[2] / "plan.json").exists()
        token = Path(argv[1]).parent.name
        array = re.search(r"--array=0-(\d+)", text)
        count = int(array.group(1)) + 1 if array else 1
        self.queue.jobs[token] = Job(number, dict.fromkeys(range(count), WAITING))
        self.queue.total += count
        return subprocess.CompletedProcess(argv, 0, f"Submitted batch job {number}\n", "")

    @property
    def num_sbatch(self):
        return len([argv for argv in self.calls if argv[0] == "sbatch"])


@pytest.fixture
def cluster(monkeypatch):
    return Slurm(monkeypatch)


@pytest.fixture
def make_launch(project, write_spec):
    """A planned launch of a spec under a profile with further lines."""

    def make(spec=SPEC, profile=""):
        base = "executor: slurm\nresources: {gpus_per_node: 1}\n"
        (project / "slurm" / "test.yaml").write_text(base + profile)
        write_spec(spec)
        return planned_launch(project)

    return make


def sizes(launch):
    return [(len(s.runs), s.parallel) for s in launch.ledger if s.runs != (submit.FINISH,)]


def test_a_second_step_submits_nothing_more(make_launch, cluster):
    launch = make_launch(profile="max_parallel: 3\n")

    first, second = advance(launch), advance(Launch(launch.path))

    assert (first.num_submitted, second.num_submitted) == (7, 0)
    assert sizes(launch) == [(7, 3)]
    assert cluster.num_sbatch == 2, "the array, and the job that comes last"


def test_no_more_is_queued_than_the_limit_with_a_place_for_the_finishing_job(make_launch, cluster):
    launch = make_launch(profile="max_parallel: 2\nsubmit_limit: 5\n")

    step = advance(launch)

    assert sizes(launch) == [(4, 2)]
    assert (step.left, cluster.queue.total) == (3, 5)
    assert not step.has_ended


def test_a_queue_fuller_than_told_halves_the_array_until_it_fits(make_launch, cluster):
    launch = make_launch(profile="max_parallel: 9\n")
    cluster.refuse = {"--array=0-6": "QOSMaxSubmitJobPerUserLimit"}

    step = advance(launch)

    assert sizes(launch)[1:] == [(3, 3)]
    assert step.left == 4


def test_capacity_that_others_no_longer_use_goes_to_an_array_that_waits(make_launch, cluster):
    launch = make_launch(profile="max_parallel: 3\n")
    submission = launch.ledger.intend([f"a-s{seed}" for seed in range(1, 8)], parallel=1)
    launch.ledger.accepted(submission, "9")
    cluster.queue.jobs[submission.token] = Job("9", {0: RUNNING, **dict.fromkeys(range(1, 7), WAITING)})

    advance(launch)

    assert ("scontrol", "update", "JobId=9", "ArrayTaskThrottle=3") in cluster.calls
    assert launch.ledger.read(submission.token).parallel == 3


def test_a_refused_request_stops_neither_the_others_nor_the_finishing_job(make_launch, cluster):
    launch = make_launch(
        "name: s\njob: count\ncluster: test\nruns: {big: {resources.nodes: 2}, small: {steps: 5}}"
    )
    cluster.refuse = {"--nodes=2": "Batch job submission failed: Node count specification invalid"}

    step = advance(launch)

    assert "Node count" in str(step.refusals[0])
    assert {run for s in launch.ledger if s.job_id for run in s.runs} == {"small", submit.FINISH}


def test_while_slurm_is_silent_nothing_is_submitted(make_launch, cluster):
    launch = make_launch()
    advance(launch)
    cluster.silent = True

    with pytest.raises(SchedulerError, match="nothing was submitted"):
        advance(launch)

    assert cluster.num_sbatch == 2


def vanish(launch, cluster, seconds=60):
    """The jobs leave the queue without a trace, long after they were submitted."""
    for submission in launch.ledger:
        record = asdict(submission) | {"created": submission.created - seconds}
        write_json(launch.ledger.folder / f"{submission.token}.json", record)
    cluster.queue = Queue()
    return Launch(launch.path)


def test_a_job_that_vanished_before_it_began_comes_back_only_if_somebody_asks(make_launch, cluster):
    launch = make_launch()
    advance(launch)
    launch = vanish(launch, cluster)

    by_itself = advance(launch)
    by_user = advance(launch, by_user=True)

    assert (by_itself.num_submitted, by_itself.has_ended) == (0, True)
    assert by_user.num_submitted == 7


def test_an_attempt_that_ended_without_a_word_is_closed_and_repeated(make_launch, cluster, monkeypatch):
    launch = make_launch()
    advance(launch)
    attempt = begin(launch.run("a-s2"), ago_s=60)
    launch = vanish(launch, cluster)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 30)

    step = advance(launch)

    assert [run for s in step.submitted for run in s.runs] == ["a-s2"]
    assert (attempt / "exit.json").exists()


def test_a_start_that_failed_before_its_worker_began_is_judged_and_repeated_without_anybody_asking(
    make_launch, cluster
):
    launch = make_launch("name: s\njob: count\ncluster: test\nruns: {a: {}, b: {steps: 4}}\nneeds: {b: [a]}")
    for attempt in (1, 2):
        advance(launch)
        latest = launch.ledger.latest()["a"].submission
        folder = launch.path / "slurm" / latest.token
        (folder / f"{latest.job_id}_0_log.err").write_text("--- the job starts ---\nno such python\n")
        launch = vanish(launch, cluster)
        for path in launch.run("a").folder.attempts.rglob("*"):
            os.utime(path, (1, 1))
        cluster.queue.jobs[latest.token] = Job(latest.job_id, {0: Task("F", "NonZeroExitCode", "gpu03")})
        step = advance(launch)
        assert len(launch.run("a").folder.list_attempts()) == attempt

    assert {state.name: state.phase for state in step.states} == {"a": "failed", "b": "blocked"}
    ended = read_json(launch.run("a").folder.attempts / "2" / "exit.json")
    assert (ended["cause"], ended["message"]) == ("error", "its worker never started: no such python")


def test_a_run_cancelled_between_two_attempts_is_left_out_until_somebody_retries(make_launch, cluster):
    launch = make_launch("name: s\njob: count\ncluster: test\nruns: {a: {}}")
    advance(launch)
    latest = launch.ledger.latest()["a"].submission
    end(launch.run("a"), "preempted", again=True, token=latest.token)
    cluster.queue.jobs[latest.token] = Job(latest.job_id, {0: ENDED})

    step = advance(launch)
    cluster.queue = Queue()  # SLURM has forgotten it
    later = advance(Launch(launch.path), by_user=True)

    assert [step.states[0].phase, later.states[0].phase] == ["cancelled", "cancelled"]
    assert cluster.num_sbatch == 2


@pytest.mark.parametrize("cause", ["cancelled", "preempted"])
def test_a_run_that_was_brought_back_is_not_held_again_while_slurm_remembers_its_cancelled_job(
    make_launch, cluster, cause
):
    launch = make_launch("name: s\njob: count\ncluster: test\nruns: {a: {}}")
    advance(launch)
    latest = launch.ledger.latest()["a"].submission
    end(launch.run("a"), cause, again=cause == "preempted", token=latest.token)
    cancel(launch, ["a"])
    cluster.queue.jobs[latest.token] = Job(latest.job_id, {0: ENDED})

    assert bring_back(Launch(launch.path), ["a"]) == ["a"]

    assert advance(Launch(launch.path), by_user=True).num_submitted == 1


def test_a_start_that_failed_on_a_node_is_repeated_elsewhere_and_costs_others_nothing(make_launch, cluster):
    spec = "name: s\njob: count\ncluster: test\nseeds: [1, 2]\nruns: {a: {}}"
    launch = make_launch(spec, "max_parallel: 3\n")
    advance(launch)
    latest = launch.ledger.latest()["a-s1"].submission
    launch = vanish(launch, cluster)
    lost = {0: Task("F", "RaisedSignal:53(Real-time_signal_19)", "gpu03"), 1: RUNNING}
    cluster.queue.jobs[latest.token] = Job(latest.job_id, lost)

    step = advance(launch)

    assert [submission.runs for submission in step.submitted] == [("a-s1",)]
    script = (launch.path / "slurm" / step.submitted[0].token / "sbatch.sh").read_text()
    assert "#SBATCH --exclude=gpu03\n" in script
    assert bad_nodes(launch.path.parent) == []


def script_of_finish(launch):
    token = launch.ledger.latest()[submit.FINISH].submission.token
    return (launch.path / "slurm" / token / "sbatch.sh").read_text()


def test_where_other_work_fills_the_queue_a_job_comes_back_later(make_launch, cluster, capsys):
    launch = make_launch(profile="max_parallel: 9\nsubmit_limit: 5\n")
    cluster.queue.total = 5

    assert launcher.go_on(launch) == 0

    assert "7 more runs start as the limits of site and spec let them" in capsys.readouterr().out
    assert "#SBATCH --begin=now+10minutes\n" in script_of_finish(launch)
    advance(Launch(launch.path))
    assert cluster.num_sbatch == 1, "one is enough"


def test_where_not_even_that_job_is_taken_the_command_says_so_and_asks_to_be_given_again(
    make_launch, cluster, capsys
):
    launch = make_launch(profile="max_parallel: 9\n")
    cluster.refuse = {"lb-": "Job violates accounting/QOS policy (AssocMaxSubmitJobLimit)"}

    assert launcher.go_on(launch) == 75

    told = capsys.readouterr().err
    assert "7 runs are not queued, and no job is there to go on: run the same command again later" in told


def test_a_run_that_somebody_trains_by_hand_does_not_end_the_chain_of_jobs(make_launch, cluster):
    launch = make_launch("name: s\njob: count\ncluster: test\nruns: {a: {}, b: {steps: 4}}\nneeds: {b: [a]}")
    advance(launch)
    for submission in launch.ledger:
        cluster.queue.jobs[submission.token] = Job(submission.job_id, {0: ENDED})
    last = launch.ledger.latest()[submit.FINISH].submission
    cluster.queue.jobs[last.token] = Job(last.job_id, {0: RUNNING})  # it is the one that takes this step

    with hold_lock(launch.run("a").folder.rank_lock, 0):
        step = advance(launch)

    assert step.is_followed
    assert "#SBATCH --begin=now+10minutes\n" in script_of_finish(launch)


def test_a_task_that_will_not_be_started_again_gets_a_job_of_its_own_to_go_on(make_launch, cluster):
    launch = make_launch()
    advance(launch)
    job = launch.ledger.latest()["a-s4"].submission.job_id

    advance(launch, again_after=f"{job}_3")

    assert f"#SBATCH --dependency=afterany:{job}_3\n" in script_of_finish(launch)


@pytest.mark.parametrize("said", ["AssocMaxSubmitJobLimit", "Invalid account"])
def test_refusals_do_not_pile_up(make_launch, cluster, said):
    launch = make_launch(profile="max_parallel: 9\n")
    cluster.refuse = {"lb-": f"Batch job submission failed: {said}"}
    advance(launch)
    once = len(list(launch.ledger))

    for _ in range(5):
        advance(Launch(launch.path))

    assert len(list(Launch(launch.path).ledger)) == len(list((launch.path / "slurm").iterdir())) == once


@pytest.fixture
def twins(make_launch):
    """A launch of three runs that are done, c after a, and another one of the same."""
    first = make_launch(
        "name: s\njob: count\ncluster: test\nruns: {a: {}, b: {steps: 4}, c: {steps: 5}}\nneeds: {c: [a]}"
    )
    for run in first.runs.values():
        (run.folder.path / "train.jsonl").write_text("{}\n")
        end(run, "done")
    plan = make_plan("spec", cluster=None, settings=[], root=first.path.parents[1])
    places = {name: [f"{first.path.name}/{name}"] for name in "abc"}
    return first, write_launch(plan, first.path.parent, ["launch.py"], None, places)


def test_a_twin_that_is_damaged_is_computed_afresh_and_what_needs_it_waits(twins, cluster):
    first, second = twins
    for name in ("a", "c"):
        first.run(name).folder.manifest.write_text("{")

    step = advance(second)

    assert [submission.runs for submission in step.submitted] == [("a",)]
    assert {state.name: state.phase for state in step.states} == {"a": "pending", "b": "done", "c": "waiting"}
    assert step.warnings == [f"a is computed afresh: {first.path}/a is damaged"]
    assert not (second.path / "a" / "train.jsonl").exists(), "it must not go on from the other's end"


def test_a_twin_that_the_disk_does_not_give_now_is_asked_for_again_and_not_computed_twice(
    twins, cluster, monkeypatch
):
    _, second = twins
    with monkeypatch.context() as patch:
        patch.setattr(advance_module, "take_over", lambda run: (_ for _ in ()).throw(OSError(5, "I/O error")))
        step = advance(second)
    assert (step.num_submitted, len(step.warnings), step.has_ended) == (0, 3, False)

    with monkeypatch.context() as patch:
        stale = OSError(116, "Stale file handle")
        patch.setattr(Monitor, "_others_of", lambda *words: (_ for _ in ()).throw(stale))
        step = advance(second)
    assert step.num_submitted == 0
    assert {state.phase for state in step.states} == {"unknown"}

    assert advance(second).has_ended


def test_jobs_that_come_last_do_not_pile_up_with_the_tasks_that_are_stranded(make_launch, cluster):
    launch = make_launch(profile="max_parallel: 9\n")
    advance(launch)
    job = launch.ledger.latest()["a-s1"].submission.job_id
    for task in range(3):
        advance(launch, again_after=f"{job}_{task}")
        mine = launch.ledger.latest()[submit.FINISH].submission
        cluster.queue.jobs[mine.token].tasks = {0: RUNNING}
        advance(launch)  # the step of that job
        cluster.queue.jobs[mine.token].tasks = {0: ENDED}

    assert len([submission for submission in launch.ledger if submission.runs == (submit.FINISH,)]) == 4


def test_the_last_place_in_the_queue_is_for_a_run_once_the_finishing_job_has_its_own(make_launch, cluster):
    launch = make_launch(profile="max_parallel: 9\nsubmit_limit: 5\n")
    cluster.queue.total = 3
    advance(launch)
    last = launch.ledger.latest()[submit.FINISH].submission
    (array,) = [submission for submission in launch.ledger if submission.token != last.token]
    end(launch.run(array.runs[0]), "done", token=array.token)
    cluster.queue.jobs[array.token].tasks = {0: ENDED}
    cluster.queue.jobs[last.token].tasks = {0: RUNNING}
    cluster.queue.total = 4  # others' three, and the job that comes last, at work

    assert advance(Launch(launch.path)).num_submitted == 1


def test_a_limit_of_one_job_is_told_as_what_it_is(make_launch, cluster):
    launch = make_launch()
    launch.__dict__["limits"] = SimpleNamespace(
        submit_limit=lambda cluster: 1, cluster_name=None, max_array_size=9, accounting=False
    )

    with pytest.raises(PreflightError, match="the site lets you queue one job at a time"):
        advance(launch)


def test_a_job_that_turns_up_after_it_was_given_up_is_cancelled(make_launch, cluster):
    launch = make_launch()
    late = launch.ledger.intend(["a-s1"])
    launch.ledger.refused(late, NO_ANSWER)
    cluster.queue.jobs[late.token] = Job("55", {0: WAITING})

    advance(launch)

    assert ("scancel", "55") in cluster.calls


def test_the_queue_is_asked_before_the_first_submission_too(make_launch, cluster):
    launch = make_launch(profile="max_parallel: 9\nsubmit_limit: 5\n")
    cluster.queue.total = 2

    advance(launch)

    assert sizes(launch) == [(2, 2)]


def test_the_job_that_comes_last_is_missed_when_somebody_removed_it(make_launch, cluster, monkeypatch):
    launch = make_launch()
    assert not finish_waits(launch)
    advance(launch)

    def squeue(said, complaint, code=0):
        answer = subprocess.CompletedProcess([], code, said, complaint)
        monkeypatch.setattr(slurm, "call", lambda *argv: answer)
        return finish_waits(launch)

    assert squeue("PD\n", "")
    assert not squeue("", "")
    assert not squeue("", "slurm_load_jobs error: Invalid job id specified", code=1)
    assert squeue("", "slurm_load_jobs error: Unable to contact slurm controller", code=1)


def test_a_submission_whose_answer_never_came_is_repeated_without_anybody_asking(make_launch, cluster):
    launch = make_launch()
    launch.ledger.intend(launch.run_names)
    assert advance(launch).num_submitted == 0, "its job may turn up yet"

    launch = vanish(launch, cluster)

    assert advance(launch).num_submitted == 7


def test_the_end_of_one_job_matters_where_others_wait_or_nobody_preserves(make_launch, cluster):
    launch = make_launch(profile="max_parallel: 9\n")
    assert may_free_something(launch)
    advance(launch)
    assert not may_free_something(launch), "SLURM starts the rest of one array by itself"

    launch.ledger.order(Orders(held={"a-s1": "skipped"}))
    assert not may_free_something(launch)
    launch.ledger.accepted(launch.ledger.intend(["a-s1"]), "77")

    assert may_free_something(launch), "capacity may pass from one array to another"


def test_one_array_at_most_holds_max_array_size_tasks(make_launch, cluster, monkeypatch):
    launch = make_launch(profile="max_parallel: 9\n")
    monkeypatch.setattr(advance_module, "_longest_array", lambda launch: 3)

    advance(launch)

    assert sizes(launch) == [(3, 3), (3, 3), (1, 1)]
