"""The stand-in for SLURM answers as a real 22.05 did when it was asked the same."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
sys.path.append(str(REPOSITORY / "benchmarks"))

import scale  # noqa: E402
from simulator.cluster import Settings  # noqa: E402
from simulator.control import PretendSlurm  # noqa: E402
from simulator.folding import fold, fold_names, unfold_names  # noqa: E402

SCRIPT = """#!/bin/bash
#SBATCH --array={array}
#SBATCH --comment="latentbridge:abc"
#SBATCH --requeue
sleep 60
"""
Ask = Callable[..., list[str]]


@pytest.fixture
def slurm() -> Iterator[PretendSlurm]:
    with PretendSlurm(Settings(nodes=3, max_submit=110)) as slurm:
        yield slurm


@pytest.fixture
def ask(slurm: PretendSlurm) -> Ask:
    """Run one command; the lines it prints, or the words of its refusal."""

    def ask(*argv: str, script: str = "", **variables: str) -> list[str]:
        (slurm.folder / "job.sh").write_text(script)
        answer = subprocess.run(
            argv,
            env=slurm.environ() | variables,
            cwd=slurm.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        return (answer.stderr if answer.returncode else answer.stdout).splitlines()

    return ask


def test_numbers_and_names_fold_as_slurm_folds_them():
    assert fold([7, 0, 1, 2, 9, 10]) == "0-2,7,9-10"
    assert fold_names(["gpu08", "gpu09", "gpu11", "login1"]) == "gpu[08-09,11],login1"
    assert unfold_names("gpu[08-09,11],login1") == ["gpu08", "gpu09", "gpu11", "login1"]


def test_waiting_tasks_of_an_array_share_a_line_until_they_are_split(slurm: PretendSlurm, ask: Ask):
    assert ask("sbatch", "job.sh", script=SCRIPT.format(array="0-6%2")) == ["Submitted batch job 1001"]
    slurm.step(1)

    assert ask("squeue", "--noheader", "--format=%i|%F|%K|%t|%r|%N|%k") == [
        "1001_[2-6%2]|1001|2-6%2|PD|JobArrayTaskLimit||latentbridge:abc",
        "1001_0|1001|0|R|None|node1|latentbridge:abc",
        "1001_1|1001|1|R|None|node2|latentbridge:abc",
    ]
    split = ask("squeue", "--noheader", "--array", "--format=%K|%t")
    assert split == ["0|R", "1|R", "2|PD", "3|PD", "4|PD", "5|PD", "6|PD"]


def test_a_requeued_task_joins_the_waiting_ones_and_hides_the_throttle(slurm: PretendSlurm, ask: Ask):
    ask("sbatch", "job.sh", script=SCRIPT.format(array="0-6%2"))
    slurm.step(1)

    ask("scontrol", "requeue", "1001_1")

    assert ask("squeue", "--noheader", "--format=%K|%t|%r")[0] == "1-6|PD|BeginTime,Resources"


def test_a_long_list_of_indices_is_cut_unless_the_caller_forbids_it(ask: Ask):
    indices = ",".join(str(index) for index in range(10, 90, 2))
    ask("sbatch", "job.sh", script=SCRIPT.format(array=f"{indices}%1"))

    (cut,), (whole,) = (
        ask("squeue", "--noheader", "--format=%K", **variables)
        for variables in ({}, {"SLURM_BITSTR_LEN": "0"})
    )

    assert len(cut) == 63 and whole.startswith(cut)
    assert whole == f"{indices}%1"


def test_a_cancelled_task_leaves_the_queue_after_five_minutes(slurm: PretendSlurm, ask: Ask):
    ask("sbatch", "job.sh", script=SCRIPT.format(array="0-1%1"))
    slurm.step(1)

    ask("scancel", "1001_1")

    assert ask("squeue", "--noheader", "--states=all", "--format=%K|%t") == ["0|R", "1|CA"]
    assert ask("sacct", "--noheader", "--parsable2", "--jobs=1001", "--format=JobID,State") == [
        "1001_0|RUNNING",
        "1001_1|CANCELLED by 0",
    ]
    slurm.step(301)
    assert ask("squeue", "--noheader", "--states=all", "--format=%K|%t") == ["0|CD"]


def test_a_dependent_job_waits_for_every_task(slurm: PretendSlurm, ask: Ask):
    ask("sbatch", "job.sh", script=SCRIPT.format(array="0-1"))
    ask("sbatch", "job.sh", script="#!/bin/bash\n#SBATCH --dependency=afterany:1001\n")
    slurm.step(59)

    waiting = ask("squeue", "--noheader", "--format=%i|%r")
    slurm.step(2)

    assert waiting == ["1001_0|None", "1001_1|None", "1003|Dependency"]
    assert ask("squeue", "--noheader", "--format=%i|%t") == ["1003|R"]


@pytest.mark.parametrize(
    ("array", "words"), [("0-1001", "Invalid job array specification"), ("0-110", "job submit limit")]
)
def test_too_much_is_refused(ask: Ask, array: str, words: str):
    refusal = ask("sbatch", "job.sh", script=SCRIPT.format(array=array))

    assert words in refusal[-1]
    assert ask("squeue", "--noheader") == []


def test_a_lost_answer_hides_a_job_that_was_accepted():
    with PretendSlurm(Settings(nodes=3, lost_answer_rate=1.0)) as slurm:
        (slurm.folder / "job.sh").write_text(SCRIPT.format(array="0-4"))

        answer = subprocess.run(
            [slurm.folder / "sbatch", "job.sh"], cwd=slurm.folder, capture_output=True, text=True, check=False
        )

        assert answer.returncode == 1 and "timed out" in answer.stderr
        assert slurm.step()["jobs"] == {"1001": "latentbridge:abc"}


def test_what_the_stand_in_does_not_know_fails_loudly(ask: Ask):
    assert ask("squeue", "--clusters=other") == [
        "squeue: the stand-in does not know this: option --clusters not recognized"
    ]


def test_every_cell_ends_once_whatever_goes_wrong_on_the_way():
    rates = {"preemption_rate": 0.3, "node_death_rate": 0.1, "vanish_rate": 0.05, "lost_answer_rate": 0.02}

    report = scale.measure(100, Settings(nodes=30, seed=4, max_array_size=41, **rates))

    assert report.phases.keys() <= {"done", "failed"} and report.phases.total() == 100
    assert report.counts["attempts"] > 130
    assert (report.counts["doubles"], report.counts["needless"], report.orphans) == (0, 0, 0)
    assert report.wrong == Counter()
