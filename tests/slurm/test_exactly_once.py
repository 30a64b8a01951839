"""One cell, one live job: whatever kills the launcher, loses sbatch's answer, or tries at the same time.

Ranks are started by a stand-in for torchrun (fixture `profile`): the launcher is under test, not torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launching import steps_of, the_launch, wait_for
from slurm_launching import (
    archives,
    are_done,
    assert_each_finished_once,
    ended,
    is_empty,
    latentbridge,
    launch,
    start,
    submitted_times,
    tasks,
)

from latentbridge.launch.lease import LEASE_S
from latentbridge.launch.ledger import Ledger
from latentbridge.launch.preserve import verify
from latentbridge.rundir import read_json

SPEC = "name: s\njob: count\nseeds: [1, 2, 3]\nruns: {a: {steps: 3}}"
TOOLS = """
import os, signal
from latentbridge.launch import advance, launcher, lease, ledger, plan, slurm, status, submit

# SLURM shows here at once what it has
status.ANSWER_PATIENCE_S = submit.ANSWER_PATIENCE_S = 4

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def dying(deed, call=1, after=False):
    calls = []
    def done(*words, **named):
        calls.append(words)
        if len(calls) == call and not after:
            die()
        answer = deed(*words, **named)
        if len(calls) == call:
            die()
        return answer
    return done
