"""A lock that survives its holder's death but not a live holder."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest
from launching import wait_for

from latentbridge.errors import LockedError
from latentbridge.launch import lease as lease_module
from latentbridge.launch.lease import await_sign, find_unsure, lease


def test_a_held_lease_is_refused_naming_its_holder(tmp_path):
    path = tmp_path / "lock"
    with lease(path, "the launch"), pytest.raises(LockedError, match=f"process {os.getpid()} on"):  # noqa: SIM117
        with lease(path, "the launch"):
            pass

    assert not path.exists()


def test_the_lock_of_a_killed_process_of_this_host_is_taken_over_at_once(tmp_path):
    path = tmp_path / "lock"
    script = "from latentbridge.launch.lease import lease; from pathlib import Path; import os, signal\n"
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


def test_who_waits_for_a_lease_gets_it_when_it_is_released(tmp_path):
    path = tmp_path / "lock"
    script = "from latentbridge.launch.lease import lease; from pathlib import Path; import time\n"
    script += f"with lease(Path({str(path)!r}), 'x'): time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", script]):
        while not path.exists():
            time.sleep(0.01)
        with lease(path, "the launch", patience_s=20):
            assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("is_alive", [True, False])
def test_of_a_holder_elsewhere_a_sign_of_life_or_a_whole_lease_of_silence_is_awaited(
    is_alive, tmp_path, monkeypatch
):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "abc"}))
    monkeypatch.setattr(lease_module, "LEASE_S", 600 if is_alive else 1)
    if is_alive:
        threading.Timer(0.5, os.utime, [path]).start()
    assert find_unsure(path) == "process 1 on elsewhere"

    await_sign(path)

    if is_alive:
        assert find_unsure(path)
        with pytest.raises(LockedError), lease(path, "the launch"):
            pass
    else:
        with lease(path, "the launch"):
            pass


def test_who_holds_a_lock_here_is_known_and_needs_to_give_no_sign(tmp_path):
    path = tmp_path / "lock"
    assert find_unsure(path) is None

    with lease(path, "the launch"):
        assert find_unsure(path) is None


def test_a_recycled_process_id_does_not_keep_a_lock_alive(tmp_path):
    path = tmp_path / "lock"
    with lease(path, "the launch"):
        holder = json.loads(path.read_text())
    path.write_text(json.dumps(holder | {"born": "another start"}))

    with lease(path, "the launch"):
        pass


def test_a_holder_that_was_taken_over_is_told_before_its_next_deed(tmp_path):
    path = tmp_path / "lock"
    with lease(path, "the launch") as held:
        held.check()
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "abc"}))
        with pytest.raises(LockedError, match="another has taken over"):
            held.check()

    assert path.exists(), "the lock is someone else's now"


def test_a_clock_that_is_wrong_by_hours_makes_no_lock_look_dead(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "abc"}))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)

    with pytest.raises(LockedError), lease(path, "the launch"):
        pass


@pytest.mark.timeout(20)
def test_a_lock_that_cannot_be_read_is_waited_for_without_haste_and_freed_when_it_is_old(tmp_path):
    path = tmp_path / "lock"
    path.write_text("")
    began = time.process_time()

    with pytest.raises(LockedError, match="process unknown on an unknown host"):  # noqa: SIM117
        with lease(path, "the launch", patience_s=1):
            pass

    assert time.process_time() - began < 0.5
    os.utime(path, (1, 1))
    with lease(path, "the launch"):
        pass


def test_a_disk_that_stumbles_once_does_not_end_the_keeping_of_a_lock(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    touch, failures = os.utime, [OSError(116, "Stale file handle")]

    def stumble(*words):
        if failures:
            raise failures.pop()
        touch(*words)

    monkeypatch.setattr(lease_module, "RENEW_S", 0.05)
    monkeypatch.setattr(os, "utime", stumble)
    with lease(path, "the launch"):
        touch(path, (1, 1))
        wait_for(lambda: path.stat().st_mtime > 1, 5)


def test_a_process_of_another_container_on_a_host_of_the_same_name_is_not_taken_for_dead(tmp_path):
    path = tmp_path / "lock"
    with lease(path, "the launch"):
        holder = json.loads(path.read_text())
    path.write_text(json.dumps(holder | {"space": "another container", "pid": 4_000_000}))

    with pytest.raises(LockedError), lease(path, "the launch"):
        pass


def test_a_live_process_that_proc_hides_is_not_taken_for_dead(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    with lease(path, "the launch"):
        holder = json.loads(path.read_text())
    path.write_text(json.dumps(holder | {"pid": 1, "born": "1"}))
    monkeypatch.setattr(lease_module, "_born", lambda pid: "")

    def refuse(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)

    with pytest.raises(LockedError), lease(path, "the launch"):
        pass
