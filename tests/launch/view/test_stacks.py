"""Where ranks stood, from stack files as Python itself writes them."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading

import pytest

from latentbridge.launch.view.stacks import main_stack, stack_files, where_ranks_stand
from latentbridge.rundir import RunDir

WAITING = """Thread 0x00007fdb8b9376c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait

Current thread 0x00007fdb8c652b80 (most recent call first):
  File "/venv/torch/distributed/distributed_c10d.py", line 2501 in all_reduce
  File "/venv/torch/distributed/c10d_logger.py", line 81 in wrapper
  File "{code}/latentbridge/train/loop.py", line 2 in _update
  File "{code}/jobs/count.py", line 3 in <module>
"""
SLEEPING = """Current thread 0x00007fdb8c652b80 (most recent call first):
  File "{code}/jobs/count.py", line 2 in train
  File "{code}/jobs/count.py", line 3 in <module>
"""


@pytest.fixture
def code(tmp_path):
    for name, text in {
        "jobs/count.py": "def train():\n    time.sleep(3600)\ntrain()\n",
        "latentbridge/train/loop.py": "def _update():\n    dist.all_reduce(norm)\n",
    }.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path / "code"


def write_stacks(attempt, code, *texts):
    for rank, text in enumerate(texts):
        path = RunDir.stack_file(attempt, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(code=code))


def test_the_rank_that_keeps_the_others_waiting_comes_first(tmp_path, code):
    write_stacks(tmp_path, code, WAITING, SLEEPING, WAITING, WAITING)

    assert where_ranks_stand(tmp_path, code) == [
        "rank 1 at jobs/count.py:2 (train): `time.sleep(3600)`",
        "ranks 0 2 3 in all_reduce, from latentbridge/train/loop.py:2 (_update): `dist.all_reduce(norm)`",
    ]


def test_ranks_are_ordered_as_numbers(tmp_path, code):
    write_stacks(tmp_path, code, *[WAITING] * 11)

    assert where_ranks_stand(tmp_path, code)[0].startswith("ranks 0 1 2 3 4 5 6 7 8 9 10 in all_reduce")


def test_of_several_dumps_the_last_counts_and_of_its_threads_the_main_one():
    text = WAITING.format(code="/c") + SLEEPING.format(code="/c")

    assert main_stack(text)[0].function == "train"
    assert main_stack(WAITING.format(code="/c"))[0].function == "all_reduce"


def test_a_rank_that_left_an_empty_file_is_told_too(tmp_path, code):
    write_stacks(tmp_path, code, "", SLEEPING, SLEEPING)

    assert where_ranks_stand(tmp_path, code)[0] == "rank 0 without a stack"
    assert len(stack_files(tmp_path)) == 3


def test_what_python_writes_on_sigquit_is_understood(tmp_path):
    def stand_here():
        os.kill(os.getpid(), signal.SIGQUIT)

    with open(tmp_path / "stack.txt", "wb") as file:
        faulthandler.register(signal.SIGQUIT, file, all_threads=True)
        try:
            thread = threading.Thread(target=threading.Event().wait, args=(0.2,))
            thread.start()
            stand_here()
            thread.join()
        finally:
            faulthandler.unregister(signal.SIGQUIT)

    stack = main_stack((tmp_path / "stack.txt").read_text())

    functions = [frame.function for frame in stack]
    assert "stand_here" in functions[:2] and functions[-1] in ("<module>", "_run_module_as_main")
