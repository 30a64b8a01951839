"""Intents before submissions, and a lock that survives its holder's death but not a live holder."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from latentbridge.errors import LockedError
from latentbridge.launch.ledger import Ledger, lease


def test_an_intent_is_on_disk_before_the_answer_and_the_answer_replaces_it(tmp_path):
    ledger = Ledger(tmp_path)

    intent = ledger.intend(["a", "b", "c"])
    assert ledger.latest()["b"].job_id is None
    ledger.accepted(intent, "71")

    assert ledger.latest()["b"].task_id("b") == "71_1"


def test_a_refused_submission_leaves_the_one_before_it_in_force(tmp_path):
    ledger = Ledger(tmp_path)
    first = ledger.accepted(ledger.intend(["a"]), "5")

    ledger.refused(ledger.intend(["a"]), "no such partition")

    assert ledger.latest()["a"] == first
    assert first.task_id("a") == "5"


def test_a_held_lease_is_refused_naming_its_holder(tmp_path):
    path = tmp_path / "lock"
    with lease(path, "the launch"), pytest.raises(LockedError, match=f"process {os.getpid()} on"):  # noqa: SIM117
        with lease(path, "the launch"):
            pass

    assert not path.exists()


def test_the_lock_of_a_killed_process_of_this_host_is_taken_over_at_once(tmp_path):
    path = tmp_path / "lock"
    script = "from latentbridge.launch.ledger import lease; from pathlib import Path; import os, signal\n"
    script += f"with lease(Path({str(path)!r}), 'x'): os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", script], check=False)
    assert path.exists()

    with lease(path, "the launch"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_the_lock_of_another_host_is_taken_over_only_when_its_lease_ran_out(tmp_path):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "abc"}))
    with pytest.raises(LockedError, match="on elsewhere"), lease(path, "the launch"):
        pass

    old = time.time() - 61
    os.utime(path, (old, old))
    with lease(path, "the launch"):
        pass


def _grab(path, results):
    try:
        with lease(path, "x"):
            results.put("held")
            time.sleep(0.5)
    except LockedError:
        results.put("refused")


def test_of_many_who_find_a_dead_lock_exactly_one_gets_it(tmp_path):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "abc"}))
    os.utime(path, (1, 1))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    takers = [context.Process(target=_grab, args=(path, results)) for _ in range(6)]
    for taker in takers:
        taker.start()
    outcomes = sorted(results.get(timeout=20) for _ in takers)
    for taker in takers:
        taker.join()

    assert outcomes == ["held"] + ["refused"] * 5
