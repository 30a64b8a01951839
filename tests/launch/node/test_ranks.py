"""When a worker ends its ranks, and when it has no reason to."""

from __future__ import annotations

import math
import os
import sys
import time

import pytest

from latentbridge.launch.node.ranks import HUNG, Ranks
from latentbridge.rundir import RunDir, write_json


@pytest.fixture
def ranks(tmp_path):
    """Those of a head node, whose silence of 5 s is a hang."""
    folder = RunDir(tmp_path)
    return Ranks(folder, folder.new_attempt(), node=0, hang_timeout_s=5)


def be_silent(ranks, seconds, looked_ago):
    ranks._alive_at = time.monotonic() - seconds
    ranks._looked_at = time.monotonic() - looked_ago


def test_silence_is_a_hang_but_not_that_of_a_worker_that_was_suspended_with_its_ranks(ranks):
    be_silent(ranks, 100, looked_ago=90)
    ranks._look(is_stopping=False)
    assert not (ranks.attempt / HUNG).exists()

    be_silent(ranks, 100, looked_ago=1)
    ranks._look(is_stopping=False)
    assert (ranks.attempt / HUNG).exists()


def test_ranks_whose_attempt_was_given_up_by_others_end_at_once(ranks):
    ranks._look(is_stopping=False)
    assert ranks._deadline == math.inf
    write_json(ranks.attempt / "exit.json", {"cause": "node_fail"})

    ranks._look(is_stopping=False)

    assert ranks._deadline <= time.monotonic()


def test_a_disk_that_stumbles_is_no_reason_to_end_ranks(ranks, monkeypatch):
    failures = [OSError(116, "Stale file handle")] * 3

    def stumble(path):
        if failures:
            raise failures.pop()
        return os_listdir(path)

    os_listdir = os.listdir
    monkeypatch.setattr(os, "listdir", stumble)
    monkeypatch.setattr("latentbridge.launch.node.ranks.LOOK_S", 0.1)

    code = ranks.run([sys.executable, "-c", "import time; time.sleep(1.5)"], os.environ, lambda: None)

    assert (code, failures) == (0, [])
