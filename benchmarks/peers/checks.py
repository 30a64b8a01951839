"""The checks, one a row of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cluster import Cluster
from judges import (
    Outcome,
    judge_adopted,
    judge_failed_parent,
    judge_history,
    judge_late_success,
    judge_notice,
    judge_once,
    judge_resume,
)
from plays import (
    NOTICE_S,
    die_while_running,
    die_while_submitting,
    just_run,
    kill_a_job,
    preempt,
    repeat_the_command,
)
from scene import LAST_STEP, Cells, Scene

COUNTS = {"steps": LAST_STEP}
TWO_CELLS: Cells = {"a": COUNTS, "b": COUNTS}
TRAIN_AND_EVAL: Cells = {"train": COUNTS, "eval": COUNTS | {"needs": ["train"]}}
GOOD_AND_KILLED: Cells = {"good": COUNTS, "killed": COUNTS}
FAILS_ONCE = COUNTS | {"fails": 1, "retries": 1}
ALWAYS_FAILS = COUNTS | {"fails": 99}


@dataclass(frozen=True)
class Check:
    """What is done, and what must come of it."""

    key: str
    title: str
    claim: str
    cells: Cells
    play: Callable[[list[Scene], Cluster], None]
    judge: Callable[[Scene], Outcome]
    # SLURM_TEST_* settings of the cluster
    site: dict[str, str] = field(default_factory=dict)


CHECKS = [
    Check(
        "idempotence",
        "the same command again while jobs wait, while they run, after their end",
        "every cell is executed once",
        TWO_CELLS,
        repeat_the_command,
        judge_once,
    ),
    Check(
        "crash",
        "the command is killed when SLURM has accepted its first job; the same command again",
        "every cell is executed once, and the accepted job is no orphan",
        TWO_CELLS,
        die_while_submitting,
        judge_adopted,
    ),
    Check(
        "crash_running",
        "the command is killed while cells are at work; the same command again",
        "every cell is executed once",
        TWO_CELLS,
        die_while_running,
        judge_once,
    ),
    Check(
        "attempts",
        "the first attempt leaves with exit code 7, the second succeeds",
        "log and exit code of the first can be read afterwards",
        {"a": FAILS_ONCE},
        just_run,
        judge_history,
    ),
    Check(
        "failed_parent",
        "train fails, eval depends on it",
        "eval is never executed, and nothing is left waiting",
        TRAIN_AND_EVAL | {"train": ALWAYS_FAILS},
        just_run,
        judge_failed_parent,
    ),
    Check(
        "late_success",
        "train fails and succeeds when retried, eval depends on it",
        "eval is executed once, after that",
        TRAIN_AND_EVAL | {"train": FAILS_ONCE},
        just_run,
        judge_late_success,
    ),
    Check(
        "preemption",
        "a job of a higher partition evicts the run",
        "it goes on from its saved step, and is called done",
        {"a": COUNTS},
        preempt,
        judge_resume,
    ),
    Check(
        "no_accounting",
        "no slurmdbd; every process of one of two jobs gets SIGKILL",
        f"that cell is called failed within {NOTICE_S} s, the other one done",
        GOOD_AND_KILLED,
        kill_a_job,
        judge_notice,
        site={"SLURM_TEST_ACCT": "0"},
    ),
    Check(
        "forgetful",
        "the same where SLURM forgets ended jobs after 5 s (MinJobAge)",
        "the same",
        GOOD_AND_KILLED,
        kill_a_job,
        judge_notice,
        site={"SLURM_TEST_ACCT": "0", "SLURM_TEST_MIN_JOB_AGE": "5"},
    ),
]
