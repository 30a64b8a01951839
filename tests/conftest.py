"""What tests of several folders share: forked ranks, and a project whose job only counts."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]

# worked-out answers hold on CPU; DeepSpeed must not pick a GPU that torch does not see.
# one thread: a forked process would wait forever for threads that only its parent has
os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")


class Ranks:
    """Runs a function on forked ranks: a tenth of the time of a torchrun.

    A process can join a process group only once, and forks inherit it: no test may join one itself.
    """

    def __call__(self, function: Callable[..., Any], *args: Any, world_size: int = 2) -> list[Any]:
        """What function(*args) returned on each rank, in rank order; the test fails if one raised."""
        answers, _ = self._run(function, args, world_size)
        if failed := [f"rank {rank}: {text}" for rank, (ok, text) in enumerate(answers) if not ok]:
            pytest.fail("\n".join(failed), pytrace=False)
        return [value for _, value in answers]

    def until_killed(self, function: Callable[..., Any], *args: Any, world_size: int = 1) -> None:
        """Run function(*args), which is expected to kill -9 its own process; other ranks go with it."""
        _, exit_codes = self._run(function, args, world_size)
        assert -signal.SIGKILL in exit_codes, f"nobody was killed: {exit_codes}"

    def _run(
        self, function: Callable[..., Any], args: tuple[Any, ...], world_size: int
    ) -> tuple[list[tuple[bool, Any]], list[int | None]]:
        context = multiprocessing.get_context("fork")
        port = _free_port()
        pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
        processes = [
            context.Process(target=_one_rank, args=(rank, world_size, port, pipes[rank][1], function, args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()
        answers = [_receive(receiver) for receiver, _ in pipes]
        for process in processes:
            process.join(10)
            process.kill()
        return answers, [process.exitcode for process in processes]


def _receive(receiver: Any) -> tuple[bool, Any]:
    try:
        return receiver.recv() if receiver.poll(60) else (False, "no answer in 60 s")
    except EOFError:
        return False, "died without an answer"


def _one_rank(
    rank: int, world_size: int, port: int, sender: Any, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        answer = True, function(*args)
    except BaseException:
        answer = False, traceback.format_exc()
    sender.send(answer)
    sender.close()
    # no interpreter shutdown: what the parent registered to run at exit is the parent's
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def ranks() -> Ranks:
    # the first engine imports these, 5 s in all; once here, instead of in every fork
    for name in ("torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer"):
        importlib.import_module(name)

    return Ranks()


COUNT_JOB = '''
"""Counts to config.steps, saving each step; fails where it is told to."""
import os
import time

from latentbridge import job
from latentbridge.config import Config as Settings, JobConfig
from latentbridge.rundir import read_json, write_json


class Side(Settings):
    model: str = "a"


class Config(JobConfig):
    steps: int = 3
    step_s: float = 0.0
    fail_at: int | None = None
    fail_times: int = 1
    fail_rank: int | None = None
    source: Side = Side()
    target: Side = Side(model="b")


def train(config, run):
    saved = run.folder.path / "count.json"
    done = read_json(saved)["done"] if saved.exists() else 0
    run.forget_after(done)
    while done < config.steps:
        if run.should_stop():
            run.stopped_at(done)
            return None
        mine = config.fail_rank in (None, int(os.environ["RANK"]))
        if done == config.fail_at and mine and len(run.folder.list_attempts()) <= config.fail_times:
            raise ValueError(f"told to fail at {done}")
        time.sleep(config.step_s)
        done += 1
        # a kill between the two leaves a record too many, which the next attempt forgets
        run.log({"step": done, "loss": 1.0 / done})
        if run.is_main:
            write_json(saved, {"done": done})
        run.progress("counting", done, config.steps)
    return {"steps": done}


if __name__ == "__main__":
    job.main(Config, train)
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with jobs/count.py, an empty configs/ and a local profile; its path has a space and a quote."""
    root = tmp_path / "my 'lab"
    for folder in ("jobs", "configs", "slurm"):
        (root / folder).mkdir(parents=True)
    (root / "latentbridge").symlink_to(REPOSITORY / "latentbridge")
    (root / "jobs" / "count.py").write_text(COUNT_JOB)
    (root / "slurm" / "local.yaml").write_text("executor: local\nmax_parallel: 2\n")
    monkeypatch.setenv("LATENTBRIDGE_ROOT", str(root))
    monkeypatch.delenv("NUM_GPUS", raising=False)
    return root


@pytest.fixture
def write_spec(project: Path):
    """Write configs/<name>.yaml from indented text; returns its path."""

    def write(text: str, name: str = "spec") -> Path:
        path = project / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"))
        return path

    return write
