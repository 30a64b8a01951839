"""What ended an attempt, and whether another may cure it."""

from __future__ import annotations

import pytest

from latentbridge.launch.node.causes import classify, last_exception, may_retry
from latentbridge.launch.spec import Retry

TORCHRUN_ECHO = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: jobs/x.py FAILED\n"


@pytest.mark.parametrize(
    ("stderr", "code", "cause", "message"),
    [
        ("ValueError: told to\n" + TORCHRUN_ECHO, 1, "error", "ValueError: told to"),
        ("[rank2]: KeyError: 'loss'\n" + TORCHRUN_ECHO, 1, "error", "KeyError: 'loss'"),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried\n" + TORCHRUN_ECHO,
            1,
            "device_oom",
            "torch.OutOfMemoryError",
        ),
        ("", -9, "killed", "killed by SIGKILL"),
        ("  exitcode  : -9 (pid: 7)\n" + TORCHRUN_ECHO, 1, "killed", "killed by SIGKILL"),
        ("LockedError: rank.lock: another\n" + TORCHRUN_ECHO, 1, "preempted", "another"),
        ("warning: out of memory, retrying\nKeyError: 1\n", 1, "error", "KeyError: 1"),
        ("ConfigError: model 'x' is no folder\n" + TORCHRUN_ECHO, 1, "refused", "no folder"),
        (
            "ncclUnhandledCudaError: Call failed.\nLast error:\nFailed to CUDA calloc async 4 bytes\n",
            1,
            "device_oom",
            "ncclUnhandledCudaError",
        ),
        ("RuntimeError: [enforce] DefaultCPUAllocator: can't allocate memory\n", 1, "host_oom", "allocate"),
        ("Watchdog caught collective operation timeout: x\nSystemExit: 1\n", 1, "hang", "timed out"),
        (
            "KeyError: 1\nRuntimeError: Connection closed by peer\nRuntimeError: NCCL error\n",
            1,
            "error",
            "KeyError: 1",
        ),
        ("  exitcode  : -11 (pid: 7)\n  exitcode  : -15 (pid: 8)\n", 1, "error", "died of SIGSEGV"),
        ("  exitcode  : 3 (pid: 7)\n" + TORCHRUN_ECHO, 1, "error", "a rank exited with code 3"),
        # its worker ended it, for a rank on another node had failed
        ("  exitcode  : 3 (pid: 7)\n", -9, "error", "a rank exited with code 3"),
        ("nothing of note\n", 3, "error", "exited with code 3"),
    ],
)
def test_the_cause_is_read_from_stderr_and_exit_code(tmp_path, stderr, code, cause, message):
    (tmp_path / "stderr.log").write_text(stderr)

    found = classify(code, tmp_path)

    assert found.cause == cause
    assert message in found.message
    assert not found.is_aftermath


def test_torchruns_echo_is_not_mistaken_for_the_error():
    assert last_exception("RuntimeError: mine\n  at x\n" + TORCHRUN_ECHO) == "RuntimeError: mine"


def past(*endings):
    """Exit records from (cause, step) or (cause, step, message), oldest first."""
    return [
        {"cause": ending[0], "step": ending[1], "message": ending[2] if len(ending) > 2 else ""}
        for ending in endings
    ]


def allows(*endings, **rules):
    return may_retry(past(*endings), Retry(**rules))[0]


def test_different_errors_are_tried_again_up_to_their_limit():
    errors = [("error", 4, "KeyError: 1"), ("error", 6, "OSError: 2"), ("error", 9, "OSError: 3")]

    assert allows(*errors, error=3)
    assert not allows(*errors, ("error", 11, "OSError: 4"), error=3)


def test_the_same_error_at_the_same_step_is_not_tried_a_third_time():
    same = ("error", 4, "KeyError: 'x' at 0x7f01")

    assert allows(same, deterministic=1)
    assert not allows(same, ("error", 4, "KeyError: 'x' at 0x7f99"), deterministic=1)
    assert allows(same, ("error", 5, "KeyError: 'x' at 0x7f99"), deterministic=1)
    assert not allows(same, ("preempted", 4), same, deterministic=1), "what came between is not its doing"


def test_preemption_is_retried_without_limit():
    assert allows(*[("preempted", 10)] * 40)


def test_a_run_that_makes_no_progress_over_three_attempts_is_given_up():
    stuck = [("timeout", 10), ("timeout", 20), ("killed", 20), ("timeout", 15)]

    assert allows(*stuck, no_progress=3)
    assert not allows(*stuck, ("hang", 20), no_progress=3)
    assert allows(*stuck, ("hang", 21), no_progress=3)


def test_memory_of_device_and_host_share_one_limit():
    assert not allows(("device_oom", 1), ("host_oom", 2), ("device_oom", 3), oom=2)


@pytest.mark.parametrize("cause", ["refused", "stopped", "cancelled", "budget", "done"])
def test_what_no_attempt_can_cure_or_nobody_wants_is_not_tried_again(cause):
    assert not allows((cause, 4))


def test_the_error_of_another_node_counts_and_not_what_it_did_to_the_head(tmp_path):
    (tmp_path / "stderr.log").write_text("RuntimeError: Connection closed by peer [127.0.0.1]:3\n")
    (tmp_path / "stderr_node1.log").write_text("ValueError: the real reason\n")

    assert classify(1, tmp_path) == ("error", "ValueError: the real reason", False)


def test_ranks_that_only_lost_their_peers_say_nothing_of_the_reason(tmp_path):
    (tmp_path / "stderr.log").write_text("RuntimeError: Connection closed by peer [127.0.0.1]:3\n")

    assert classify(1, tmp_path).is_aftermath


def test_a_kill_by_the_kernel_for_memory_is_told_from_other_kills(tmp_path):
    (tmp_path / "stderr.log").write_text("  exitcode  : -9 (pid: 7)\n" + TORCHRUN_ECHO)

    assert classify(1, tmp_path, oom_kills=1).cause == "host_oom"
    assert classify(1, tmp_path, oom_kills=0).cause == "killed"


def test_a_stranger_that_ran_out_of_memory_on_the_same_host_explains_only_what_has_no_other_reason(tmp_path):
    log = tmp_path / "stderr.log"
    log.write_text("Traceback (most recent call last):\nValueError: told to fail\n")
    assert classify(1, tmp_path, oom_kills=1, kills_are_ours=False).cause == "error"
    assert classify(1, tmp_path, oom_kills=1).cause == "host_oom"
    log.write_text("")

    assert classify(-9, tmp_path, oom_kills=1, kills_are_ours=False).cause == "host_oom"
