"""Launches on real SLURM daemons, with a job that only counts: exactly once, whatever dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import steps_of, the_launch, wait_for

from latentbridge.launch.preserve import verify
from latentbridge.rundir import read_json

REPOSITORY = Path(__file__).parents[2]
PROFILE = (REPOSITORY / "slurm" / "test.yaml").read_text()


@pytest.fixture
def slurm_project(cluster, project, monkeypatch):
    """The counting project with the test profile; its jobs leave the queue before the next test."""
    (project / "slurm" / "test.yaml").write_text(PROFILE)
    yield project
    cluster.run("scancel", "--user=root")
    wait_for(lambda: not cluster.run("squeue", "--noheader").stdout.strip())


def launch(*words):
    command = [sys.executable, str(REPOSITORY / "launch.py"), *words, "--cluster", "test"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def archives(project):
    return [path for path in (project / "preserved_data").glob("s_*[0-9]") if path.is_dir()]


def test_arrays_dependencies_and_two_nodes_end_in_a_verified_archive(write_spec, slurm_project):
    write_spec("""
        name: s
        job: count
        seeds: [1, 2]
        runs:
          first: {steps: 4, fail_at: 2}
          wide: {steps: 6, resources: {nodes: 2, gpus_per_node: 2}}
          second: {steps: 5}
        needs: {second: [first]}
        """)

    submitted = launch("spec")

    assert submitted.returncode == 0, submitted.stderr
    folder = the_launch(slurm_project)
    wait_for(lambda: archives(slurm_project))
    for name in ("first-s1", "first-s2", "wide-s1", "wide-s2", "second-s1", "second-s2"):
        assert (folder / name / "DONE").exists(), name
    causes = [
        [
            read_json(attempt / "exit.json")["cause"]
            for attempt in sorted((folder / name / "attempts").iterdir())
        ]
        for name in ("first-s1", "first-s2", "wide-s1", "wide-s2")
    ]
    assert causes == [["error", "done"], ["error", "done"], ["done"], ["done"]], (
        "only what failed is requeued"
    )
    first_done = read_json(folder / "first-s1" / "DONE")["finished_at"]
    second_began = read_json(folder / "second-s1" / "attempts" / "1" / "env.json")["started"]
    assert second_began > first_done
    assert verify(archives(slurm_project)[0]) == []


def test_what_sbatch_got_is_what_the_dry_run_shows(write_spec, slurm_project):
    write_spec("name: s\njob: count\nseeds: [1, 2, 3]\nruns: {a: {steps: 3}}")
    shown = launch("spec", "--dry-run").stdout

    launch("spec")

    folder = the_launch(slurm_project)
    (token,) = [
        path.stem for path in (folder / "ledger").glob("*.json") if read_json(path)["runs"][0] == "a-s1"
    ]
    (deed,) = (folder / "slurm" / token).glob("[0-9]*_submission.sh")
    told = deed.read_text().replace(token, "TOKEN").replace(folder.name, "s_STAMP")
    assert told.strip() in shown


def test_a_preempted_run_is_requeued_goes_on_and_keeps_both_attempts(write_spec, slurm_project, cluster):
    write_spec("name: s\njob: count\nruns: {a: {steps: 60, step_s: 0.2}}")
    launch("spec")
    run = the_launch(slurm_project) / "a"
    wait_for(lambda: (run / "count.json").exists())

    pushed = cluster.run(
        "sbatch", "--partition=high", "--exclusive", "--nodes=3", "--output=/dev/null", "--wrap=sleep 1"
    )

    assert pushed.returncode == 0, pushed.stderr
    wait_for(lambda: (run / "DONE").exists())
    assert len(list((run / "attempts").iterdir())) == 2
    assert read_json(run / "attempts" / "1" / "exit.json")["cause"] in ("stopped", "preempted")
    assert steps_of(run) == list(range(1, 61))


def test_a_run_warned_of_its_time_limit_saves_requeues_itself_and_goes_on(write_spec, slurm_project, cluster):
    write_spec("name: s\njob: count\nseeds: [1, 2]\nruns: {a: {steps: 60, step_s: 0.2}}")
    launch("spec")
    folder = the_launch(slurm_project)
    wait_for(lambda: len(list(folder.glob("a-s*/count.json"))) == 2)
    # the second task's id is the array's own: only this task may start again
    array = cluster.run("squeue", "--noheader", "--array", "--states=R", "--format=%F").stdout.split()[0]

    warned = cluster.run("scancel", "--signal=USR2", f"{array}_1")  # as sbatch --signal does

    assert warned.returncode == 0, warned.stderr
    wait_for(lambda: all((folder / f"a-s{seed}" / "DONE").exists() for seed in (1, 2)))
    first = read_json(folder / "a-s2" / "attempts" / "1" / "exit.json")
    assert first["cause"] == "timeout"
    assert 0 < first["step"] < 60
    assert [len(list((folder / f"a-s{seed}" / "attempts").iterdir())) for seed in (1, 2)] == [1, 2]
    assert steps_of(folder / "a-s2") == list(range(1, 61))


def test_an_answer_of_sbatch_lost_with_the_launcher_makes_neither_an_orphan_nor_a_double(
    write_spec, slurm_project, cluster
):
    write_spec("name: s\njob: count\nseeds: [1, 2, 3]\nruns: {a: {steps: 30, step_s: 0.2}}")
    script = (
        "import os, signal, sys; from latentbridge.launch import cli, ledger\n"
        "ledger.Ledger.accepted = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cli.main(['launch', 'spec', '--cluster', 'test'])"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert killed.returncode == -9

    again = launch("spec")

    assert again.returncode == 0, again.stderr
    assert "nothing to submit" in again.stdout
    queued = cluster.run("squeue", "--noheader", "--array", "--format=%i").stdout.split()
    assert len([job for job in queued if "_" in job]) == 3, "beside them only the job that preserves"
    folder = the_launch(slurm_project)
    wait_for(lambda: all((folder / f"a-s{seed}" / "DONE").exists() for seed in (1, 2, 3)))
    for seed in (1, 2, 3):
        assert steps_of(folder / f"a-s{seed}") == list(range(1, 31))
    wait_for(lambda: archives(slurm_project))


def test_an_error_on_the_second_node_is_recorded_with_its_reason_and_retried(write_spec, slurm_project):
    write_spec("""
        name: s
        job: count
        runs:
          a: {steps: 250, step_s: 0.1, fail_at: 2, fail_rank: 1, resources: {nodes: 2, gpus_per_node: 1}}
        """)
    launch("spec")
    run = the_launch(slurm_project) / "a"
    wait_for(lambda: (run / "DONE").exists())

    first = read_json(run / "attempts" / "1" / "exit.json")
    assert (first["cause"], first["message"]) == ("error", "ValueError: told to fail at 2")


def test_a_request_slurm_refuses_is_told_in_its_words_and_can_be_mended(write_spec, slurm_project):
    write_spec("name: s\njob: count\nruns: {a: {resources.gpus_per_node: 9}}")

    refused = launch("spec")

    assert refused.returncode == 2
    assert "Requested node configuration is not available" in refused.stderr
    assert not (the_launch(slurm_project) / "a" / "attempts").exists()
    write_spec("name: s\njob: count\nruns: {a: {resources.gpus_per_node: 3}}")

    mended = launch("spec")

    assert mended.returncode == 0, mended.stderr
    wait_for(lambda: (the_launch(slurm_project) / "a" / "DONE").exists())


def test_after_every_node_was_lost_the_same_command_finishes_every_run_once(
    write_spec, slurm_project, cluster
):
    write_spec("name: s\njob: count\nseeds: [1, 2]\nruns: {a: {steps: 50, step_s: 0.2}}")
    launch("spec")
    folder = the_launch(slurm_project)
    wait_for(lambda: len(list(folder.glob("a-s*/count.json"))) == 2)

    # a new cluster that knows nothing of the old one's jobs
    cluster.testcluster("down")
    cluster.testcluster("up")
    again = launch("spec")

    assert again.returncode == 0, again.stderr
    assert "submitted 2 runs" in again.stdout
    wait_for(lambda: all((folder / f"a-s{seed}" / "DONE").exists() for seed in (1, 2)))
    for seed in (1, 2):
        assert steps_of(folder / f"a-s{seed}") == list(range(1, 51))
    assert os.environ["SLURM_CONF"] == str(cluster.conf)
