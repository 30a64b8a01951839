"""Whole launches on this machine: real workers, real torchrun, a job that only counts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from launching import steps_of, the_launch, wait_for

from latentbridge.launch.environment import gpu_models
from latentbridge.launch.record import Launch
from latentbridge.launch.status import wait_for_others
from latentbridge.rundir import RunDir, hold_lock, read_json, write_json

REPOSITORY = Path(__file__).parents[2]


def command(*words):
    return [sys.executable, str(REPOSITORY / "launch.py"), *map(str, words)]


def launch(*words):
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, timeout=120)


def latentbridge(*words):
    command = [sys.executable, "-m", "latentbridge.launch.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def counted(project):
    return [path.parent.name for path in project.glob("runs/*/*/count.json")]


def processes_of(project):
    """Pids of live processes that work on this project's runs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(project / "runs") in line:
                found.append(int(entry.name))
    return found


def kill_at_once(pids):
    # as in a power cut: stopped first, so that none sees another die and writes that down
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)


def test_a_launch_ends_with_every_run_done_and_asking_again_submits_nothing(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nseeds: [1, 2]\nruns: {a: {steps: 4}}")

    first = launch("spec")
    again = launch("spec")

    assert first.returncode == 0, first.stderr
    folder = the_launch(project)
    assert {(folder / run / "DONE").exists() for run in ("a-s1", "a-s2")} == {True}
    assert "nothing to run" in again.stdout
    assert len(list((folder / "a-s1" / "attempts").iterdir())) == 1
    # the manifest tells what there was where the launch was made
    opened = read_json(folder / "a-s1" / "attempts" / "1" / "env.json")
    assert opened["versions"]["torch"] == metadata.version("torch")
    assert opened["gpu_models"] == gpu_models()
    assert again.returncode == 0


def test_a_changed_spec_is_another_launch(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {steps: 4}}")
    launch("spec", "--no-submit")
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {steps: 5}}")
    launch("spec", "--no-submit")

    assert len(list(project.glob("runs/s_*"))) == 2


def test_a_run_that_fails_once_is_tried_again_and_both_attempts_are_kept(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {fail_at: 2}}")

    done = launch("spec")

    run = the_launch(project) / "a"
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (read_json(run / "attempts" / n / "exit.json") for n in ("1", "2"))
    assert (first["cause"], first["message"]) == ("error", "ValueError: told to fail at 2")
    assert second["cause"] == "done"


def test_a_run_that_always_fails_is_given_up_and_its_dependent_never_starts(write_spec, project):
    write_spec("""
        name: s
        job: count
        cluster: local
        runs: {a: {fail_at: 2, fail_times: 99}, b: {steps: 4}, c: {steps: 5}}
        needs: {b: [a]}
        """)

    done = launch("spec")

    folder = the_launch(project)
    assert done.returncode == 1
    assert read_json(folder / "a" / "FAILED")["message"] == "ValueError: told to fail at 2"
    assert not (folder / "b" / "attempts").exists()
    assert "b: blocked: needs a (failed)" in done.stdout
    assert (folder / "c" / "DONE").exists()
    assert "told to fail at 2" in done.stdout