"""
# where the launcher is killed; its second call of sbatch is for the finishing job
POINTS: dict[str, str] = {
    "plan read": "launcher.find_launch = die",
    "draft half written": "plan.packages = die",
    "draft written": "plan.sync_disk = die",
    "folder renamed": "plan.sync_folder = die",
    "selection written": "launcher.go_on = die",
    "lease taken": "advance.Monitor = die",
    "intent written": "submit._render = die",
    "right before sbatch": "submit._sbatch = die",
    "sbatch accepted, answer unread": "submit._sbatch = dying(submit._sbatch, after=True)",
    "answer read": "ledger.Ledger.accepted = die",
    "answer written": "ledger.Ledger.accepted = dying(ledger.Ledger.accepted, after=True)",
    "finish, intent written": "submit._render = dying(submit._render, call=2)",
    "finish, sbatch accepted, answer unread": "submit._sbatch = dying(submit._sbatch, call=2, after=True)",
    "finish, answer written": "ledger.Ledger.accepted = dying(ledger.Ledger.accepted, call=2, after=True)",
    "submitted": "launcher.display.show_status = die",
}


# the others differ from these by what the launcher had in memory only
OFTEN = (
    "draft written",
    "folder renamed",
    "intent written",
    "sbatch accepted, answer unread",
    "answer written",
)
RARELY = [pytest.param(point, marks=pytest.mark.torture) for point in POINTS if point not in OFTEN]


@pytest.mark.repeats(25)
@pytest.mark.parametrize("point", [*OFTEN, *RARELY])
def test_after_a_kill_the_same_command_makes_every_run_finish_once(
    point, write_spec, slurm_project, profile, cluster
):
    write_spec(SPEC)
    killed = launch("spec", first=TOOLS + POINTS[point])
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    again = launch("spec", first=TOOLS)

    assert again.returncode == 0, again.stderr
    assert_each_finished_once(slurm_project, cluster, steps=3)
    (archive,) = archives(slurm_project)
    wait_for(lambda: is_empty(cluster, the_launch(slurm_project)))
    assert verify(archive) == []
    drafts = [path for path in (slurm_project / "runs").iterdir() if path.name.startswith(f".{archive.name}")]
    assert drafts == []


def test_a_launcher_killed_while_it_went_on_with_a_launch_leaves_it_whole(
    write_spec, slurm_project, profile, cluster
):
    write_spec(SPEC)
    launch("spec", "--no-submit")
    killed = launch("spec", first=TOOLS + "launcher.write_json = dying(launcher.write_json, after=True)")
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    again = launch("spec", first=TOOLS)

    assert again.returncode == 0, again.stderr
    assert_each_finished_once(slurm_project, cluster, steps=3)


REAL = "$(PATH=${PATH#*:} command -v sbatch)"
# what stands in sbatch's place when a script is submitted for the first time
SHIMS = {
    "accepts, then hangs": f'{REAL} "$@" >/dev/null; exec sleep 600',
    "accepts, then times out": (
        f'{REAL} "$@" >/dev/null; '
        'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; '
        "exit 1"
    ),
    "accepts amid noise": (
        'echo "Welcome! Your job 99 was archived."; echo "sbatch: warning: job 7 is old" >&2; '
        f'{REAL} "$@"; echo "Have a nice job 3"'
    ),
    "accepts, prints garbage": f'{REAL} "$@" >/dev/null; printf "\\377job 5\\n"',
    "dies before it asks": "kill -KILL $$",
}


def shim(folder: Path, text: str) -> Path:
    """A folder with an sbatch that does this once, and from then on what the real one does."""
    folder.mkdir()
    script = f"""#!/bin/bash
    case "$*" in *--test-only*) exec {REAL} "$@";; esac
    if mkdir {folder}/used 2>/dev/null; then {text}; else exec {REAL} "$@"; fi
    """
    (folder / "sbatch").write_text(script)
    (folder / "sbatch").chmod(0o755)
    return folder


@pytest.mark.repeats(20)
@pytest.mark.parametrize("kind", SHIMS)
def test_a_lost_late_or_noisy_answer_makes_neither_two_jobs_nor_none(
    kind, write_spec, slurm_project, profile, cluster, tmp_path
):
    write_spec(SPEC)
    impatient = TOOLS + "submit.SBATCH_PATIENCE_S = 3\n"

    first = launch("spec", first=impatient, path=shim(tmp_path / "bin", SHIMS[kind]))

    assert first.returncode == (75 if kind == "dies before it asks" else 0), first.stderr
    again = launch("spec", first=TOOLS)
    assert again.returncode == 0, again.stderr
    assert_each_finished_once(slurm_project, cluster, steps=3)
    assert all(s.job_id for s in Ledger(the_launch(slurm_project)) if not s.refused)


REFUSALS = {
    "Invalid account": 'echo "sbatch: error: Batch job submission failed: Invalid account" >&2; exit 1',
    # SLURM keeps a record of a job that no node can run, with our comment, as if it had failed
    "Requested node configuration is not available": f'exec {REAL} --gpus-per-node=9 "$@"',
}


@pytest.mark.repeats(20)
@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refusal_is_told_at_once_asked_once_and_leaves_nothing_queued(
    reason, write_spec, slurm_project, profile, cluster, tmp_path
):
    write_spec(SPEC)

    # what nodes lack is else asked again for some seconds
    impatient = TOOLS + "slurm.SETTLE_TRIES = 0\n"
    refused = launch("spec", first=impatient, path=shim(tmp_path / "bin", REFUSALS[reason]))

    assert refused.returncode == 2
    assert f"sbatch refused: Batch job submission failed: {reason}" in refused.stderr
    folder = the_launch(slurm_project)
    assert len(list(Ledger(folder))) == 1
    assert not submitted_times(cluster, folder)
    again = launch("spec", first=TOOLS)
    assert "submitted 3 runs" in again.stdout
    assert_each_finished_once(slurm_project, cluster, steps=3)


def test_a_job_that_turns_up_after_it_was_given_up_leaves_its_run_alone(
    write_spec, slurm_project, profile, cluster
):
    write_spec(SPEC)
    hidden = "submit._sbatch = lambda script: (None, 'no answer', False)"
    lost = launch("spec", first=TOOLS + hidden)
    assert lost.returncode == 75
    folder = the_launch(slurm_project)
    (late,) = Ledger(folder)
    launch("spec", first=TOOLS)

    cluster.run("sbatch", folder / "slurm" / late.token / "sbatch.sh")

    wait_for(lambda: are_done(folder) and is_empty(cluster, folder))
    assert len([token for token, _, _ in tasks(cluster, folder) if token == late.token]) == 3
    for seed in (1, 2, 3):
        assert len(list((folder / f"a-s{seed}" / "attempts").iterdir())) == 1


@pytest.mark.repeats(20)
def test_two_launchers_two_watchers_and_two_preservers_at_once_double_and_damage_nothing(
    write_spec, slurm_project, profile, cluster
):
    write_spec("name: s\njob: count\nseeds: [1, 2, 3]\nruns: {a: {steps: 20, step_s: 0.1}}")

    launchers = [start("launch", "spec", "--cluster", "test", first=TOOLS) for _ in range(2)]
    told = [ended(process) for process in launchers]
    folder = the_launch(slurm_project)
    others = [start(word, str(folder)) for word in ("watch", "preserve", "watch", "preserve")]
    results = [ended(process) for process in others]

    assert [result.returncode for result in told] == [0, 0], [result.stderr for result in told]
    assert sum("submitted 3 runs" in result.stdout for result in told) == 1
    assert {result.returncode for result in results[::2]} == {0}, [result.stderr for result in results]
    assert {result.returncode for result in results[1::2]} <= {0, 1}, "1: not all had ended"
    assert_each_finished_once(slurm_project, cluster, steps=20)
    wait_for(lambda: is_empty(cluster, folder))
    assert latentbridge("preserve", folder).returncode == 0
    (archive,) = archives(slurm_project)
    assert verify(archive) == []


@pytest.mark.repeats(2)
def test_a_lock_left_by_a_dead_process_of_another_host_holds_nobody_up_for_a_minute(
    write_spec, slurm_project, profile, cluster, request
):
    write_spec(SPEC)
    launch("spec", "--no-submit")
    lock = the_launch(slurm_project) / "ledger" / "lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "born": "1", "token": "abc"}))
    began = time.time()
    silent_s = 0 if request.config.getoption("torture", False) else LEASE_S - 6
    os.utime(lock, (began - silent_s, began - silent_s))

    again = launch("spec")

    assert again.returncode == 0, again.stderr
    assert time.time() - began < 60
    assert_each_finished_once(slurm_project, cluster, steps=3)


def test_the_same_command_while_pending_running_and_ended_submits_nothing_and_says_so(
    write_spec, slurm_project, profile, cluster
):
    write_spec("name: s\njob: count\nruns: {a: {steps: 40, step_s: 0.1}, b: {steps: 2}}")
    cluster.run("scontrol", "update", "NodeName=gpu[01-03]", "State=DRAIN", "Reason=test")
    try:
        launch("spec")
        folder = the_launch(slurm_project)
        pending = launch("spec")
    finally:
        cluster.run("scontrol", "update", "NodeName=gpu[01-03]", "State=RESUME")
    wait_for(lambda: (folder / "a" / "count.json").exists())
    running = launch("spec")
    wait_for(lambda: archives(slurm_project))
    ended_all = launch("spec")

    for answer in (pending, running, ended_all):
        assert answer.returncode == 0, answer.stderr
        assert "nothing to submit" in answer.stdout
    assert submitted_times(cluster, folder) == {"a": 1, "b": 1, "(finish)": 1}


def test_after_one_cell_was_changed_only_that_one_is_submitted_though_the_other_is_still_at_work(
    write_spec, slurm_project, profile, cluster
):
    spec = "name: s\njob: count\nruns: {a: {steps: 80, step_s: 0.1}, b: {steps: %d}}"
    write_spec(spec % 2)
    launch("spec")
    first = the_launch(slurm_project)
    wait_for(lambda: (first / "b" / "DONE").exists() and (first / "a" / "count.json").exists())

    write_spec(spec % 5)
    changed = launch("spec")

    assert changed.returncode == 0, changed.stderr
    assert "submitted 1 runs" in changed.stdout
    assert not (first / "a" / "DONE").exists()
    (second,) = [path for path in (slurm_project / "runs").glob("s_*") if path != first]
    # nobody looks after it: the job that comes last waits for the other launch too
    wait_for(lambda: are_done(second) and len(archives(slurm_project)) == 2)
    wait_for(lambda: is_empty(cluster, second))
    assert read_json(second / "a" / "DONE")["taken_from"] == f"{first.name}/a"
    assert steps_of(second / "a") == list(range(1, 81))
    assert {**submitted_times(cluster, second)}.keys() == {"b", "(finish)"}
    assert submitted_times(cluster, first) == {"a": 1, "b": 1, "(finish)": 1}
    assert all(verify(archive) == [] for archive in archives(slurm_project))
    again = launch("spec")
    assert (again.returncode, "nothing to submit" in again.stdout) == (0, True)


def pid_of(cluster, daemon: str) -> int:
    return int((cluster.folder / "run" / f"{daemon}.pid").read_text().split("\n")[0])


@contextmanager
def silent(cluster, daemon: str) -> Iterator[None]:
    """One of SLURM's daemons does not answer, nor does it refuse."""
    pid = pid_of(cluster, daemon)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def down(cluster, daemon: str) -> Iterator[None]:
    """One of SLURM's daemons is not there; whoever calls it is refused."""
    proc = Path(f"/proc/{pid_of(cluster, daemon)}")
    command = (proc / "cmdline").read_text().rstrip("\0").split("\0")
    lines = (proc / "environ").read_text().split("\0")
    environ = dict(line.split("=", 1) for line in lines if "=" in line)
    os.kill(pid_of(cluster, daemon), signal.SIGTERM)
    # it may stay as a zombie
    wait_for(lambda: not proc.exists() or not (proc / "cmdline").read_bytes())
    try:
        yield
    finally:
        subprocess.run(command, env=environ, check=True, capture_output=True, timeout=60)
        wait_for(lambda: Path(f"/proc/{pid_of(cluster, daemon)}").exists())


