"""Several ranks in one test, forked after DeepSpeed was imported: a tenth of the time of a torchrun."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

# worked-out answers hold on CPU; DeepSpeed must not pick a GPU that torch does not see
os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
# a forked process would wait forever for threads that only its parent has
torch.set_num_threads(1)


class Ranks:
    """Runs a function on several forked ranks; a process can join a process group only once."""

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


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module toy.py: a workload small enough to train in a test."""
    specification = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["toy"] = module  # pydantic looks annotations up there
    specification.loader.exec_module(module)
    return module
