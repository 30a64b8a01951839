"""One run in plain words: what it waits for, why it ended, what happens next, which command helps."""

from __future__ import annotations

import json
import os
import shlex
import time

import pytest
from folders import begin, end, planned_launch

from latentbridge.errors import SchedulerError
from latentbridge.launch import slurm, status
from latentbridge.launch.ledger import Orders
from latentbridge.launch.record import Launch
from latentbridge.launch.slurm.squeue import Job, Queue, Task
from latentbridge.launch.view import explain as explain_module
from latentbridge.launch.view.explain import explain
from latentbridge.rundir import RunDir

SPEC = """
    name: s
    job: count
    cluster: {cluster}
    retry: {{error: 4, oom: 2}}
    hang_timeout_min: 10
    runs: {{a: {{}}, b: {{steps: 4}}, c: {{steps: 5}}}}
    needs: {{c: [a, b]}}
    """
TRACEBACK = """starting
[rank0]: Traceback (most recent call last):
[rank0]:   File "jobs/count.py", line 3, in <module>
[rank0]:     train()
[rank0]: ValueError: first
Traceback (most recent call last):
  File "jobs/count.py", line 44, in train
    raise ValueError("told to fail")
ValueError: told to fail
Traceback (most recent call last):
  File "run.py", line 2, in main
    raise ChildFailedError("ValueError: told to fail")
torch.distributed.elastic.multiprocessing.errors.ChildFailedError: 
"""


@pytest.fixture
def launch(project, write_spec):
    write_spec(SPEC.format(cluster="local"))
    return planned_launch(project)


@pytest.fixture
def slurm_launch(project, write_spec, monkeypatch):
    """Run `a` is task 0 of job 7; what squeue and scontrol say is set by `say`."""
    (project / "slurm" / "test.yaml").write_text("executor: slurm\n")
    write_spec(SPEC.format(cluster="test"))
    launch = planned_launch(project)
    submission = launch.ledger.accepted(launch.ledger.intend(["a", "b"]), "7")

    def say(task, scontrol=None):
        def ask(*argv):
            assert argv == ("scontrol", "show", "job", "7_0", "--oneliner")
            if scontrol is None:
                raise SchedulerError("no answer")
            return [scontrol]

        jobs = {submission.token: Job("7", {0: task, 1: Task("PD", "Priority", "")})}
        monkeypatch.setattr(status, "read_queue", lambda uid: Queue(jobs))
        monkeypatch.setattr(slurm, "ask", ask)
        return launch

    return say


def test_a_failed_run_tells_cause_place_traceback_and_the_way_back(launch):
    run = launch.run("b")
    end(run, "timeout", "saved at update 3", took_s=3723, gpus=4, step=3, again=True)
    attempt = end(run, "error", "ValueError: told to fail", step=9, why="the same error twice")
    (attempt / "stderr.log").write_text(TRACEBACK)

    lines = explain(launch, "b")

    path = min(str(run.folder.path), os.path.relpath(run.folder.path), key=len)
    assert lines[:3] == [
        "b is failed",
        "  nobody starts it again: the same error twice",
        f"  once the cause is gone: `latentbridge retry {shlex.quote(path)}`",
    ]
    assert "attempt 2 ended: error: ValueError: told to fail" in lines
    assert "  at update 9 on gpu01, exit code 1" in lines
    assert [line[4:] for line in lines if line.startswith("  | ")] == TRACEBACK.splitlines()[5:9]
    assert "  retry.error: 1 of 4 used" in lines
    first = next(line for line in lines if line.startswith("   1  "))
    # 3723 s of 4 GPUs
    assert first.endswith("1 h 2 min  4.14 GPU-hours  timeout  update 3  gpu01")


def test_forgiven_attempts_leave_all_retries(launch):
    run = launch.run("b")
    end(run, "error", again=True)
    end(run, "error", again=True)
    launch.ledger.order(Orders(forgiven={"b": 1}))

    assert "  retry.error: 1 of 4 used" in explain(launch, "b")


def test_memory_of_device_and_host_share_one_rule(launch):
    end(launch.run("b"), "device_oom", again=True)
    end(launch.run("b"), "host_oom")

    assert "  retry.oom: 2 of 2 used" in explain(launch, "b")


def test_a_hang_tells_where_the_ranks_stand(launch):
    attempt = end(launch.run("a"), "hang", "no rank moved for 600 s")
    file = RunDir.stack_file(attempt, 1)
    file.parent.mkdir()
    job = launch.code / "jobs" / "count.py"
    line = job.read_text().splitlines().index("        time.sleep(config.step_s)") + 1
    file.write_text(f'Current thread 0x1 (most recent call first):\n  File "{job}", line {line} in train\n')

    assert f"  rank 1 at jobs/count.py:{line} (train): `time.sleep(config.step_s)`" in explain(launch, "a")


