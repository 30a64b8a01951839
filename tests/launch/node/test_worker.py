"""One worker on this machine: what it makes of ranks that hang, fill memory, or leave things behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import steps_of, wait_for
from mishaps import MISHAP_JOB

from latentbridge.errors import RunError, SchedulerError
from latentbridge.job import STOP_REQUEST
from latentbridge.launch import launcher
from latentbridge.launch.ledger import Orders
from latentbridge.launch.node import own_job
from latentbridge.launch.node.attempt import SIGNALLED, Ending, conclude
from latentbridge.launch.node.worker import Worker
from latentbridge.launch.plan import make_plan
from latentbridge.launch.spec import Retry
from latentbridge.rundir import hold_lock, read_json, write_json

EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_AGAIN = 0, 1, 85, 86


@pytest.fixture
def plan(project, write_spec, monkeypatch):
    """Write the run folders of one run, `a`; returns its launch."""
    (project / "jobs" / "mishap.py").write_text(MISHAP_JOB)
    monkeypatch.setattr(sys, "argv", ["launch.py", "spec"])

    def make(settings: str, hang_s: float | None = None, **rules: object):
        write_spec(f"name: s\njob: mishap\ncluster: local\nretry: {rules}\nruns: {{a: {settings}}}")
        planned = make_plan("spec", cluster=None, settings=[], root=project)
        made = launcher.launch(planned, folder=None, is_new=True, only=[], skip=[], no_check=[])
        if hang_s is not None:  # a spec knows whole minutes
            record = read_json(made.path / "plan.json")
            write_json(made.path / "plan.json", record | {"hang_timeout_min": hang_s / 60})
        return made

    return make


def start(launch):
    command = [sys.executable, "-m", "latentbridge.launch.node.worker", str(launch.path), "--run", "a"]
    with open(launch.path / "worker.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def work(launch) -> int:
    return start(launch).wait(timeout=60)


def ending(launch, attempt=1):
    return read_json(launch.path / "a" / "attempts" / str(attempt) / "exit.json")


def processes_with(text: str) -> list[int]:
    """Processes that have `text` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_one_hung_rank_is_found_and_every_rank_says_where_it_stands(plan):
    launch = plan("{mishap: hang, rank: 1, resources.gpus_per_node: 3}", hang_s=10)

    assert work(launch) == EXIT_AGAIN

    assert ending(launch)["cause"] == "hang"
    assert ", at counting " in ending(launch)["message"]
    stacks = launch.path / "a" / "attempts" / "1" / "stacks"
    assert sorted(path.name for path in stacks.iterdir()) == ["rank_0.txt", "rank_1.txt", "rank_2.txt"]
    assert "hang_by_myself" in (stacks / "rank_1.txt").read_text()
    for rank in (0, 2):
        assert "wait_for_the_other_rank" in (stacks / f"rank_{rank}.txt").read_text()
    assert work(launch) == EXIT_DONE


def test_a_rank_that_logs_nothing_for_long_is_left_alone_while_another_moves(plan):
    launch = plan("{mishap: silence, steps: 30, step_s: 0.25, resources.gpus_per_node: 2}", hang_s=5)

    assert work(launch) == EXIT_DONE