OUTAGES = [silent, pytest.param(down, marks=pytest.mark.torture)]


def outage_seconds(request, otherwise: int) -> int:
    return 60 if request.config.getoption("torture", False) else otherwise


@pytest.mark.repeats(3)
@pytest.mark.parametrize("outage", OUTAGES, ids=["silent", "down"])
def test_while_the_controller_is_away_nothing_is_marked_wrongly_and_then_all_goes_on(
    outage, write_spec, slurm_project, profile, cluster, request, record_property
):
    outage_s = outage_seconds(request, 8)
    steps = 20 * (outage_s + 12)
    write_spec(f"name: s\njob: count\nseeds: [1, 2]\nruns: {{a: {{steps: {steps}, step_s: 0.05}}}}")
    launch("spec")
    folder = the_launch(slurm_project)
    wait_for(lambda: len(list(folder.glob("a-s*/count.json"))) == 2)
    watcher = start("watch", str(folder))

    with outage(cluster, "slurmctld"):
        until = time.monotonic() + outage_s
        asked = start("status", str(folder), "--json")
        told = launch("spec")
        shown = ended(asked)
        time.sleep(max(0.0, until - time.monotonic()))

    polls = 1
    while any(phase == "unknown" for phase in phases(folder)):
        polls += 1
    record_property("polls until all is known again", polls)
    assert polls <= 2
    assert told.returncode == 75, told.stderr
    assert {run["phase"] for run in json.loads(shown.stdout)["runs"]} <= {"running", "unknown", "done"}
    watched = ended(watcher)
    assert watched.returncode == 0, watched.stderr
    assert not any(word in watched.stdout for word in (": lost", ": failed", ": cancelled", ": stopped"))
    assert_each_finished_once(slurm_project, cluster, steps)


