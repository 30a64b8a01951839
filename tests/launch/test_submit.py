"""What counts as an answer of sbatch, as a refusal, and as silence."""

from __future__ import annotations

import subprocess
import time
from dataclasses import asdict

import pytest
from folders import planned_launch

from latentbridge.errors import PreflightError, SchedulerError
from latentbridge.launch import slurm, submit
from latentbridge.launch.lease import lease
from latentbridge.launch.ledger import Ledger
from latentbridge.launch.slurm.squeue import Job, Queue
from latentbridge.rundir import write_json

SPEC = """
name: s
job: count
cluster: test
seeds: [1, 2]
runs: {a: {}, b: {steps: 5, resources.nodes: 2}}
"""
ERROR = "sbatch: error: Batch job submission failed: "


@pytest.fixture
def launch(project, write_spec):
    """A launch of three runs, nothing submitted."""
    (project / "slurm" / "test.yaml").write_text("executor: slurm\nresources: {gpus_per_node: 1}\n")
    write_spec(SPEC)
    return planned_launch(project)


@pytest.fixture
def sbatch(monkeypatch):
    """Set what sbatch answers, and which tokens the queue then shows under job id 88."""

    def answer(code, out="", err="", shows=False):
        said = subprocess.CompletedProcess([], code, out, err)
        monkeypatch.setattr(slurm, "call", lambda *argv, **named: said)

        def queue():
            return Queue({token: Job("88")}) if shows else Queue()

        monkeypatch.setattr(submit, "read_queue", queue)
        monkeypatch.setattr(submit, "ANSWER_PATIENCE_S", 0)

    token = "0123456789abcdef"
    monkeypatch.setattr("latentbridge.launch.ledger.secrets.token_hex", lambda n: token)
    return answer


def submitted(launch):
    with lease(launch.path / "ledger" / "lock", "test") as held:
        return submit.submit_array(launch, held, [launch.run("a-s1"), launch.run("a-s2")], 2)


@pytest.mark.parametrize(
    "out",
    ["Submitted batch job 41\n", "job 7 says hello\nSubmitted batch job 41 on cluster big\nbye, job 3\n"],
)
def test_the_job_id_is_what_sbatch_says_it_is_and_no_other_number(launch, sbatch, out):
    sbatch(0, out=out, err="sbatch: warning: job 9 is old")

    assert submitted(launch).job_id == "41"


@pytest.mark.parametrize(
    ("code", "out", "err"),
    [
        (1, "", ERROR + "Socket timed out on send/recv operation"),
        (1, "", ERROR + "Unable to contact slurm controller (connect failure)"),
        (1, "", ERROR + "Zero Bytes were transmitted or received"),
        (0, "job 5 is in the post\n", ""),
        (0, "Submitted batch job 41\nSubmitted batch job 42\n", ""),
        (-9, "", ""),
        (1, "", ERROR + "Invalid account"),
    ],
)
def test_whatever_sbatch_says_a_job_that_slurm_shows_was_accepted(launch, sbatch, code, out, err):
    sbatch(code, out, err, shows=True)

    assert submitted(launch).job_id == "88"


def test_silence_leaves_the_intent_open_for_a_job_that_turns_up_later(launch, sbatch):
    sbatch(1, err=ERROR + "Communication connection failure")

    with pytest.raises(SchedulerError, match=r"no clear answer: .*Run the same command again"):
        submitted(launch)

    (submission,) = Ledger(launch.path)
    assert submission.is_open


def test_a_refusal_is_final_and_written_down(launch, sbatch):
    sbatch(1, err=ERROR + "Invalid qos specification")

    with pytest.raises(PreflightError, match=r"sbatch refused: .*Invalid qos"):
        submitted(launch)

    (submission,) = Ledger(launch.path)
    assert submission.refused == "Batch job submission failed: Invalid qos specification"
    assert Ledger(launch.path).latest() == {}


@pytest.mark.parametrize(
    ("err", "is_limit"),
    [
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit\n", True),
        ("sbatch: error: AssocMaxSubmitJobLimit\n", True),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit\n", False),
    ],
)
def test_a_full_queue_is_told_from_a_request_over_a_limit(launch, sbatch, err, is_limit):
    policy = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    sbatch(1, err=err + ERROR + policy)

    with pytest.raises(PreflightError) as caught:
        submitted(launch)

    assert isinstance(caught.value, submit.SubmitLimitError) == is_limit


def aged(launch, intent, seconds):
    record = asdict(intent) | {"created": time.time() - seconds}
    write_json(launch.ledger.folder / f"{intent.token}.json", record)


def test_an_open_submission_is_adopted_by_its_token_and_given_up_after_a_while(launch):
    shown, young, old = (launch.ledger.intend([run]) for run in ("a-s1", "a-s2", "b-s1"))
    aged(launch, old, submit.ANSWER_PATIENCE_S + 1)

    assert submit.settle_open(launch, Queue({shown.token: Job("12")}))

    assert launch.ledger.read(shown.token).job_id == "12"
    assert launch.ledger.read(young.token).is_open
    assert "no such job" in (launch.ledger.read(old.token).refused or "")
    assert not submit.settle_open(launch, Queue())


def test_runs_that_ask_for_the_same_share_an_array_whatever_they_need(launch):
    groups = submit.group_runs(list(launch.runs.values()))

    assert [[run.name for run in group] for group in groups] == [["a-s1", "a-s2"], ["b-s1", "b-s2"]]
