"""How the end of an attempt is written down, by its worker or by whoever found it silent."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from latentbridge.launch.cluster import Resources
from latentbridge.launch.ledger import Orders
from latentbridge.launch.node import attempt as attempt_module
from latentbridge.launch.node.attempt import (
    Ending,
    close_lost,
    close_unbegun,
    conclude,
    failed_to_begin_on,
    last_sign,
)
from latentbridge.launch.spec import Retry
from latentbridge.rundir import RunDir, append_jsonl, read_json, write_json


@pytest.fixture
def run(tmp_path):
    """A run of 2 nodes x 3 ranks whose global batch is 12."""
    folder = RunDir(tmp_path / "a")
    folder.path.mkdir()
    folder.config.write_text("train: {batch_size: 12}\n")
    return SimpleNamespace(name="a", folder=folder, resources=Resources(nodes=2, gpus_per_node=3))


def launch_with(forgiven=0, **rules):
    orders = Orders(forgiven={"a": forgiven})
    return SimpleNamespace(retry=Retry(**rules), ledger=SimpleNamespace(orders=orders))


def end(launch, run, cause, message="why"):
    attempt = run.folder.new_attempt()
    write_json(attempt / "env.json", {"started": 1000.0})
    again = conclude(launch, run, attempt, Ending(cause=cause, message=message, ended=1060.0))
    return again, read_json(attempt / "exit.json")


@pytest.mark.parametrize(
    ("cause", "marker"),
    [("cancelled", "STOPPED"), ("stopped", "STOPPED"), ("budget", "STOPPED"), ("refused", "FAILED")],
)
def test_what_nobody_tries_again_leaves_its_marker(run, cause, marker):
    again, record = end(launch_with(), run, cause)

    assert not again
    assert run.folder.state == marker
    assert run.folder.read_marker()["cause"] == record["cause"] == cause


def test_an_attempt_that_another_follows_leaves_no_marker_and_says_what_it_cost(run):
    append_jsonl(run.folder.train_log, {"step": 7})

    again, record = end(launch_with(node_fail=1), run, "node_fail")

    assert again and run.folder.state is None
    assert (record["ended"] - record["began"], record["gpus"], record["step"]) == (60.0, 6, 7)


def test_forgiven_attempts_do_not_count(run):
    rules = {"killed": 1, "no_progress": None}
    assert end(launch_with(**rules), run, "killed")[0]
    assert not end(launch_with(**rules), run, "killed")[0]

    assert end(launch_with(forgiven=2, **rules), run, "killed")[0]


def test_every_loss_of_memory_halves_what_the_last_one_left(run):
    launch = launch_with(oom=5)

    changes = [end(launch, run, cause)[1]["why"] for cause in ("device_oom", "host_oom", "device_oom")]

    # 12 samples on 6 ranks are 2 each
    assert changes == [
        "micro-batch 2 -> 1 after device_oom in attempt 1; global batch unchanged",
        "the micro-batch is 1 already; ask for more memory, or more GPUs",
        "the micro-batch is 1 already; ask for more memory, or more GPUs",
    ]
    assert run.folder.read_manifest()["backoff"] == 1


def test_memory_of_the_host_may_be_free_next_time_for_a_job_without_a_batch(run):
    run.folder.config.write_text("steps: 4\n")

    assert end(launch_with(), run, "host_oom")[0]
    assert not end(launch_with(), run, "device_oom")[0]


def test_a_silent_attempt_ended_at_its_last_sign_of_life_for_the_reason_of_its_last_signal(run):
    silent, signalled = run.folder.new_attempt(), run.folder.new_attempt()
    write_json(signalled / "signal.json", {"cause": "preempted", "message": "a higher priority"})

    assert close_lost(launch_with(), run, "node_fail", "it left the queue")

    first, second = (read_json(attempt / "exit.json") for attempt in (silent, signalled))
    assert (first["cause"], second["cause"]) == ("node_fail", "preempted")
    assert second["message"] == "a higher priority"
    assert abs(first["ended"] - time.time()) < 60


def test_a_silent_attempt_of_a_run_that_is_done_was_the_one_that_did_it(run):
    attempt = run.folder.new_attempt()
    write_json(attempt / "signal.json", {"cause": "preempted", "message": "a higher priority"})
    run.folder.mark("DONE", {})

    assert not close_lost(launch_with(), run, "node_fail", "it left the queue")

    assert read_json(attempt / "exit.json")["cause"] == "done"
    assert run.folder.is_done


def test_a_file_that_is_renamed_while_it_is_looked_at_is_no_error(tmp_path, monkeypatch):
    (tmp_path / ".progress.json.zwp77yco").symlink_to("gone")
    os.utime(tmp_path, (1000, 1000))

    assert last_sign(tmp_path) == 1000


def test_who_dies_between_marker_and_record_has_decided_that_nobody_tries_again(run, monkeypatch):
    attempt = run.folder.new_attempt()

    def die(path, record):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(attempt_module, "write_json", die)
        conclude(launch_with(), run, attempt, Ending(cause="cancelled", message="by scancel", ended=1.0))

    assert run.folder.read_marker()["cause"] == "cancelled"


def test_an_attempt_that_began_after_it_was_looked_is_not_closed_with_the_others(run):
    lost, new = run.folder.new_attempt(), run.folder.new_attempt()

    close_lost(launch_with(), run, "node_fail", "it left the queue", up_to=1)

    assert [(attempt / "exit.json").exists() for attempt in (lost, new)] == [True, False]


def test_starts_that_fail_before_there_is_an_attempt_are_judged_like_others(run):
    launch = launch_with(deterministic=1)

    tries = [close_unbegun(launch, run, "aa", "error", "no such interpreter", "gpu03") for _ in range(2)]

    assert tries == [True, False]
    assert run.folder.state == "FAILED"
    first = run.folder.list_attempts()[0]
    assert read_json(first / "env.json")["nodes"] == "gpu03"
    assert read_json(first / "exit.json")["token"] == "aa"


def test_of_who_died_between_marker_and_record_the_marker_tells_the_cause(run):
    attempt = run.folder.new_attempt()
    run.folder.mark("FAILED", {"cause": "error", "message": "ValueError: x", "attempt": attempt.name})

    assert not close_lost(launch_with(error=0), run, "node_fail", "its node died")

    record = read_json(attempt / "exit.json")
    assert (record["cause"], record["message"], record["again"]) == ("error", "ValueError: x", False)


def test_only_a_start_that_opened_no_attempt_failed_to_begin_on_its_nodes(run):
    assert failed_to_begin_on(run) == []
    close_unbegun(launch_with(), run, "aa", "error", "no such interpreter", "gpu[03-04]")
    assert failed_to_begin_on(run) == ["gpu03", "gpu04"]

    end(launch_with(), run, "error")
    assert failed_to_begin_on(run) == []

    close_unbegun(launch_with(), run, "aa", "preempted", "by a higher one", "gpu05")
    assert failed_to_begin_on(run) == [], "that is not the node's doing"


@pytest.mark.parametrize(
    ("is_guess", "is_told", "cause"),
    [(True, True, "killed"), (True, False, "preempted"), (False, True, "preempted")],
)
def test_the_word_of_slurm_counts_for_more_than_what_a_worker_guessed(run, is_guess, is_told, cause):
    attempt = run.folder.new_attempt()
    note = {"signal": 15, "cause": "preempted", "message": "signal 15", "is_guess": is_guess}
    write_json(attempt / "signal.json", note)

    close_lost(launch_with(), run, "killed", "SLURM: F JobLaunchFailure", is_told=is_told)

    assert read_json(attempt / "exit.json")["cause"] == cause