def phases(folder: Path) -> list[str]:
    return [run["phase"] for run in json.loads(latentbridge("status", folder, "--json").stdout)["runs"]]


@pytest.mark.torture
@pytest.mark.repeats(3)
@pytest.mark.parametrize("outage", OUTAGES, ids=["silent", "down"])
def test_a_launch_that_finds_no_controller_gives_up_and_the_same_command_submits_once(
    outage, write_spec, slurm_project, profile, cluster, request
):
    write_spec(SPEC)
    with outage(cluster, "slurmctld"):
        told = launch("spec")

    assert told.returncode == 75, told.stderr
    again = launch("spec")
    assert again.returncode == 0, again.stderr
    assert_each_finished_once(slurm_project, cluster, steps=3)


@pytest.mark.torture
@pytest.mark.repeats(3)
@pytest.mark.parametrize("outage", OUTAGES, ids=["silent", "down"])
def test_while_the_accounting_database_is_away_runs_end_as_they_do_otherwise(
    outage, write_spec, slurm_project, profile, cluster, request
):
    outage_s = outage_seconds(request, 5)
    write_spec(f"name: s\njob: count\nseeds: [1, 2]\nruns: {{a: {{steps: {10 * outage_s}, step_s: 0.05}}}}")
    with outage(cluster, "slurmdbd"):
        until = time.monotonic() + outage_s
        launched = launch("spec")
        watched = latentbridge("watch", the_launch(slurm_project))
        time.sleep(max(0.0, until - time.monotonic()))

    assert launched.returncode == 0, launched.stderr
    assert watched.returncode == 0, watched.stderr
    assert_each_finished_once(slurm_project, cluster, steps=10 * outage_s)