@pytest.mark.parametrize("victim", ["launcher", "worker", "everything"])
def test_after_kill_9_the_same_command_finishes_every_run_exactly_once(victim, write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nseeds: [1, 2]\nruns: {a: {steps: 40, step_s: 0.1}}")
    child = subprocess.Popen(command("spec"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(counted(project)) == 2)

    if victim == "launcher":
        child.kill()
    elif victim == "worker":
        worker = next(
            p
            for p in processes_of(project)
            if b"launch.node.worker" in Path(f"/proc/{p}/cmdline").read_bytes()
        )
        os.kill(worker, signal.SIGKILL)
    else:
        kill_at_once([child.pid, *processes_of(project)])
    if victim != "worker":
        child.wait()
        assert launch("spec").returncode == 0
    else:
        assert child.wait(timeout=90) == 0

    folder = the_launch(project)
    for run in ("a-s1", "a-s2"):
        assert steps_of(folder / run) == list(range(1, 41)), "a step was done twice or lost"
        assert (folder / run / "DONE").exists()
    wait_for(lambda: not processes_of(project), 20)


def test_ctrl_c_saves_stops_and_the_same_command_goes_on(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {steps: 30, step_s: 0.1}}")
    child = subprocess.Popen(command("spec"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: counted(project))

    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)

    run = the_launch(project) / "a"
    assert child.returncode == 130
    assert "the same command goes on" in stderr
    assert read_json(run / "STOPPED")["cause"] == "stopped"
    saved = read_json(run / "count.json")["done"]
    assert 0 < saved < 30
    assert launch("spec").returncode == 0
    assert (run / "DONE").exists() and not (run / "STOPPED").exists()


def ranks_of(run):
    return [beat.pid for beat in RunDir(run).beats(run / "attempts" / "1")]


def as_on_another_machine(folder, aside):
    """Copy a launch to new files, which nobody has locked, and have its lock name a host that is gone."""
    shutil.move(folder, aside)
    shutil.copytree(aside, folder)
    lock = folder / "ledger" / "pool.lock"
    write_json(lock, read_json(lock) | {"host": "gone", "space": "another start of it"})
    os.utime(lock, (1, 1))


def test_runs_that_died_while_they_were_asked_to_stop_are_gone_on_with_at_the_next_call(
    write_spec, project, tmp_path
):
    write_spec("name: s\njob: count\ncluster: local\nseeds: [1, 2]\nruns: {a: {steps: 30, step_s: 0.1}}")
    child = subprocess.Popen(command("spec"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(counted(project)) == 2)
    folder = the_launch(project)
    for pid in [*ranks_of(folder / "a-s1"), *ranks_of(folder / "a-s2")]:
        os.kill(pid, signal.SIGSTOP)  # so that neither can save
    child.terminate()
    child.wait()
    wait_for(lambda: len(list(folder.glob("*/attempts/1/signal.json"))) == 2)
    kill_at_once(processes_of(project))
    wait_for(lambda: not processes_of(project))
    assert list(folder.glob("*/attempts/1/exit.json")) == []
    as_on_another_machine(folder, tmp_path / "aside")

    again = launch("spec")

    assert again.returncode == 0, again.stdout + again.stderr
    # what the dead were doing is not said of the living
    first = next(line for line in again.stdout.splitlines() if "runs ended" in line)
    assert first == "0/2 runs ended; a-s1: starting; a-s2: starting"
    assert "waiting for" not in again.stdout
    for run in (folder / "a-s1", folder / "a-s2"):
        ends = [read_json(run / "attempts" / n / "exit.json")["cause"] for n in ("1", "2")]
        assert ends == ["stopped", "done"]
        assert steps_of(run) == list(range(1, 31)), "a step was done twice or lost"


def test_a_run_that_is_still_stopping_is_waited_for_by_name_and_gone_on_with_in_the_same_call(
    write_spec, project
):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {steps: 30, step_s: 0.1}}")
    child = subprocess.Popen(command("spec"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: counted(project))
    run = the_launch(project) / "a"
    (rank,) = ranks_of(run)
    os.kill(rank, signal.SIGSTOP)
    child.kill()
    child.wait()

    again = subprocess.Popen(command("spec"), stdout=subprocess.PIPE, text=True)
    assert any(line == "waiting for a to finish stopping\n" for line in again.stdout)
    assert launch("spec").returncode == 75, "one that waits is at it as well"
    assert len(RunDir(run).list_attempts()) == 1
    os.kill(rank, signal.SIGCONT)
    again.communicate(timeout=60)

    assert again.returncode == 0
    first, second = (read_json(run / "attempts" / n / "exit.json") for n in ("1", "2"))
    assert (first["cause"], second["cause"]) == ("stopped", "done")
    assert first["message"].startswith("saved at update")
    assert steps_of(run) == list(range(1, 31)), "a step was done twice or lost"


def test_a_run_in_the_hands_of_a_person_is_waited_for_until_they_leave_it(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {}, b: {steps: 4}}")
    launch("spec", "--no-submit")
    made = Launch(the_launch(project))
    waits = wait_for_others(made)

    with hold_lock(made.run("b").folder.rank_lock, 0):
        assert next(waits) == "waiting for b: a process is at work on it that this command did not start"

    assert list(waits) == []


def test_a_second_launcher_of_the_same_plan_is_sent_away(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {steps: 30, step_s: 0.1}}")
    child = subprocess.Popen(command("spec"), stdout=subprocess.DEVNULL)
    wait_for(lambda: counted(project))

    second = launch("spec")

    assert second.returncode == 75
    assert f"process {child.pid}" in second.stderr
    assert child.wait(timeout=60) == 0


def test_what_a_failed_run_kept_from_starting_runs_once_that_is_done(write_spec, project):
    text = """
        name: s
        job: count
        cluster: local
        runs: {a: {fail_at: 2, fail_times: 2}, b: {steps: 4}}
        needs: {b: [a]}
        """
    write_spec(text)
    assert launch("spec").returncode == 1

    again = latentbridge("retry", the_launch(project) / "a")

    assert again.returncode == 0, again.stdout + again.stderr
    assert (the_launch(project) / "b" / "DONE").exists()


def test_a_cancelled_run_saves_what_it_has_others_go_on_and_retry_brings_it_back(write_spec, project):
    write_spec("""
        name: s
        job: count
        cluster: local
        runs: {a: {steps: 60, step_s: 0.2}, b: {steps: 25, step_s: 0.2}, c: {steps: 3}}
        """)
    child = subprocess.Popen(command("spec"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: {"a", "b"} <= set(counted(project)))
    folder = the_launch(project)

    for run in ("a", "c"):  # one at work, one that waits for its turn
        assert latentbridge("cancel", folder / run).returncode == 0

    assert child.wait(timeout=90) == 1
    assert (folder / "b" / "DONE").exists()
    assert read_json(folder / "a" / "STOPPED")["cause"] == "cancelled"
    assert 0 < read_json(folder / "a" / "count.json")["done"] < 60
    assert not (folder / "c" / "count.json").exists()
    back = latentbridge("retry", folder / "a", folder / "c")
    assert back.returncode == 0, back.stdout + back.stderr
    assert steps_of(folder / "a") == list(range(1, 61))
    assert (folder / "c" / "DONE").exists()


def test_a_local_launch_inside_an_allocation_leaves_that_job_alone(
    write_spec, project, tmp_path, monkeypatch
):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f"#!/bin/sh\necho $* >> '{tmp_path}/called'\n")
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "777")
    monkeypatch.setenv("SLURM_NODEID", "1")
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {fail_at: 2}}")

    assert launch("spec").returncode == 0

    assert not (tmp_path / "called").exists()


def test_a_launch_folder_of_other_runs_is_not_continued(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {steps: 4}}", name="one")
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {steps: 5}}", name="two")
    launch("one", "--no-submit")

    refused = launch("two", "--continue", the_launch(project))

    assert refused.returncode == 2
    assert "other runs than two.yaml describes" in refused.stderr


