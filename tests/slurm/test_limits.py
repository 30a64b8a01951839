"""What site and spec allow is never exceeded, and used up without anybody watching: arrays, queue, budget.

Ranks are started by a stand-in for torchrun (fixture `profile`): the launcher is under test, not torch.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launching import the_launch, wait_for
from slurm_launching import archives, are_done, attempts_of, is_empty, launch, run_folders

from latentbridge.launch.account import spent
from latentbridge.launch.ledger import Ledger
from latentbridge.launch.record import Launch
from latentbridge.rundir import read_json

FINISH = ("(finish)",)


@contextmanager
def sampling(cluster) -> Iterator[list[list[tuple[str, str]]]]:
    """State and token of all that is queued or at work, every half second."""
    samples: list[list[tuple[str, str]]] = []
    over = threading.Event()
    words = ["--noheader", "--array", "--states=PD,CF,R,CG,RQ", "--format=%t %k"]

    def sample() -> None:
        while not over.wait(0.5):
            lines = [line.split() for line in cluster.run("squeue", *words).stdout.splitlines()]
            samples.append([(state, comment.partition(":")[2]) for state, comment in lines])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def most_at_once(cluster, project: Path, cells: int, seconds: float) -> tuple[int, int]:
    """Launch, and let its jobs do the rest; the most runs at work and the most tasks queued at a time."""
    with sampling(cluster) as samples:
        assert launch("spec").returncode == 0
        folder = the_launch(project)
        wait_for(lambda: archives(project) and is_empty(cluster, folder), seconds)
    assert are_done(folder)
    assert len(run_folders(folder)) == cells
    assert all(len(attempts_of(run)) == 1 for run in run_folders(folder))
    finishing = {submission.token for submission in Ledger(folder) if submission.runs == FINISH}
    at_work = [[token for state, token in sample if state == "R"] for sample in samples]
    return (
        max(len([token for token in tokens if token not in finishing]) for tokens in at_work),
        max(map(len, samples)),
    )


@contextmanager
def configured(cluster, line: str) -> Iterator[None]:
    """The cluster with one more line of slurm.conf."""
    before = cluster.conf.read_text()
    cluster.conf.write_text(f"{before}{line}\n")
    cluster.run("scontrol", "reconfigure")
    try:
        yield
    finally:
        cluster.conf.write_text(before)
        cluster.run("scontrol", "reconfigure")


@contextmanager
def submit_limit(cluster, limit: int) -> Iterator[None]:
    """The cluster with a limit on what one user may have in the queue."""
    modify = ["sacctmgr", "--immediate", "modify", "qos", "normal", "set"]
    cluster.run(*modify, f"MaxSubmitJobsPerUser={limit}")
    try:
        yield
    finally:
        cluster.run(*modify, "MaxSubmitJobsPerUser=-1")


def test_cells_beyond_max_array_size_are_split_over_several_arrays(
    write_spec, slurm_project, profile, cluster
):
    profile(max_parallel=12)
    write_spec(f"name: s\njob: count\nseeds: {list(range(12))}\nruns: {{a: {{steps: 2}}}}")
    with configured(cluster, "MaxArraySize=5"):
        at_work, _ = most_at_once(cluster, slurm_project, cells=12, seconds=120)

    sizes = [len(s.runs) for s in Ledger(the_launch(slurm_project)) if s.runs != FINISH]
    assert sizes == [5, 5, 2]
    assert at_work > 5, "the arrays run beside each other"


@pytest.mark.repeats(3)
def test_neither_max_parallel_nor_the_submit_limit_is_exceeded_and_nobody_need_watch(
    write_spec, slurm_project, profile, cluster
):
    profile(max_parallel=3)
    seeds = list(range(16))
    write_spec(f"name: s\njob: count\nseeds: {seeds}\nruns: {{a: {{steps: 2, step_s: 0.3}}}}")
    with submit_limit(cluster, 10):
        at_work, queued = most_at_once(cluster, slurm_project, cells=16, seconds=200)

    assert at_work == 3
    assert queued <= 10


@pytest.mark.torture
@pytest.mark.timeout(1200)
def test_sixty_cells_three_at_a_time_in_a_queue_of_ten(write_spec, slurm_project, profile, cluster):
    profile(max_parallel=3)
    write_spec(f"name: s\njob: count\nseeds: {list(range(60))}\nruns: {{a: {{steps: 2, step_s: 0.3}}}}")
    with submit_limit(cluster, 10):
        at_work, queued = most_at_once(cluster, slurm_project, cells=60, seconds=900)

    assert at_work == 3
    assert queued <= 10


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_twelve_hundred_cells_at_the_usual_max_array_size(write_spec, slurm_project, profile, cluster):
    profile(max_parallel=12)
    write_spec(f"name: s\njob: count\nseeds: {list(range(1200))}\nruns: {{a: {{steps: 1}}}}")
    at_work, _ = most_at_once(cluster, slurm_project, cells=1200, seconds=7000)

    assert at_work <= 12
    assert max(len(s.runs) for s in Ledger(the_launch(slurm_project))) == 1001


@pytest.mark.torture
@pytest.mark.repeats(3)
def test_who_cancels_all_jobs_gets_no_new_ones(write_spec, slurm_project, profile, cluster):
    profile(max_parallel=2, submit_limit=4)
    write_spec(f"name: s\njob: count\nseeds: {list(range(7))}\nruns: {{a: {{steps: 300, step_s: 0.1}}}}")
    launch("spec")
    folder = the_launch(slurm_project)
    wait_for(lambda: len(list(folder.glob("a-s*/count.json"))) == 2)

    cluster.run("scancel", "--user=root")

    wait_for(lambda: is_empty(cluster, folder))
    time.sleep(8)
    assert is_empty(cluster, folder)
    assert len(list(Ledger(folder))) == 2, "what was submitted at first, and the job that comes last"


def test_behind_other_work_that_fills_the_queue_the_launch_goes_on_when_there_is_room(
    write_spec, slurm_project, profile, cluster
):
    write_spec("name: s\njob: count\nseeds: [1, 2, 3]\nruns: {a: {steps: 2}}")
    hold = ["sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true"]
    with submit_limit(cluster, 4):
        others = [cluster.run(*hold).stdout.strip() for _ in range(4)]
        full = launch("spec")
        cluster.run("scancel", others.pop())
        a_place = launch("spec")
        folder = the_launch(slurm_project)
        (last,) = [submission for submission in Ledger(folder) if submission.job_id]
        cluster.run("scancel", *others)
        cluster.run("scontrol", "update", f"JobId={last.job_id}", "StartTime=now")
        wait_for(lambda: archives(slurm_project) and is_empty(cluster, folder))

    assert (full.returncode, a_place.returncode) == (75, 0)
    assert "3 runs are not queued, and no job is there to go on" in full.stderr
    assert "3 more runs start as the limits of site and spec let them" in a_place.stdout
    assert last.runs == FINISH
    assert are_done(folder)


def test_where_no_other_job_can_be_queued_the_one_that_comes_last_starts_again_itself(
    write_spec, slurm_project, profile, cluster
):
    write_spec("name: s\njob: count\nseeds: [1, 2]\nruns: {a: {steps: 2}}")
    with submit_limit(cluster, 2):
        other = cluster.run("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").stdout
        launch("spec")
        folder = the_launch(slurm_project)
        (last,) = [submission.job_id for submission in Ledger(folder) if submission.job_id]
        code = folder / "code" / "latentbridge" / "launch" / "finish.py"
        code.write_text(
            re.sub(r"(?m)^(UNKNOWN_PATIENCE_S|REFUSED_PAUSE_S) = .*", r"\1 = 1", code.read_text())
        )

        def start_now() -> bool:
            return cluster.run("scontrol", "update", f"JobId={last}", "StartTime=now").returncode == 0

        def shown(text: str) -> bool:
            return text in cluster.run("scontrol", "show", "job", last, "--oneliner").stdout

        def start_again() -> None:
            # SLURM itself waits for minutes; at once, the end of its last start can still hit its next one
            if shown("JobState=PENDING Reason=BeginTime"):
                time.sleep(5)
                start_now()

        assert start_now()
        wait_for(lambda: shown("Restarts=1") and shown("JobState=PENDING Reason=BeginTime"))
        cluster.run("scancel", other.strip())
        start_again()
        wait_for(lambda: (start_again() or True) and archives(slurm_project) and is_empty(cluster, folder))

    assert are_done(folder)


@pytest.mark.torture
def test_when_the_job_that_comes_last_was_removed_another_takes_its_place(
    write_spec, slurm_project, profile, cluster
):
    write_spec("name: s\njob: count\nseeds: [1, 2]\nruns: {a: {steps: 40, step_s: 0.1}}")
    launch("spec")
    folder = the_launch(slurm_project)
    last = next(s.job_id for s in Ledger(folder) if s.runs == FINISH)

    cluster.run("scancel", last)

    wait_for(lambda: archives(slurm_project) and is_empty(cluster, folder))
    assert are_done(folder)


@pytest.mark.torture
def test_a_profile_with_its_own_submit_limit_keeps_to_it(write_spec, slurm_project, profile, cluster):
    profile(max_parallel=8, submit_limit=4)
    write_spec(f"name: s\njob: count\nseeds: {list(range(7))}\nruns: {{a: {{steps: 2}}}}")

    at_work, queued = most_at_once(cluster, slurm_project, cells=7, seconds=120)

    assert at_work <= 3
    assert queued <= 4


def test_nothing_starts_once_the_budget_is_used_up_and_what_is_at_work_ends(
    write_spec, slurm_project, profile, cluster
):
    profile(max_parallel=2)
    # two runs of 6 s each are beyond 7.2 GPU-seconds as soon as the first of them ends
    write_spec("""
        name: s
        job: count
        budget_gpu_hours: 0.002
        seeds: [1, 2, 3, 4, 5]
        runs: {a: {steps: 20, step_s: 0.3}}
        """)
    assert launch("spec").returncode == 0
    folder = the_launch(slurm_project)
    wait_for(lambda: archives(slurm_project) and is_empty(cluster, folder))

    again = launch("spec")

    assert again.returncode == 3
    assert "the budget of 0.002 GPU-hours is used up" in again.stdout
    causes = [attempts_of(run)[-1]["cause"] for run in run_folders(folder)]
    # on a busy machine the second may begin after the budget was used up
    assert causes in (["done", "done", *["budget"] * 3], ["done", *["budget"] * 4])
    for run, cause in zip(run_folders(folder), causes, strict=True):
        assert (run / "count.json").exists() == (cause == "done")


@pytest.mark.repeats(5)
def test_gpu_hours_agree_with_accounting(write_spec, slurm_project, profile, cluster, request):
    steps = 600 if request.config.getoption("torture", False) else 40
    write_spec(f"name: s\njob: count\nseeds: [1, 2]\nruns: {{a: {{steps: {steps}, step_s: 0.1}}}}")
    launch("spec")
    folder = the_launch(slurm_project)
    wait_for(lambda: archives(slurm_project) and is_empty(cluster, folder))
    job = next(s.job_id for s in Ledger(folder) if s.runs != FINISH)
    words = ["--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=ElapsedRaw,State"]

    def accounted() -> list[list[str]]:
        return [line.split("|") for line in cluster.run("sacct", *words).stdout.splitlines()]

    # SLURM tells its accounting of an end some time after the queue has forgotten the job
    wait_for(lambda: [state for _, state in accounted()] == ["COMPLETED"] * 2)
    elapsed = [int(seconds) for seconds, _ in accounted()]
    measured_s = spent(Launch(folder)) * 3600
    # accounting counts whole seconds, and the last one of every job, in which we write and submit
    assert measured_s == pytest.approx(sum(elapsed), abs=max(0.02 * sum(elapsed), 1.5 * len(elapsed)))
    assert read_json(folder / "plan.json")["budget_gpu_hours"] is None
