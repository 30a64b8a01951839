"""`explain` on a real queue: the reason it translates is the one that SLURM has."""

from __future__ import annotations

import time

import pytest
from launching import wait_for

from latentbridge.launch.plan import make_plan, write_launch
from latentbridge.launch.slurm.text import parse_fields
from latentbridge.launch.view.explain import explain

# run: what sbatch is asked, SLURM's reason, and what a person is told
WAITING = {
    "next": ("-c 20", "Resources", "it is next in partition main, but"),
    "later": ("-c 20", "Priority", "jobs of higher priority are before it in partition main"),
    "begin": ("--begin=now+1hour", "BeginTime", "it may not start before 20"),
    "own_hold": ("--hold", "JobHeldUser", "`scontrol release {job}`"),
    "operator_hold": ("--begin=now+1hour", "JobHeldAdmin", "it is held by an operator"),
    "too_long": (
        "-p high -t 5:00:00",
        "PartitionTimeLimit",
        "it asks for 05:00:00, more than partition high",
    ),
    "too_wide": ("-p low -N 2", "PartitionNodeLimit", "it asks for more nodes than partition low has"),
    "drained": ("-w gpu03", "ReqNodeNotAvail", "`sinfo -R` says why"),
    "after": ("--dependency=afterok:{own_hold}", "Dependency", "afterok:{own_hold}"),
    "wall": (
        "-q short -t 30",
        "QOSMaxWallDurationPerJobLimit",
        "more running time than QOS short gives one job",
    ),
    "user_gpus": (
        "-q short -t 3 -N 2 --gpus-per-node=4",
        "QOSMaxGRESPerUser",
        "QOS short lets you have only so much of this at a time: GPUs",
    ),
    "group_gpus": (
        "--gpus-per-node=3",
        "AssocGrpGRES",
        "account lab lets all its users together have only so much of this at a time: GPUs",
    ),
    "array_1": (None, "JobArrayTaskLimit", "of its array at most 1 run at a time"),
}


@pytest.fixture
def crowded(cluster):
    """Two nodes with two free CPUs each, the third drained, and two GPUs for all of account lab.

    A job in partition low may have one node; SLURM 24.11 refuses more than the partition has.
    """
    cluster.run("scontrol", "update", "PartitionName=low", "MaxNodes=1")
    cluster.run("scontrol", "update", "nodename=gpu03", "state=drain", "reason=test")
    cluster.run("sacctmgr", "--immediate", "modify", "account", "lab", "set", "GrpTRES=gres/gpu=2")
    yield cluster
    cluster.run("sacctmgr", "--immediate", "modify", "account", "lab", "set", "GrpTRES=gres/gpu=-1")
    cluster.run("scontrol", "update", "nodename=gpu03", "state=resume")
    cluster.run("scontrol", "update", "PartitionName=low", "MaxNodes=UNLIMITED")
    cluster.run("scancel", "--user=root")
    wait_for(lambda: not cluster.run("squeue", "--noheader").stdout.strip())


@pytest.fixture
def launch(project, write_spec):
    (project / "slurm" / "test.yaml").write_text("executor: slurm\n")
    runs = "".join(f"  {name}: {{steps: {n}}}\n" for n, name in enumerate(["array_0", *WAITING], start=2))
    write_spec(f"name: s\njob: count\ncluster: test\nruns:\n{runs}")
    plan = make_plan("spec", cluster=None, settings=[], root=project)
    return write_launch(plan, project / "runs", ["launch.py", "spec"], None)


def test_explain_translates_the_reason_that_slurm_has_for_each_way_of_waiting(crowded, launch):
    def sbatch(runs, *words):
        intent = launch.ledger.intend(runs)
        asked = ["sbatch", "--parsable", "--output=/dev/null", f"--comment=latentbridge:{intent.token}"]
        done = crowded.run(*asked, *words, "--wrap=sleep 300")
        assert done.returncode == 0, done.stderr
        launch.ledger.accepted(intent, done.stdout.strip())
        return done.stdout.strip()

    def reasons():
        shown = {
            run: parse_fields(crowded.run("scontrol", "-o", "show", "job", job).stdout)
            for run, job in jobs.items()
        }
        # behind a comma: UnavailableNodes:gpu03, or May be reserved for other job, as SLURM looked at it last
        return {run: fields["Reason"].replace("_", " ").partition(",")[0] for run, fields in shown.items()}

    crowded.run("sbatch", "--output=/dev/null", "-N2", "-c30", "--wrap=sleep 300")
    jobs = {"array_1": f"{sbatch(['array_0', 'array_1'], '--array=0-1%1')}_1"}
    for run, (words, _, _) in WAITING.items():
        if words is not None:
            jobs[run] = sbatch([run], *words.format(**jobs).split())
    crowded.run("scontrol", "hold", jobs["operator_hold"])
    expected = {run: reason for run, (_, reason, _) in WAITING.items()}

    for _ in range(20):
        if reasons() == expected:
            break
        time.sleep(0.5)
    assert reasons() == expected, "SLURM lets them wait for other reasons than this test is about"
    for run, (_, reason, words) in WAITING.items():
        told = explain(launch, run)
        assert told[0] == f"{run} is pending, job {jobs[run]}"
        assert f"(SLURM: {reason}" in told[1], run
        assert words.format(job=jobs[run], **jobs) in "\n".join(told), run
