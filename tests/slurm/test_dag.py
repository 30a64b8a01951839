"""Runs that need others: gated by our own markers, so late successes, purges and cancels are told right.

Ranks are started by a stand-in for torchrun (fixture `profile`): the launcher is under test, not torch.
"""

from __future__ import annotations

import pytest
from launching import the_launch, wait_for
from slurm_launching import archives, attempts_of, is_empty, latentbridge, launch, submitted_times

from latentbridge.config import read_yaml
from latentbridge.launch.ledger import Ledger
from latentbridge.launch.record import Launch
from latentbridge.launch.status import status
from latentbridge.rundir import RunDir, read_json

SPEC = """
    name: s
    job: count
    runs:
      eval: {{steps: 3}}
      train: {{steps: 4, step_s: 0.1, fail_at: 2, fail_times: {fail_times}}}
      other: {{steps: 2}}
    needs: {{eval: [train]}}
    retry: {{deterministic: {tries}, error: 5}}
    """
SCORE_JOB = '''
"""Scores what its setting says."""
from latentbridge import job
from latentbridge.config import JobConfig


class Config(JobConfig):
    lr: float = 0.1
    final: bool = False


def train(config, run):
    loss = {"value": (config.lr - 0.3) ** 2, "n": 5}
    run.log({"step": 1, "loss": loss["value"]})
    run.log_metrics({"step": 1, "label": "final", "metrics": {"loss": loss}})
    return {"steps": 1}


if __name__ == "__main__":
    job.main(Config, train)
'''


def phases(folder):
    return {state.name: state.phase for state in status(Launch(folder))}


def reasons(cluster, folder):
    """Why SLURM lets this launch's jobs wait."""
    return cluster.run("squeue", "--noheader", f"--name=lb-{folder.name}", "--format=%r").stdout


def wait_for_the_archive(cluster, project):
    """The launch folder, once its last job has preserved it; no job ever waits for what cannot happen."""
    folder = the_launch(project)

    def is_over():
        assert "DependencyNeverSatisfied" not in reasons(cluster, folder)
        return archives(project) and is_empty(cluster, folder)

    wait_for(is_over)
    return folder


@pytest.mark.torture
@pytest.mark.repeats(10)
def test_after_a_late_success_what_needs_it_runs(write_spec, slurm_project, profile, cluster):
    write_spec(SPEC.format(fail_times=1, tries=1))

    launch("spec")

    folder = wait_for_the_archive(cluster, slurm_project)
    assert [record["cause"] for record in attempts_of(folder / "train")] == ["error", "done"]
    assert [record["cause"] for record in attempts_of(folder / "eval")] == ["done"]
    began = read_json(folder / "eval" / "attempts" / "1" / "env.json")["started"]
    assert began > read_json(folder / "train" / "DONE")["finished_at"]
    assert submitted_times(cluster, folder)["train"] == 1, "SLURM starts the same job again"


@pytest.mark.repeats(10)
def test_what_needs_a_failed_run_never_starts_until_that_is_retried_after_its_job_was_purged(
    write_spec, slurm_project, profile, cluster
):
    write_spec(SPEC.format(fail_times=2, tries=1))
    launch("spec")
    folder = wait_for_the_archive(cluster, slurm_project)
    assert phases(folder) == {"eval": "blocked", "train": "failed", "other": "done"}
    assert not (folder / "eval" / "attempts").exists()
    again = launch("spec")
    assert (again.returncode, "nothing to submit" in again.stdout) == (1, True)
    purge(cluster, folder)

    retried = latentbridge("retry", folder / "train")

    assert retried.returncode == 0, retried.stderr
    wait_for(lambda: (folder / "eval" / "DONE").exists())
    wait_for(lambda: is_empty(cluster, folder))
    assert phases(folder) == {"eval": "done", "train": "done", "other": "done"}
    assert read_json(archives(slurm_project)[0] / "eval" / "DONE")["steps"] == 3


def purge(cluster, folder):
    """Have SLURM forget this launch's jobs."""
    before = cluster.conf.read_text()
    cluster.conf.write_text(before.replace("MinJobAge=300", "MinJobAge=2"))
    cluster.run("scontrol", "reconfigure")
    try:
        wait_for(lambda: not submitted_times(cluster, folder))
    finally:
        cluster.conf.write_text(before)
        cluster.run("scontrol", "reconfigure")


def test_a_cancelled_run_blocks_what_needs_it_until_it_is_retried(
    write_spec, slurm_project, profile, cluster
):
    write_spec("""
        name: s
        job: count
        runs: {train: {steps: 60, step_s: 0.1}, eval: {steps: 3}}
        needs: {eval: [train]}
        """)
    launch("spec")
    folder = the_launch(slurm_project)
    wait_for(lambda: (folder / "train" / "count.json").exists())

    cancelled = latentbridge("cancel", folder / "train")

    assert cancelled.returncode == 0, cancelled.stderr
    wait_for_the_archive(cluster, slurm_project)
    assert phases(folder) == {"train": "cancelled", "eval": "blocked"}
    assert attempts_of(folder / "train")[0]["cause"] == "cancelled"
    assert "nothing to submit" in launch("spec").stdout
    latentbridge("retry", folder / "train")
    wait_for(lambda: (folder / "eval" / "DONE").exists())
    assert len(attempts_of(folder / "train")) == 2