def test_going_on_after_an_edit_says_that_the_old_code_runs(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {}}")
    launch("spec", "--no-submit")
    (project / "jobs" / "count.py").write_text((project / "jobs" / "count.py").read_text() + "# edited\n")

    assert "the code here has changed since" in launch("spec").stdout


def test_what_is_asked_of_the_cluster_may_change_between_two_launches_of_a_plan(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {resources.gpus_per_node: 2}}")
    launch("spec", "--no-submit")
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {resources.gpus_per_node: 3}}")

    assert "brought up to date: runs" in launch("spec", "--no-submit").stdout

    assert read_json(the_launch(project) / "plan.json")["runs"][0]["resources"]["gpus_per_node"] == 3


def test_a_run_of_two_nodes_has_all_its_ranks_on_this_machine(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {resources: {nodes: 2, gpus_per_node: 2}}}")

    assert launch("spec").returncode == 0
    assert (the_launch(project) / "a" / "DONE").exists()


def test_a_run_executes_the_code_of_submit_time(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {}}")
    launch("spec", "--no-submit")
    (project / "jobs" / "count.py").write_text("raise SystemExit('edited after the launch')")

    child = subprocess.run(
        [sys.executable, "-m", "latentbridge.launch.node.worker", str(the_launch(project)), "--run", "a"],
        check=False,
    )

    assert child.returncode == 0
    assert (the_launch(project) / "a" / "DONE").exists()


def test_a_run_whose_reference_has_no_value_does_not_keep_the_others_from_starting(write_spec, project):
    write_spec("""
        name: s
        job: count
        cluster: local
        runs:
          chosen: {steps: {best_of: "s_*", metric: loss, mode: min}}
          s_3: {steps: 3}
          s_4: {steps: 4}
          s_5: {steps: 5}
        max_parallel: 1
        """)

    done = launch("spec")

    folder = the_launch(project)
    assert done.returncode == 1
    assert "it has no final evaluation, so nobody can say whether it is best" in done.stderr
    assert [(folder / name / "DONE").exists() for name in ("s_3", "s_4", "s_5")] == [True] * 3
    assert launch("spec").returncode == 1