def test_ranks_that_fail_and_ranks_that_end_leave_nothing_on_a_nodes_disk(plan, tmp_path, monkeypatch):
    """torchrun left a folder in /tmp of every attempt: hundreds after a day."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    launch = plan("{mishap: hang, rank: 1, resources.gpus_per_node: 2}", hang_s=5)
    monkeypatch.setenv("TMPDIR", str(scratch))

    assert [work(launch), work(launch)] == [EXIT_AGAIN, EXIT_DONE]

    assert not list(scratch.iterdir())


@pytest.mark.parametrize("cause", ["stopped", "cancelled"])
def test_an_attempt_that_was_asked_to_stop_and_died_first_keeps_no_other_from_starting(plan, cause):
    launch = plan("{steps: 4}")
    dead = launch.run("a").folder.new_attempt()
    write_json(dead / SIGNALLED, {"cause": cause, "message": "asked"})

    assert work(launch) == EXIT_DONE

    assert [ending(launch, n)["cause"] for n in (1, 2)] == [cause, "done"]


def test_an_attempt_that_died_once_too_often_does_keep_others_from_starting(plan):
    launch = plan("{steps: 4}", killed=0)
    launch.run("a").folder.new_attempt()

    assert work(launch) == EXIT_FAILED

    assert ending(launch)["cause"] == "killed"
    assert len(launch.run("a").folder.list_attempts()) == 1


def test_what_a_rank_leaves_behind_ends_with_its_attempt(plan):
    launch = plan("{mishap: leave a child behind}")

    assert work(launch) == EXIT_AGAIN

    assert processes_with(str(launch.path / "a" / "attempts" / "1")) == []


def test_out_of_device_memory_halves_the_micro_batch_until_it_fits_and_the_manifest_says_so(plan):
    launch = plan("{train.batch_size: 12, fits: 3, resources.gpus_per_node: 2}", oom=2)

    assert [work(launch), work(launch)] == [EXIT_AGAIN, EXIT_DONE]

    manifest = read_json(launch.path / "a" / "manifest.json")
    assert manifest["backoff"] == 1
    assert manifest["changes"] == ["micro-batch 6 -> 3 after device_oom in attempt 1; global batch unchanged"]
    assert ending(launch)["message"].startswith("torch.OutOfMemoryError: CUDA out of memory")


def test_a_micro_batch_of_one_cannot_be_halved_and_the_run_has_failed(plan):
    launch = plan("{train.batch_size: 2, fits: 0}", oom=9)

    assert [work(launch), work(launch)] == [EXIT_AGAIN, EXIT_FAILED]

    assert "the micro-batch is 1 already" in read_json(launch.path / "a" / "FAILED")["why"]


def test_a_job_without_a_batch_size_that_fills_the_device_has_failed_at_once(plan):
    launch = plan("{fits: 3}")

    assert work(launch) == EXIT_FAILED

    assert ending(launch)["cause"] == "device_oom"
    assert "no micro-batch to halve" in ending(launch)["why"]


@pytest.mark.parametrize(
    ("mishap", "message"),
    [("import", "No module named 'a_package_that_nobody_has'"), ("exit", "a rank exited with code 3")],
)
def test_what_fails_alike_at_the_same_step_is_not_tried_a_third_time(plan, mishap, message):
    launch = plan(f"{{mishap: {mishap}, times: 99}}", deterministic=1)

    assert [work(launch), work(launch)] == [EXIT_AGAIN, EXIT_FAILED]

    marker = read_json(launch.path / "a" / "FAILED")
    assert (marker["cause"], marker["step"]) == ("error", 2)
    assert message in marker["message"]
    assert "the same error at the same step 2 times" in marker["why"]


def test_a_killed_rank_is_told_from_a_failed_one(plan):
    # the other saves when torchrun ends it, which is not to be taken for a stop that somebody asked for
    launch = plan("{steps: 200, step_s: 0.1, resources.gpus_per_node: 2}")
    worker = start(launch)
    beat = launch.path / "a" / "attempts" / "1" / "beats" / "rank_1"
    wait_for(lambda: (launch.path / "a" / "count.json").exists() and beat.exists())

    os.kill(read_json(beat)["pid"], signal.SIGKILL)

    assert worker.wait(timeout=60) == EXIT_AGAIN
    assert ending(launch)["cause"] == "killed"


def test_an_attempt_whose_worker_was_killed_after_a_signal_ended_for_the_reason_of_the_signal(plan):
    launch = plan("{steps: 4}")
    attempt = launch.run("a").folder.new_attempt()
    write_json(attempt / "signal.json", {"cause": "preempted", "message": "SLURM gave its nodes away"})

    assert work(launch) == EXIT_DONE

    assert (ending(launch)["cause"], ending(launch, 2)["cause"]) == ("preempted", "done")


def test_a_stop_is_saved_and_the_run_goes_on_from_there(plan):
    launch = plan("{steps: 40, step_s: 0.1}")
    worker = start(launch)
    wait_for(lambda: (launch.path / "a" / "count.json").exists())

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(timeout=60) == EXIT_STOPPED
    assert ending(launch)["cause"] == "stopped"
    assert ending(launch)["message"].startswith("saved at update")
    assert work(launch) == EXIT_DONE
    assert steps_of(launch.path / "a") == list(range(1, 41))


def test_a_node_that_fails_its_health_check_starts_nothing_and_is_remembered(plan, project):
    profile = "executor: local\nhealth_check: ['echo gpu 3 has fallen off the bus >&2; exit 1']\n"
    (project / "slurm" / "local.yaml").write_text(profile)
    launch = plan("{steps: 4}")

    assert work(launch) == EXIT_AGAIN

    assert ending(launch)["cause"] == "node_fail"
    (bad,) = (project / "runs" / ".bad_nodes").iterdir()
    assert "gpu 3 has fallen off the bus" in read_json(bad)["reason"]
    assert not (launch.path / "a" / "attempts" / "1" / "stdout.log").exists()


def test_a_worker_whose_attempt_others_gave_up_leaves_it_to_them(plan):
    launch = plan("{steps: 400, step_s: 0.1}")
    worker = start(launch)
    wait_for(lambda: (launch.path / "a" / "count.json").exists())
    attempt = launch.path / "a" / "attempts" / "1"
    write_json(attempt / "exit.json", {"cause": "node_fail", "message": "its node was thought dead"})

    assert worker.wait(timeout=60) == EXIT_FAILED

    assert ending(launch) == {"cause": "node_fail", "message": "its node was thought dead"}
    assert processes_with(str(attempt)) == []


@pytest.fixture
def slurm_worker(plan, monkeypatch):
    """The worker of a started job, on its head node, and what it left in its launch folder."""
    launch = plan("{steps: 4}")
    for name, value in {"JOB_ID": "7", "RESTART_COUNT": "1", "JOB_NODELIST": "gpu01"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    (launch.path / "slurm" / "aa").mkdir(parents=True)
    return Worker(launch, launch.run("a"), 1, "aa")


@pytest.mark.parametrize(
    ("number", "likely", "answer", "cause"),
    [
        (signal.SIGTERM, "preempted", own_job.Why("cancelled", "by scancel"), "cancelled"),
        (signal.SIGUSR2, "timeout", own_job.Why("preempted", "a higher one"), "preempted"),
        (signal.SIGUSR2, "timeout", None, "timeout"),
    ],
)
def test_the_likely_reason_of_a_signal_is_on_disk_before_slurm_is_asked(
    slurm_worker, monkeypatch, number, likely, answer, cause
):
    attempt = slurm_worker.folder.new_attempt()
    before = []

    def why_signalled(warned, said):
        before.append(read_json(attempt / "signal.json")["cause"])
        if answer is None:
            raise SchedulerError("silent")
        return answer

    monkeypatch.setattr(own_job, "why_signalled", why_signalled)
    slurm_worker.received = number

    slurm_worker._note_signal(attempt)

    assert before == [likely]
    assert read_json(attempt / "signal.json")["cause"] == cause


def test_a_run_that_another_process_is_at_is_left_to_it_a_few_times_and_then_for_good(
    slurm_worker, monkeypatch
):
    asked = []
    monkeypatch.setattr("latentbridge.launch.node.worker.LOCK_PATIENCE_S", 0)
    monkeypatch.setattr(own_job, "requeue", lambda *words, **delay: asked.append(delay))
    with hold_lock(slurm_worker.folder.worker_lock, 0):
        assert slurm_worker._lead() == EXIT_STOPPED
        monkeypatch.setenv("SLURM_RESTART_COUNT", "5")
        assert slurm_worker._lead() == EXIT_STOPPED

    assert asked == [{"delay_min": 5}]
    assert own_job.has_left(slurm_worker.launch, "aa", "7", now=True)
    assert slurm_worker.folder.list_attempts() == []


def test_a_run_that_somebody_trains_by_hand_is_left_to_them(slurm_worker, monkeypatch):
    asked = []
    monkeypatch.setattr("latentbridge.launch.node.worker.LOCK_PATIENCE_S", 0)
    monkeypatch.setattr(own_job, "requeue", lambda *words, **delay: asked.append(delay))
    with hold_lock(slurm_worker.folder.rank_lock, 0):
        assert slurm_worker._lead() == EXIT_STOPPED

    assert asked == [{"delay_min": 5}]
    assert slurm_worker.folder.list_attempts() == []
    hold_lock(slurm_worker.folder.worker_lock, 0).close()


def test_a_run_that_has_failed_is_not_gone_on_with_by_a_job_that_slurm_starts_again(slurm_worker):
    ending = Ending(cause="refused", message="ConfigError: x", ended=1060.0)
    conclude(slurm_worker.launch, slurm_worker.run, slurm_worker.folder.new_attempt(), ending)

    assert slurm_worker._lead() == EXIT_FAILED

    assert slurm_worker.folder.state == "FAILED"
    assert len(slurm_worker.folder.list_attempts()) == 1
    slurm_worker.launch.ledger.order(Orders(forgiven={"a": 1}))
    assert not slurm_worker._has_failed(), "somebody brought it back"


def test_a_signal_counts_though_a_file_cannot_be_read(slurm_worker, monkeypatch):
    attempt = slurm_worker.folder.new_attempt()
    slurm_worker.received, slurm_worker.received_at = signal.SIGTERM, 1000.0

    def damaged(attempt):
        raise RunError("orders.json: cannot be read as JSON")

    monkeypatch.setattr(slurm_worker, "_note_signal", damaged)

    assert slurm_worker._stop_by(attempt) > 1000.0
    assert (attempt / STOP_REQUEST).exists()


def test_a_start_that_closes_the_last_attempt_that_was_allowed_opens_none_and_says_so(plan, slurm_worker):
    slurm_worker.launch.__dict__["retry"] = Retry(node_fail=0)
    slurm_worker.folder.new_attempt()

    assert slurm_worker._lead() == EXIT_FAILED

    assert slurm_worker.folder.state == "FAILED"
    assert len(slurm_worker.folder.list_attempts()) == 1
    assert own_job.has_left(slurm_worker.launch, "aa", "7", now=True)
