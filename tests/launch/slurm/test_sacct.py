"""What accounting remembers of tasks that ended without a word."""

from __future__ import annotations

import pytest

from latentbridge.errors import SchedulerError
from latentbridge.launch import slurm
from latentbridge.launch.slurm.sacct import endings


@pytest.fixture
def says(monkeypatch):
    """Set the lines of sacct; returns the calls that were made."""
    calls = []

    def set_lines(*lines):
        def ask(*argv):
            calls.append(argv)
            return list(lines)

        monkeypatch.setattr(slurm, "ask", ask)
        return calls

    return set_lines


def test_a_step_out_of_memory_decides_where_its_job_is_called_merely_failed(says):
    says("7_1|FAILED|1:0", "7_1.batch|FAILED|1:0", "7_1.0|OUT_OF_MEMORY|0:125")

    assert endings(["7_1"])["7_1"] == ("host_oom", "accounting: OUT_OF_MEMORY, exit code 0:125")


def test_a_task_that_is_alive_or_unknown_there_has_no_ending(says):
    calls = says("7_0|RUNNING|0:0", "7_1|CANCELLED by 0|0:0", "7_2||0:0")

    told = endings(["7_0", "7_1", "7_2", "9"])

    assert told == {
        "7_0": None,
        "7_1": ("cancelled", "accounting: CANCELLED by 0, exit code 0:0"),
        "7_2": None,
        "9": None,
    }
    assert len(calls) == 1
    assert "--jobs=7,9" in calls[0], "arrays are asked for as a whole"


def test_silence_says_nothing_about_anybody(monkeypatch):
    def fail(*argv):
        raise SchedulerError("sacct failed")

    monkeypatch.setattr(slurm, "ask", fail)

    assert endings(["7_0"]) == {}