def test_a_running_run_tells_which_rank_stands_still(launch, monkeypatch):
    attempt = begin(launch.run("a"))
    for rank, age_s in enumerate([5, 200]):
        beat = RunDir.beat_file(attempt, rank)
        beat.parent.mkdir(exist_ok=True)
        beat.write_text(json.dumps({"rank": rank, "pid": 1, "node": 0}))
        os.utime(beat, (time.time() - age_s,) * 2)
    monkeypatch.setattr(RunDir, "is_locked", lambda self: True)

    lines = explain(launch, "a")

    assert lines[:4] == [
        "a is running",
        "  a worker on this machine is at starting",
        "  rank 1 has not moved for 3 min 20 s",
        "  when no rank moves for 10 min 0 s it is ended as hung (hang_timeout_min)",
    ]


def test_a_run_that_waits_names_what_it_waits_for(launch):
    end(launch.run("a"), "done")

    assert explain(launch, "c") == [
        "c is waiting",
        "  it needs b, which is planned",
        "  it is submitted as soon as those are done",
    ]


def test_a_blocked_run_leads_to_the_run_that_blocks_it(launch):
    end(launch.run("b"), "error")

    told = explain(launch, "c")

    assert told[1].startswith("  it needs b, which is failed: see `latentbridge explain ")


def test_a_held_run_tells_how_to_have_it(launch):
    launch.ledger.order(Orders(held={"a": "left out by --only or --skip"}))

    told = explain(launch, "a")

    assert told[:2] == ["a is held", "  left out by --only or --skip"]
    assert "`latentbridge retry " in told[2]


def test_a_planned_run_tells_the_launch_command(launch):
    assert "`python launch.py spec`" in explain(launch, "a")[-1]


def test_changes_and_choices_are_told(launch):
    run = launch.run("a").folder
    changes = ["micro-batch 8 -> 4 after device_oom in attempt 1; global batch unchanged"]
    run.write_manifest(
        run.read_manifest() | {"changes": changes, "best_of": {"optim.lr": "x has the lowest"}}
    )

    lines = explain(launch, "a")

    assert f"changed: {changes[0]}" in lines
    assert "chosen: optim.lr: x has the lowest" in lines


def test_a_pending_run_tells_the_reason_and_the_expected_start(slurm_launch):
    launch = slurm_launch(
        Task("PD", "Priority", ""),
        "JobId=7 Reason=Resources Partition=main AllocNode:Sid=x:1 StartTime=2026-11-22T14:41:00",
    )

    assert explain(launch, "a") == [
        "a is pending, job 7_0",
        "  it is next in partition main, but others still use what it asks for (SLURM: Resources)",
        "  SLURM expects to start it at 2026-11-22 14:41:00, earlier if others end early",
    ]


def test_no_start_is_promised_for_a_reason_that_only_people_can_end(slurm_launch):
    launch = slurm_launch(
        Task("PD", "x", ""), "Reason=launch_failed_requeued_held JobId=9 StartTime=2026-11-22T14:41:00"
    )

    assert explain(launch, "a")[1:] == [
        "  its nodes could not start it, so SLURM holds it (SLURM: launch failed requeued held)",
        "  what helps: `scontrol release 9` once the cause is gone",
    ]


def test_a_job_that_can_never_start_tells_the_steps_out(slurm_launch):
    launch = slurm_launch(Task("PD", "x", ""), "Reason=PartitionTimeLimit TimeLimit=05:00:00 Partition=high")

    told = explain(launch, "a")

    assert told[1].startswith("  it asks for 05:00:00, more than partition high ever gives")
    assert told[2] == "  it will never start as it was submitted"
    assert told[4].count("`") == 6 and "latentbridge cancel" in told[4] and "python launch.py spec" in told[4]


def test_where_scontrol_is_silent_the_reason_of_squeue_must_do(slurm_launch):
    launch = slurm_launch(Task("PD", "JobHeldAdmin", ""))

    assert explain(launch, "a")[1:] == [
        "  it is held by an operator (SLURM: JobHeldAdmin)",
        "  what helps: ask the operators of the cluster",
    ]


def test_silence_of_slurm_concludes_nothing(slurm_launch, monkeypatch):
    launch = slurm_launch(Task("R", "", "gpu01"))

    def silent(uid):
        raise SchedulerError("squeue did not answer")

    monkeypatch.setattr(status, "read_queue", silent)

    assert explain(launch, "a")[:2] == [
        "a is unknown",
        "  SLURM does not answer; the last that is known is job 7_0",
    ]


def test_every_phase_has_its_words():
    assert set(explain_module._NOW) == set(status.Phase.__args__)


def test_a_run_whose_last_submission_was_refused_says_so(slurm_launch):
    launch = slurm_launch(Task("PD", "Priority", ""))
    launch.ledger.refused(launch.ledger.intend(["c"]), "Access/permission denied")
    launch = Launch(launch.path)
    for name in ("a", "b"):
        end(launch.run(name), "done")

    assert explain(launch, "c")[1].endswith("not taken when it was last submitted: Access/permission denied")
