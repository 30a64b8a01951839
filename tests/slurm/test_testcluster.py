"""What other tests take for granted about slurm/testcluster."""

import os
import runpy
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TESTCLUSTER = Path(__file__).parents[2] / "slurm/testcluster"


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not so within {timeout_s} s"
        time.sleep(0.2)


def submit(cluster, *options: str, script: str) -> str:
    sent = cluster.run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", script)
    assert sent.returncode == 0, sent.stderr
    return sent.stdout.strip()


def sacct_states(cluster, job: str) -> list[str]:
    """State and exit code of every run of a job, oldest first."""
    return cluster.run("sacct", "-nXPD", "-j", job, "-o", "State,ExitCode").stdout.split()


def test_up_leaves_a_whole_cluster_as_it_is(cluster):
    pidfile = cluster.folder / "run/slurmctld.pid"
    before = pidfile.read_text()

    assert f"export SLURM_CONF={cluster.conf}\n" in cluster.testcluster("up")
    assert pidfile.read_text() == before


def test_a_job_runs_with_the_gpus_it_asked_for_and_sacct_keeps_its_exit_code(cluster, tmp_path):
    script = f"echo $CUDA_VISIBLE_DEVICES > {tmp_path}/gpus; exit 7"
    job = submit(cluster, "--gpus-per-node=3", script=script)

    wait_until(lambda: sacct_states(cluster, job) == ["FAILED|7:0"], timeout_s=10)
    assert len((tmp_path / "gpus").read_text().split(",")) == 3


def test_high_partition_requeues_a_job_of_the_low_one(cluster, tmp_path):
    script = f"echo run $SLURM_RESTART_COUNT >> {tmp_path}/runs; sleep 60"
    low = submit(cluster, "--partition=low", "--nodes=3", "--exclusive", script=script)
    wait_until((tmp_path / "runs").exists, timeout_s=10)

    high = cluster.run("srun", "--partition=high", "--nodes=2", "--exclusive", "true")

    assert high.returncode == 0, high.stderr
    wait_until(lambda: "PREEMPTED|0:0" in sacct_states(cluster, low), timeout_s=10)
    wait_until(lambda: (tmp_path / "runs").read_text().splitlines() == ["run", "run 1"], timeout_s=20)
    cluster.run("scancel", low)


@pytest.mark.torture
def test_a_crashed_node_hands_its_job_to_another(cluster, tmp_path):
    # SLURM misses the node after 24 to 36 s
    nodes = tmp_path / "nodes"
    job = submit(cluster, "--nodes=1", script=f"echo $SLURMD_NODENAME >> {nodes}; sleep 60")
    wait_until(nodes.exists, timeout_s=15)
    first = nodes.read_text().strip()

    cluster.crash(first)
    try:
        wait_until(lambda: len(nodes.read_text().split()) == 2, timeout_s=55)
    finally:
        cluster.restore(first)

    assert nodes.read_text().split()[1] != first
    assert any(state.startswith("NODE_FAIL|") for state in sacct_states(cluster, job))
    cluster.run("scancel", job)


def test_without_accounting_jobs_run_and_sacct_refuses(cluster_without_accounting, tmp_path):
    done = cluster_without_accounting.run("srun", "--gpus-per-node=4", "echo", "ran")
    sacct = cluster_without_accounting.run("sacct")

    assert done.stdout == "ran\n", done.stderr
    assert sacct.returncode == 1
    assert "accounting storage is disabled" in sacct.stderr


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Call slurm/testcluster in this process, where root and apt can be faked; returns its exit code."""
    monkeypatch.setenv("SLURM_TEST_DIR", str(tmp_path / "cluster"))

    def call(*argv: str) -> int:
        try:
            return runpy.run_path(str(TESTCLUSTER))["main"](list(argv))
        except SystemExit as end:
            return end.code

    return call


def test_without_root_help_answers_and_up_exits_2(script, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert script("help") == 0
    assert "testcluster crash NODE" in capsys.readouterr().out
    assert script("up") == 2
    assert "root" in capsys.readouterr().err


def test_without_packages_and_apt_up_exits_2_and_leaves_no_folder(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda program, path: None)

    assert script("up") == 2
    assert "there is no apt-get" in capsys.readouterr().err
    assert not (tmp_path / "cluster").exists()
