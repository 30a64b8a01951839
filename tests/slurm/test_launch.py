"""Launches on real SLURM daemons, with a job that only counts."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
from launching import steps_of, the_launch, wait_for
from slurm_launching import archives, latentbridge, launch

from latentbridge.launch.preserve import verify
from latentbridge.rundir import read_json


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


def test_what_sbatch_got_is_what_the_dry_run_shows_and_a_sound_shell_script(
    write_spec, slurm_project, cluster
):
    write_spec("name: s\njob: count\nseeds: [1, 2, 3]\nruns: {a: {steps: 3}}")
    shown = launch("spec", "--dry-run").stdout

    launch("spec")

    folder = the_launch(slurm_project)
    (token,) = [
        path.stem
        for path in (folder / "ledger" / "submissions").glob("*.json")
        if read_json(path)["runs"][0] == "a-s1"
    ]
    deed = folder / "slurm" / token / "sbatch.sh"
    told = deed.read_text().replace(token, "TOKEN").replace(folder.name, "s_STAMP")
    assert told.strip() in shown
    job = read_json(folder / "ledger" / "submissions" / f"{token}.json")["job_id"]
    assert (
        cluster.run("scontrol", "write", "batch_script", job, "-").stdout.strip() == deed.read_text().strip()
    )
    for script in folder.glob("slurm/*/sbatch.sh"):
        assert cluster.run("bash", "-n", script).stderr == ""


def test_a_run_warned_of_its_time_limit_saves_requeues_itself_and_goes_on(
    write_spec, slurm_project, profile, cluster
):
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


def test_a_job_that_finds_no_interpreter_or_no_launch_folder_where_it_starts_says_so(
    write_spec, slurm_project, profile, cluster, tmp_path
):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    profile(python=str(python))
    folders = []
    cluster.run("scontrol", "update", "NodeName=gpu[01-03]", "State=DRAIN", "Reason=test")
    for name in ("s", "t"):
        write_spec(f"name: {name}\njob: count\nruns: {{a: {{steps: 3}}}}")
        assert launch("spec").returncode == 0
        (folder,) = (slurm_project / "runs").glob(f"{name}_*")
        folders.append(folder)
    first, second = folders
    away = second.rename(tmp_path / "away")
    python.unlink()

    cluster.run("scontrol", "update", "NodeName=gpu[01-03]", "State=RESUME")

    wait_for(lambda: not cluster.run("squeue", "--noheader").stdout.strip())
    # SLURM 24.11 makes the folder of a job's log where it is missing
    shutil.rmtree(second, ignore_errors=True)
    away.rename(second)
    for folder, words in (
        (first, f"{python}: No such file or directory"),
        (second, f"is {second} there, on gpu0"),
    ):

        def told(folder=folder):
            (run,) = json.loads(latentbridge("status", folder, "--json").stdout)["runs"]
            return run if run["phase"] == "lost" else None

        wait_for(told)
        assert told()["cause"] == "error"
        assert "its worker never started: " in told()["detail"]
        assert words in told()["detail"]
        explained = latentbridge("explain", folder / "a").stdout
        assert words in explained
        assert "by `latentbridge watch`, or by `" in explained
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for folder in folders:
        watched = latentbridge("watch", folder)
        assert watched.returncode == 0, watched.stdout + watched.stderr
        causes = [read_json(folder / "a" / "attempts" / n / "exit.json")["cause"] for n in "12"]
        assert causes == ["error", "done"]


def test_a_job_cancelled_while_its_worker_still_starts_stays_cancelled(
    write_spec, slurm_project, profile, cluster, tmp_path
):
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *node.worker*) sleep 30;; esac\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    profile(python=str(slow))
    write_spec("name: s\njob: count\nruns: {a: {steps: 3}}")
    launch("spec")
    folder = the_launch(slurm_project)
    wait_for(lambda: list(folder.glob("slurm/*/*.err")))
    # its shell may speak before SLURM holds it for running, and then it would not be asked to end
    wait_for(lambda: "RUNNING" in cluster.run("squeue", "--noheader", "--format=%T").stdout.split())

    cluster.run("scancel", f"--name=lb-{folder.name}", "--state=RUNNING")

    wait_for(lambda: archives(slurm_project))
    assert read_json(folder / "a" / "STOPPED")["cause"] == "cancelled"
    assert len(list((folder / "a" / "attempts").iterdir())) == 1
    assert "nothing to submit" in launch("spec").stdout


@pytest.mark.torture
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


def test_a_request_that_cannot_be_met_is_told_before_anything_is_made_and_can_be_mended(
    write_spec, slurm_project
):
    write_spec("name: s\njob: count\nruns: {a: {resources.gpus_per_node: 9}}")

    refused = launch("spec")

    assert refused.returncode == 2
    assert "spec.yaml:3: run 'a': 9 GPUs on each of 1 nodes" in refused.stderr
    assert not list((slurm_project / "runs").glob("s_*"))
    write_spec("name: s\njob: count\nruns: {a: {resources.gpus_per_node: 3}}")

    mended = launch("spec")

    assert mended.returncode == 0, mended.stderr
    wait_for(lambda: (the_launch(slurm_project) / "a" / "DONE").exists())


@pytest.mark.torture
def test_after_every_node_was_lost_the_same_command_finishes_every_run_once(
    write_spec, slurm_project, profile, cluster
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
