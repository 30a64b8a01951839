"""Real training on real SLURM: ranks that know where they are, and weights that survive every interruption.

The toy workload of tests/train under torchrun and DeepSpeed, which take 10 s to start: only with --torture.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
from launching import the_launch, wait_for
from slurm_launching import PROFILE, attempts_of, latentbridge, launch
from training_job import losses_of, updates_of, weights_of, write_training_job

from latentbridge.rundir import read_json

pytestmark = [pytest.mark.torture, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).parents[2]
CHECKPOINT_EVERY = 5
SPEC = "name: s\njob: toy\nbase: toy\nruns: {a: {dropout: 0.3, step_s: 0.2, resources.gpus_per_node: 2}}"


@pytest.fixture(scope="module")
def in_peace(tmp_path_factory) -> dict[str, object]:
    """Losses and final weights of SPEC's run without interruptions; filled by the first test that asks."""
    return {}


@pytest.fixture
def expected(in_peace, slurm_project, write_spec, tmp_path) -> dict[str, object]:
    """The same, with SPEC written and nothing launched."""
    write_training_job(slurm_project)
    write_spec(SPEC)
    if not in_peace:
        done = latentbridge("launch", "spec", "--cluster", "local")
        assert done.returncode == 0, done.stdout + done.stderr
        folder = the_launch(slurm_project)
        in_peace |= {"losses": losses_of(folder / "a"), "weights": weights_of(folder / "a")}
        folder.rename(tmp_path / "in_peace")
    return in_peace


def last_update(run: Path) -> int:
    logs = sorted((run / "attempts").glob("*/stdout.log"), key=lambda log: int(log.parent.name))
    return max(updates_of(logs[-1]), default=0) if logs else 0


def causes(run: Path) -> list[str]:
    return [record["cause"] for record in attempts_of(run)]


def assert_as_in_peace(run: Path, expected: dict[str, object]) -> None:
    assert losses_of(run) == expected["losses"]
    assert weights_of(run) == expected["weights"]


def updates_done_twice(run: Path) -> int:
    """How many updates the second attempt repeated; negative if it left some out."""
    first, second = (updates_of(run / "attempts" / number / "stdout.log") for number in "12")
    return max(first) - min(second) + 1


@pytest.mark.repeats(3)
@pytest.mark.parametrize(("grace_s", "signalled"), [(0, False), (15, True), (15, False), (0, True)])
def test_after_a_preemption_at_any_step_losses_and_weights_are_those_of_a_run_in_peace(
    grace_s, signalled, expected, slurm_project, cluster, preempting, record_property
):
    with preempting(grace_s, signalled) as preempt:
        launch("spec")
        run = the_launch(slurm_project) / "a"
        at = random.randint(1, 35)
        wait_for(lambda: last_update(run) >= at)
        preempt()
        wait_for(lambda: causes(run)[-1:] == ["done"])

    assert causes(run) == ["preempted", "done"]
    assert_as_in_peace(run, expected)
    record_property("updates done twice", updates_done_twice(run))
    assert 0 <= updates_done_twice(run) <= CHECKPOINT_EVERY
    assert all((run / "attempts" / number / "stderr.log").exists() for number in "12")


@pytest.fixture(scope="module")
def tracking(cluster, further_cluster):
    """Clusters by whom a signal to a job reaches: the leader of each task, or every process below it too."""
    return {"cgroup": cluster, "linuxproc": further_cluster("open", nodes=1, cgroup=0)}


@pytest.fixture
def on(tracking, monkeypatch):
    """Have all commands from now on go to one of these clusters; returns it."""

    def choose(name: str):
        monkeypatch.setenv("SLURM_CONF", str(tracking[name].conf))
        return tracking[name]

    return choose


@pytest.mark.repeats(5)
@pytest.mark.parametrize("name", ["USR2", "TERM"])
@pytest.mark.parametrize("reaches", ["cgroup", "linuxproc"])
def test_a_warned_run_leaves_a_whole_checkpoint_and_goes_on_from_it(
    name, reaches, expected, slurm_project, on
):
    cluster = on(reaches)
    launch("spec")
    run = the_launch(slurm_project) / "a"
    at = random.randint(1, 35)
    wait_for(lambda: last_update(run) >= at)

    cluster.run("scancel", f"--signal={name}", f"--name=lb-{run.parent.name}", "--state=RUNNING")

    wait_for(lambda: causes(run)[-1:] == ["done"])
    assert causes(run) == ["timeout" if name == "USR2" else "preempted", "done"]
    assert read_json(run / "attempts" / "1" / "checkpointed.json")["step"] >= at
    assert updates_done_twice(run) == 0
    assert_as_in_peace(run, expected)
    assert "Kill task failed" not in cluster.run("sinfo", "--list-reasons").stdout


