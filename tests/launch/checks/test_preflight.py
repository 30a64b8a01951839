"""All that is wrong with a plan is told at once; SLURM's own opinion comes last, and only if it has one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from recorded import limits_2205

from latentbridge.errors import PreflightError, SchedulerError
from latentbridge.launch import slurm
from latentbridge.launch.checks import files
from latentbridge.launch.checks.preflight import ask_slurm, preflight
from latentbridge.launch.plan import make_plan
from latentbridge.launch.slurm.limits import parse_partition

# nodes all in service
LIMITS = limits_2205(nodes=limits_2205().nodes[::2])


@pytest.fixture(autouse=True)
def whole_python(monkeypatch):
    monkeypatch.setattr(files, "NEEDED", ("json",))


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Stand in for sbatch: it notes how it was called and the script, prints what it is told, and fails."""

    def answer(stderr: str, code: int = 1) -> None:
        tool = tmp_path / "bin" / "sbatch"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(
            f'#!/bin/sh\necho "$1" >> {tmp_path}/asked\ncat "$2" >> {tmp_path}/asked\n'
            f"echo '{stderr}' >&2\nexit {code}\n"
        )
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tool.parent), prepend=":")

    return answer


@pytest.fixture
def plan(project, write_spec):
    """A plan for the recorded cluster, with a profile of some keys and a spec of some lines."""

    def make(profile="", spec="runs: {a: {steps: 3}}"):
        (project / "slurm" / "x.yaml").write_text(f"executor: slurm\npartition: low\n{profile}\n")
        write_spec(f"name: s\njob: count\n{spec}\n")
        return make_plan("spec", cluster="x", settings=[], root=project)

    return make


def test_every_problem_is_told_at_once_with_where_it_was_set(plan, project, sbatch, tmp_path):
    bad = plan(
        "account: la\nsetup: [source /no/env]",
        "resources:\n  mem_gb: 999\nruns:\n  a: {target.model: /no/model}\n  b: {resources: {nodes: 3}}",
    )
    sbatch("", 0)

    with pytest.raises(PreflightError) as refused:
        preflight(bad, project / "runs", LIMITS, {"runs a": "#!/bin/sh"})

    lines = str(refused.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "slurm/x.yaml",
        "configs/spec.yaml:6",
        "slurm/x.yaml",
        "configs/spec.yaml:4",
        "configs/spec.yaml:7",
        "Nothing was submitted",
    ]
    assert not (tmp_path / "asked").exists(), "sbatch is asked last, for what else is sound"


def test_equal_requests_are_told_of_once(plan, project):
    with pytest.raises(PreflightError) as refused:
        preflight(plan("resources: {nodes: 7}", "seeds: [1, 2, 3]"), project / "runs", LIMITS, {})

    assert str(refused.value).splitlines()[0].startswith("slurm/x.yaml: run 's-s1' and 2 more: nodes is 7")


def test_warnings_do_not_stop_a_sound_plan(plan, project, sbatch):
    sbatch("sbatch: Job 7 to start at 2026-11-22T14:10:18 using 1 processors on nodes gpu01", 0)

    warnings = preflight(plan("exclude: gpu09"), project / "runs", LIMITS, {"runs a": "#!/bin/sh"})

    assert "slurm/x.yaml: exclude names gpu09, not nodes of this cluster; left out." in "\n".join(warnings)


def test_a_complaint_of_slurms_own_refuses(plan, project, sbatch):
    sbatch("sbatch: error: QOS is not pretty\nallocation failure: Unspecified error")

    with pytest.raises(PreflightError) as refused:
        preflight(plan(), project / "runs", LIMITS, {"runs a": "#!/bin/sh"})

    assert str(refused.value).splitlines()[0] == (
        "slurm/x.yaml: runs a: SLURM says: QOS is not pretty allocation failure: Unspecified error"
    )


def test_without_slurm_only_files_are_looked_at(plan, project):
    assert isinstance(preflight(plan("account: any"), project / "runs", None, {}), list)


def test_sbatch_is_shown_the_script_and_asked_only_for_its_opinion(sbatch, tmp_path):
    sbatch("", 0)

    assert ask_slurm("#!/bin/sh\ntrue\n", LIMITS) is None
    assert (tmp_path / "asked").read_text() == "--test-only\n#!/bin/sh\ntrue\n"


@pytest.mark.parametrize(
    "said",
    [
        "allocation failure: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
    ],
)
def test_a_busy_controller_is_not_a_refusal(sbatch, said):
    sbatch(said)

    with pytest.raises(SchedulerError, match="run the same command again later"):
        ask_slurm("", LIMITS)


def test_a_queue_that_is_full_for_now_is_not_a_refusal(sbatch):
    sbatch("sbatch: error: AssocMaxSubmitJobLimit\nallocation failure: Job violates accounting/QOS policy")

    assert ask_slurm("", LIMITS) is None


def test_a_drained_node_makes_an_unavailable_configuration_doubtful(sbatch, monkeypatch):
    monkeypatch.setattr(slurm, "SETTLE_S", 0)
    sbatch("allocation failure: Requested node configuration is not available")

    assert ask_slurm("", limits_2205()) is None
    assert ask_slurm("", LIMITS) == "allocation failure: Requested node configuration is not available"
    sbatch("allocation failure: Invalid qos specification")
    assert ask_slurm("", limits_2205()) == "allocation failure: Invalid qos specification"


def test_a_partition_that_takes_no_jobs_from_its_own_nodes_is_warned_of(plan, project):
    place = parse_partition("PartitionName=low AllocNodes=login1 Default=NO State=UP MaxTime=UNLIMITED")
    limits = replace(LIMITS, partitions=(replace(LIMITS.partitions[0], alloc_nodes=place.alloc_nodes),))

    warnings = preflight(plan(), project / "runs", limits, {})

    assert any(
        "partition 'low' takes jobs only from login1: what a run sets free" in text for text in warnings
    )
