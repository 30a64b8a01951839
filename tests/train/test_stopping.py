from __future__ import annotations

from pathlib import Path
from typing import Any

from latentbridge.job import Run
from latentbridge.rundir import RunDir
from latentbridge.train import distributed
from latentbridge.train.stopping import StopPoll


class AskedAt(Run):
    """A run whose stop request arrives while a given update is made."""

    def __init__(self, step: int | None) -> None:
        super().__init__(RunDir(Path("unused")))
        self.step, self.now = step, 0

    def should_stop(self) -> bool:
        return self.step is not None and self.now >= self.step


def _first_stop(run: AskedAt, poll: StopPoll) -> int | None:
    for run.now in range(8):
        if poll.asked(run.now):
            return run.now
    return None


def test_all_ranks_stop_at_the_update_at_which_one_was_asked(ranks: Any) -> None:
    def first_stop() -> int | None:
        distributed.init()
        run = AskedAt(5 if distributed.rank() == 1 else None)
        return _first_stop(run, StopPoll(run))

    assert ranks(first_stop) == [5, 5]


def test_nobody_stops_unasked() -> None:
    run = AskedAt(None)

    assert _first_stop(run, StopPoll(run)) is None


def test_asking_once_in_a_while_never_waits_more_than_fifty_updates() -> None:
    run = AskedAt(2)
    poll = StopPoll(run, interval_s=3600.0)
    answers = []
    for run.now in range(60):
        answers.append(poll.asked(run.now))

    # asked at 0, where no pace is known, at 1, and 50 updates later
    assert answers.index(True) == 51


def test_the_next_question_can_be_called_forward() -> None:
    run = AskedAt(2)
    poll = StopPoll(run, interval_s=3600.0)
    for run.now in range(3):
        assert not poll.asked(run.now)
    poll.poll_next()

    assert poll.asked(2)