@pytest.mark.repeats(10)
@pytest.mark.parametrize("reaches", ["cgroup", "linuxproc"])
def test_a_warned_torchrun_of_the_sbatch_file_for_use_by_hand_leaves_a_whole_checkpoint(
    reaches, expected, slurm_project, on, monkeypatch
):
    cluster = on(reaches)
    monkeypatch.setenv("NUM_GPUS", "2")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch("spec", "--no-submit")
    run = the_launch(slurm_project) / "a"
    log = run / "by_hand.log"
    smaller = ["--gpus-per-node=2", "--cpus-per-task=2", "--mem=4G", "--time=10", f"--output={log}"]
    words = [
        REPOSITORY / "slurm" / "single_node.sbatch",
        slurm_project / "jobs" / "toy.py",
        run / "config.yaml",
    ]

    def submit():
        done = cluster.run("sbatch", "--parsable", "--open-mode=append", *smaller, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def updates():
        return updates_of(log) if log.exists() else []

    first = submit()
    at = random.randint(1, 35)
    wait_for(lambda: max(updates(), default=0) >= at)

    cluster.run("scancel", "--signal=TERM", first)  # as its own --signal=TERM@180 does

    wait_for(lambda: not cluster.run("squeue", "--noheader").stdout.strip())
    assert f"saved at update {max(updates())}" in read_json(run / "STOPPED")["message"]
    submit()
    wait_for(lambda: (run / "DONE").exists())
    assert updates() == list(range(1, 41))
    assert_as_in_peace(run, expected)


@pytest.fixture(scope="module")
def roomy_cluster(further_cluster):
    """Two nodes with room for three jobs of four ranks each."""
    return further_cluster("roomy", nodes=2, gpus=12)


TRUTH = """
    name: s
    job: toy
    base: toy
    resources: {RESOURCES}
    runs:
      zero_1: {seed: 5}
      zero_3: {seed: 6, train.zero_stage: 3}
      plain: {seed: 7, train.engine: torch}
    """


@pytest.mark.repeats(10)
def test_three_jobs_of_two_shared_nodes_and_eight_ranks_compute_what_one_process_does(
    slurm_project, write_spec, roomy_cluster, monkeypatch, tmp_path
):
    write_training_job(slurm_project)
    shims = tmp_path / "shims"
    shims.mkdir()
    for name in ("ssh", "pdsh", "mpirun"):
        (shims / name).write_text(f"#!/bin/sh\ntouch {shims}/used\nexit 1\n")
        (shims / name).chmod(0o755)
    setup = f"setup: ['export PATH={shims}:$PATH']"
    (slurm_project / "slurm" / "test.yaml").write_text(f"{PROFILE}\n{setup}\n")
    monkeypatch.setenv("SLURM_CONF", str(roomy_cluster.conf))
    few = ["--set", "train.steps=12"]
    write_spec(TRUTH.replace("RESOURCES", "nodes: 2, gpus_per_node: 4"))

    submitted = launch("spec", *few)

    assert submitted.returncode == 0, submitted.stderr
    folder = the_launch(slurm_project)
    runs = [folder / name for name in ("zero_1", "zero_3", "plain")]
    wait_for(lambda: all(causes(run) == ["done"] for run in runs), 400)
    began = [read_json(run / "attempts" / "1" / "env.json") for run in runs]
    ended = [attempts_of(run)[0]["ended"] for run in runs]
    assert max(env["started"] for env in began) < min(ended), "all three were at work at once"
    assert {env["nodes"] for env in began} == {"gpu[01-02]"}
    assert len({env["port"] for env in began}) == 3
    for run in runs:
        for rank in range(8):
            told = read_json(run / "ranks" / f"{rank}.json")
            node, local = divmod(rank, 4)
            expected = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": 8, "GROUP_RANK": node}
            assert {name: int(told[name]) for name in expected} == expected
            assert (told["SLURMD_NODENAME"], told["SLURM_NODEID"]) == (f"gpu0{node + 1}", str(node))
    assert not (shims / "used").exists()
    write_spec(TRUTH.replace("RESOURCES", "nodes: 1, gpus_per_node: 1"))
    alone = latentbridge("launch", "spec", *few, "--cluster", "local", "--set", "train.engine=torch", "--new")
    assert alone.returncode == 0, alone.stderr
    (reference,) = [path for path in (slurm_project / "runs").glob("s_*") if path != folder]
    for run in runs:
        assert losses_of(run) == pytest.approx(losses_of(reference / run.name), rel=1e-5)
