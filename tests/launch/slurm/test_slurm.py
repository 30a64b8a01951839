"""What is handed on to SLURM's tools, and what their complaints mean."""

from __future__ import annotations

import subprocess
import sys

import pytest

from latentbridge.errors import SchedulerError
from latentbridge.launch import slurm

SHOW = "import os; print(*sorted(k for k in os.environ if k[:3] in ('SLU', 'SBA', 'SQU', 'SAC')))"


def test_a_surrounding_job_is_hidden_but_where_slurm_is_stays_known(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SBATCH_ACCOUNT", "SLURM_CONF", "SQUEUE_FORMAT"):
        monkeypatch.setenv(name, "1")

    assert slurm.ask(sys.executable, "-c", SHOW) == ["SLURM_BITSTR_LEN SLURM_CONF"]


def test_outside_of_jobs_what_the_user_set_for_sbatch_stands(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    monkeypatch.setenv("SACCT_FORMAT", "x")

    assert slurm.ask(sys.executable, "-c", SHOW) == ["SBATCH_ACCOUNT SLURM_BITSTR_LEN"]


def test_a_tool_that_fails_is_named_with_what_it_said():
    with pytest.raises(SchedulerError, match="failed: no such luck; run the same command again later"):
        slurm.ask(sys.executable, "-c", "raise SystemExit('no such  luck')")


def test_a_tool_that_hangs_or_is_missing_did_not_answer():
    with pytest.raises(SchedulerError, match="did not answer"):
        slurm.call(sys.executable, "-c", "import time; time.sleep(60)", patience_s=0.2)
    with pytest.raises(SchedulerError, match="did not answer"):
        slurm.call("no-such-tool")


@pytest.mark.parametrize(
    ("said", "silence"),
    [
        ("Socket timed out on send/recv operation", True),
        ("Unable to contact slurm controller (connect failure)", True),
        ("Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("Slurm backup controller in standby mode", True),
        ("Invalid account or account/partition combination specified", False),
        ("Requested time limit is invalid (missing or exceeds some limit)", False),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", False),
    ],
)
def test_silence_is_told_from_a_no(said, silence):
    assert slurm.is_silence(said) == silence


@pytest.mark.parametrize(("failures", "code", "calls"), [(2, 0, 3), (99, 1, 6)])
def test_nodes_that_have_not_yet_told_a_restarted_controller_what_they_have_are_waited_for(
    monkeypatch, failures, code, calls
):
    made = []

    def call(*argv, patience_s):
        made.append(argv)
        failed = len(made) <= failures
        said = "sbatch: error: Batch job submission failed: Requested node configuration is not available"
        return subprocess.CompletedProcess(argv, int(failed), "", said if failed else "")

    monkeypatch.setattr(slurm, "call", call)
    monkeypatch.setattr(slurm, "SETTLE_S", 0)

    assert (slurm.call_settled("sbatch", "x.sh").returncode, len(made)) == (code, calls)
