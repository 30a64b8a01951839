"""What a rank leaves in its attempt: that it lives, and where it stands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import wait_for

from latentbridge import job
from latentbridge.config import JobConfig
from latentbridge.job import ATTEMPT_VARIABLE, Run
from latentbridge.rundir import RunDir
from latentbridge.train import distributed


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = RunDir(tmp_path)
    return Run(folder, folder.new_attempt())


def _age(run: Run) -> float:
    (beat,) = run.folder.beats(run.attempt)
    return beat.age_s


def _grow_old(run: Run) -> None:
    path = run.folder.beat_file(run.attempt, run.rank)
    os.utime(path, (time.time() - 100, time.time() - 100))


def _fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_a_rank_says_which_process_it_is_and_on_which_node(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    attempt = folder.new_attempt()

    def announce() -> None:
        os.environ.update(RANK="5", GROUP_RANK="1")
        Run(folder, attempt).announce()

    child = _fork(announce)
    os.waitpid(child, 0)

    assert [beat[:3] for beat in folder.beats(attempt)] == [(5, child, 1)]


@pytest.mark.parametrize(
    "call", [Run.beat, lambda run: run.log({"step": 1}), lambda run: run.progress("training", 1, 9)]
)
@pytest.mark.parametrize("rank", ["0", "3"])
def test_whatever_a_rank_reports_it_beats_but_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, call: Callable[[Run], None]
) -> None:
    monkeypatch.setenv("RANK", rank)
    clock = [1000.0]
    monkeypatch.setattr("latentbridge.job.time.monotonic", lambda: clock[0])
    folder = RunDir(tmp_path)
    run = Run(folder, folder.new_attempt())
    path = folder.beat_file(run.attempt, run.rank)
    path.parent.mkdir()
    path.write_text('{"pid": 1, "node": 0, "rank": 0}')

    ages = []
    for passed_s in (0.0, 1.9, 0.2):
        clock[0] += passed_s
        _grow_old(run)
        call(run)
        ages.append(_age(run) > 50)

    assert ages == [False, True, False]


def test_a_run_by_hand_leaves_nothing_and_goes_on(tmp_path: Path) -> None:
    run = Run(RunDir(tmp_path))
    run.announce()
    run.beat()

    assert list(tmp_path.iterdir()) == []


def test_a_beat_that_cannot_be_written_ends_nothing(run: Run) -> None:
    run.beat()

    assert run.folder.beats(run.attempt) == []


def test_a_rank_that_sleeps_shows_the_stack_of_every_thread_and_sleeps_on(run: Run) -> None:
    def oversleeps() -> None:
        run.announce()
        threading.Thread(target=waits_aside, daemon=True).start()
        time.sleep(60)

    def waits_aside() -> None:
        threading.Event().wait(60)

    child = _fork(oversleeps)
    stacks = run.folder.stack_file(run.attempt, 0)
    wait_for(lambda: run.folder.beats(run.attempt), 20)
    # it may not have fallen asleep yet at the first
    wait_for(lambda: _ask(child, stacks).count("in oversleeps") > 2, 20)

    assert "in waits_aside" in stacks.read_text()
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _ask(process: int, stacks: Path) -> str:
    """Everything that a process has told so far, after asking it once more."""
    os.kill(process, signal.SIGQUIT)
    time.sleep(0.05)
    return stacks.read_text()


def test_a_rank_that_waits_in_a_collective_shows_where_and_joins_it_later(ranks, tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    attempt = folder.new_attempt()

    def wait_or_ask() -> str:
        run = Run(folder, attempt)
        run.announce()
        distributed.init()
        stacks = folder.stack_file(attempt, 0)
        if not run.is_main:
            wait_for(lambda: "in barrier" in _ask(folder.beats(attempt)[0].pid, stacks), 20)
        distributed.barrier()
        return stacks.read_text()

    waited, asked = ranks(wait_or_ask)

    assert "in wait_or_ask" in waited
    assert waited == asked
    assert folder.stack_file(attempt, 1).read_text() == ""


def test_a_rank_that_ends_leaves_its_beat_and_no_empty_stacks(project: Path) -> None:
    folder = RunDir(project / "runs" / "a-s1")
    folder.path.mkdir(parents=True)
    folder.config.write_text("seed: 1\nsteps: 2\n")
    attempt = folder.new_attempt()

    subprocess.run(
        [sys.executable, project / "jobs" / "count.py", "--config", folder.config],
        env={**os.environ, ATTEMPT_VARIABLE: str(attempt), "PYTHONPATH": str(project)},
        check=True,
    )

    assert folder.state == "DONE"
    assert folder.read_progress()["done"] == 2
    assert [beat.rank for beat in folder.beats(attempt)] == [0]
    assert list(folder.stack_file(attempt, 0).parent.iterdir()) == []


def test_the_manifest_tells_a_run_how_often_to_back_off(run: Run) -> None:
    assert run.backoff == 0
    run.folder.write_manifest({"backoff": 2})

    assert run.backoff == 2


def test_a_rank_is_found_before_its_training_begins(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunDir(project / "runs" / "a-s1")
    folder.path.mkdir(parents=True)
    folder.config.write_text("seed: 1\n")
    attempt = folder.new_attempt()
    monkeypatch.setenv(ATTEMPT_VARIABLE, str(attempt))

    def train(config: object, run: Run) -> dict[str, int]:
        (project / "seen").write_text(str(len(run.folder.beats(attempt))))
        return {}

    # forked: it takes over the handling of signals
    child = _fork(lambda: job.main(JobConfig, train, ["--config", str(folder.config)]))
    os.waitpid(child, 0)

    assert (project / "seen").read_text() == "1"


def test_a_disk_that_stumbles_ends_no_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(path: Path, record: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(job, "write_json", stumble)

    run.progress("training", 1, 2)


@pytest.mark.parametrize(
    ("off", "left_out"), [([], False), (["labels"], False), (["gradients"], True), (["all"], True)]
)
def test_a_check_is_left_out_where_the_launch_wrote_so(tmp_path, off, left_out):
    run = Run(RunDir(tmp_path))
    assert not run.leaves_out("gradients")
    run.folder.write_manifest({"rehearsal": {"checks": {}, "off": off}})

    assert run.leaves_out("gradients") is left_out
