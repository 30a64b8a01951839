"""What ended an attempt, and whether another may cure it."""

from __future__ import annotations

import pytest

from latentbridge.launch.causes import classify, last_exception, may_retry
from latentbridge.launch.spec import Retry
from latentbridge.rundir import RunDir, write_json

TORCHRUN_ECHO = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: jobs/x.py FAILED\n"


def attempts(run, *causes_and_steps):
    for cause, step in causes_and_steps:
        write_json(run.new_attempt() / "exit.json", {"cause": cause, "step": step})


@pytest.mark.parametrize(
    ("stderr", "code", "cause", "message"),
    [
        ("ValueError: told to\n" + TORCHRUN_ECHO, 1, "error", "ValueError: told to"),
        ("[rank2]: KeyError: 'loss'\n" + TORCHRUN_ECHO, 1, "error", "KeyError: 'loss'"),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried\n" + TORCHRUN_ECHO,
            1,
            "oom",
            "torch.OutOfMemoryError",
        ),
        ("", -9, "node_fail", "killed from outside"),
        ("  exitcode  : -9 (pid: 7)\n" + TORCHRUN_ECHO, 1, "node_fail", "killed from outside"),
        ("LockedError: rank.lock: another\n" + TORCHRUN_ECHO, 1, "preempted", "another"),
        ("warning: out of memory, retrying\nKeyError: 1\n", 1, "error", "KeyError: 1"),
        ("ConfigError: model 'x' is no folder\n" + TORCHRUN_ECHO, 1, "refused", "no folder"),
        ("nothing of note\n", 3, "error", "exited with 3"),
    ],
)
def test_the_cause_is_read_from_stderr_and_exit_code(tmp_path, stderr, code, cause, message):
    (tmp_path / "stderr.log").write_text(stderr)

    found, text = classify(code, tmp_path)

    assert found == cause
    assert message in text


def test_torchruns_echo_is_not_mistaken_for_the_error():
    assert last_exception("RuntimeError: mine\n  at x\n" + TORCHRUN_ECHO) == "RuntimeError: mine"


def test_an_error_is_tried_once_more_and_not_twice(tmp_path):
    run = RunDir(tmp_path)
    attempts(run, ("error", 4))
    assert may_retry(run, "error", Retry())

    attempts(run, ("error", 5))
    assert not may_retry(run, "error", Retry())


def test_preemption_is_retried_without_limit_while_steps_advance(tmp_path):
    run = RunDir(tmp_path)
    attempts(run, *[("preempted", step) for step in range(10, 200, 10)])

    assert may_retry(run, "preempted", Retry())


def test_a_run_that_makes_no_progress_over_three_attempts_is_given_up(tmp_path):
    run = RunDir(tmp_path)
    attempts(run, ("preempted", 10), ("preempted", 20), ("timeout", 20), ("preempted", 20), ("preempted", 20))

    assert not may_retry(run, "preempted", Retry())


def test_what_a_config_asks_in_vain_is_not_asked_twice(tmp_path):
    assert not may_retry(RunDir(tmp_path), "refused", Retry())


def test_a_person_who_asks_to_stop_is_obeyed(tmp_path):
    assert not may_retry(RunDir(tmp_path), "stopped", Retry())


def test_the_error_of_another_node_counts_and_not_what_it_did_to_the_head(tmp_path):
    (tmp_path / "stderr.log").write_text("RuntimeError: Connection closed by peer [127.0.0.1]:3\n")
    (tmp_path / "stderr_node1.log").write_text("ValueError: the real reason\n")

    assert classify(1, tmp_path) == ("error", "ValueError: the real reason")
