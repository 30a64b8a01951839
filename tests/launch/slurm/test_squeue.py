"""One call of squeue to jobs by token, arrays unfolded."""

from __future__ import annotations

import pytest

from latentbridge.errors import SchedulerError
from latentbridge.launch import slurm
from latentbridge.launch.slurm.squeue import Task, parse_indices, read_queue

LINES = [
    "12|0-2,7%2|PD|JobArrayTaskLimit,None||lb-s_1|latentbridge:aa",
    "12|3|R|None|gpu01|lb-s_1|latentbridge:aa",
    "12|4|CD|None|gpu02|lb-s_1|latentbridge:aa",
    "13|N/A|R|None|gpu03|lb-s_1|site=x latentbridge:bb; gres=y",
    "14|0-9|PD|Priority||my|job|somebody's own | comment",
    "that has a | second line",
    "15|0-1|R|None|gpu04|lb-s_1|put there by the site",
    "16|N/A|F|BadConstraints||lb-s_1|latentbridge:refused",
]


@pytest.fixture
def says(monkeypatch):
    monkeypatch.setattr(slurm, "ask", lambda *argv: LINES)


def test_waiting_running_and_ended_tasks_of_an_array_come_under_its_token(says):
    job = read_queue().jobs["aa"]

    assert job.job_id == "12"
    assert job.tasks[3] == Task("R", "", "gpu01")
    assert [index for index, task in sorted(job.tasks.items()) if task.waits] == [0, 1, 2, 7]
    assert len(job.alive) == 5


def test_jobs_that_are_not_ours_count_for_the_limit_only(says):
    queue = read_queue()

    assert sorted(queue.jobs) == ["aa", "bb"]
    assert queue.total == 4 + 1 + 1 + 10 + 2


def test_where_the_site_rewrites_comments_a_job_is_known_by_its_id_and_name_together(says):
    queue = read_queue()

    assert queue.find("cc", "15", "s_1").tasks[1] == Task("R", "", "gpu04")
    assert queue.find("cc", "15", "s_2") is None
    assert queue.find("cc", "14", "s_1") is None
    assert queue.find("bb", "99", "s_1").job_id == "13", "the token goes first"


def test_a_silent_controller_is_no_empty_queue(monkeypatch):
    def fail(*argv):
        raise SchedulerError("squeue failed")

    monkeypatch.setattr(slurm, "ask", fail)

    with pytest.raises(SchedulerError):
        read_queue()


@pytest.mark.parametrize(
    ("text", "indices"),
    [("N/A", (0,)), ("3", (3,)), ("0-2,7%2", (0, 1, 2, 7)), ("1-7:3", (1, 4, 7))],
)
def test_folded_array_indices_are_unfolded(text, indices):
    assert parse_indices(text) == indices