def test_only_and_skip_hold_runs_back_until_the_command_is_given_without_them(
    write_spec, slurm_project, profile, cluster
):
    write_spec("name: s\njob: count\nruns: {a: {steps: 2}, b: {steps: 3}, c: {steps: 4}}\nneeds: {c: [b]}")

    launch("spec", "--only", "a", "--only", "c")

    folder = wait_for_the_archive(cluster, slurm_project)
    assert phases(folder) == {"a": "done", "b": "held", "c": "blocked"}
    launch("spec", "--skip", "c")
    wait_for(lambda: (folder / "b" / "DONE").exists())
    launch("spec")
    wait_for(lambda: (folder / "c" / "DONE").exists())
    assert submitted_times(cluster, folder) == {"a": 1, "b": 1, "c": 1} | {
        "(finish)": submitted_times(cluster, folder)["(finish)"]
    }


@pytest.fixture
def drained(cluster):
    """No node takes jobs until the test says so."""

    def let(state):
        cluster.run("scontrol", "update", "NodeName=gpu[01-03]", f"State={state}", "Reason=test")

    let("DRAIN")
    yield lambda: let("RESUME")
    let("RESUME")


def test_a_run_skipped_while_its_job_waits_does_not_start_and_does_when_it_is_chosen_again(
    write_spec, slurm_project, profile, cluster, drained
):
    write_spec("name: s\njob: count\nruns: {a: {steps: 2}, b: {steps: 3}}")
    launch("spec")
    folder = the_launch(slurm_project)
    launch("spec", "--skip", "b")
    drained()
    wait_for_the_archive(cluster, slurm_project)
    assert phases(folder) == {"a": "done", "b": "held"}

    launch("spec")

    wait_for(lambda: (folder / "b" / "DONE").exists())


def test_a_pending_job_that_an_operator_removed_comes_back_by_the_launch_command_alone(
    write_spec, slurm_project, profile, cluster, drained
):
    write_spec("name: s\njob: count\nruns: {a: {steps: 2}, b: {steps: 3}}")
    launch("spec")
    folder = the_launch(slurm_project)
    cancelled = latentbridge("cancel", folder / "b")
    assert cancelled.returncode == 0, cancelled.stderr
    job = next(state.job for state in status(Launch(folder)) if state.name == "a")
    cluster.run("scancel", job)
    drained()
    wait_for(lambda: is_empty(cluster, folder))

    watched = latentbridge("watch", folder)

    assert watched.returncode == 1
    assert phases(folder) == {"a": "lost", "b": "cancelled"}
    assert "submitted 1 runs" in launch("spec").stdout
    wait_for(lambda: (folder / "a" / "DONE").exists())
    assert phases(folder)["b"] == "cancelled"


def test_a_setting_that_waits_for_its_siblings_gets_the_winners_value(
    write_spec, slurm_project, profile, cluster
):
    (slurm_project / "jobs" / "score.py").write_text(SCORE_JOB)
    write_spec("""
        name: s
        job: score
        runs:
          last: {final: true, lr: {best_of: "lr_*", metric: loss, mode: min}}
          lr_low: {lr: 0.1}
          lr_mid: {lr: 0.2}
          lr_high: {lr: 0.9}
        """)

    launch("spec")

    folder = wait_for_the_archive(cluster, slurm_project)
    last = RunDir(folder / "last")
    assert last.is_done
    assert read_yaml(last.config).values["lr"] == 0.2
    assert "lr_mid has the lowest loss" in last.read_manifest()["best_of"]["lr"]


def test_a_run_that_is_requeued_needs_no_further_job(write_spec, slurm_project, profile, cluster):
    write_spec("name: s\njob: count\nruns: {a: {steps: 5, fail_at: 3}}")
    launch("spec")
    folder = the_launch(slurm_project)

    wait_for(lambda: archives(slurm_project) and is_empty(cluster, folder))

    assert [attempt["cause"] for attempt in attempts_of(folder / "a")] == ["error", "done"]
    assert len(list(Ledger(folder))) == 2


def test_a_run_that_slurm_may_not_requeue_goes_on_at_once_while_others_are_at_work(
    write_spec, slurm_project, profile, cluster
):
    profile(max_parallel=2)
    write_spec("""
        name: s
        job: count
        runs: {a: {steps: 25, step_s: 0.1, fail_at: 20}, b: {steps: 600, step_s: 0.1}}
        """)
    launch("spec")
    folder = the_launch(slurm_project)
    wait_for(lambda: (folder / "a" / "count.json").exists() and (folder / "b" / "count.json").exists())
    place = Ledger(folder).latest()["a"]
    answer = cluster.run("scontrol", "update", f"JobId={place.task}", "Requeue=0")
    assert answer.returncode == 0, answer.stderr

    wait_for(lambda: len(attempts_of(folder / "a")) == 2)

    assert [attempt["cause"] for attempt in attempts_of(folder / "a")] == ["error", "done"]
    assert Ledger(folder).latest()["a"].task != place.task
    assert not (folder / "b" / "DONE").exists()
