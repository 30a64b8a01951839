"""Requests that real SLURM refuses, or accepts and never starts: all stopped before anything is queued."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentbridge.errors import ConfigError, PreflightError
from latentbridge.launch.checks import preflight
from latentbridge.launch.checks.preflight import ask_slurm
from latentbridge.launch.plan import make_plan
from latentbridge.launch.slurm.limits import read_limits

REPOSITORY = Path(__file__).parents[2]
PROFILE = (REPOSITORY / "slurm" / "test.yaml").read_text()
SPEC = """
    name: s
    job: count
    seeds: [1, 2]
    runs: {a: {steps: 3}}
    resources: {RESOURCES}
    """


@pytest.fixture(scope="module")
def limits(cluster):
    return read_limits()


@pytest.fixture
def check(cluster, limits, project, write_spec):
    """Plan a spec with changed profile and resources and check all of it; returns the warnings."""

    def run(*, profile=None, resources="", spec=SPEC, runs="runs", scripts=None, limits=limits):
        lines = [line for line in PROFILE.splitlines() if line.split(":")[0] not in (profile or {})]
        lines += [f"{key}: {value}" for key, value in (profile or {}).items()]
        (project / "slurm" / "test.yaml").write_text("\n".join(lines))
        write_spec(spec.replace("RESOURCES", resources))
        plan = make_plan("spec", cluster="test", settings=[], root=project)
        return preflight.preflight(plan, project / runs, limits, scripts or {})

    yield run
    assert cluster.run("squeue", "--noheader").stdout == "", "something was queued"


BAD_REQUESTS = {
    "unknown partition": ({"partition": "lo"}, "", r"slurm/test.yaml: partition .lo. .* mean .low.\?"),
    "unknown qos": ({"qos": "shrt"}, "", r"qos 'shrt' .* did you mean 'short'\?"),
    "unknown account": ({"account": "labs"}, "", r"account 'labs' .* did you mean 'lab'\?"),
    "unknown constraint": ({"constraint": "a100"}, "", r"constraint names 'a100'"),
    "every node excluded": ({"exclude": "gpu[01-03]"}, "", r"exclude and constraint leave no node"),
    "unknown node": ({"additional_parameters": "{nodelist: gpu09}"}, "", r"'gpu09', no node of this cluster"),
    "too many nodes": ({}, "nodes: 4", r"configs/spec.yaml:5: run 'a-s1' and 1 more: nodes is 4; .* a job 3"),
    "too many GPUs": ({}, "gpus_per_node: 5", r"spec.yaml:5: .* 5 GPUs .* largest node has 4"),
    "too much memory": ({}, "mem_gb: 513", r"513 GB of memory .* largest node has 512"),
    "time above the partition's": ({"partition": "high"}, "timeout_min: 61", r"partition 'high' allows 60"),
    "time above the qos's": ({"qos": "short"}, "timeout_min: 6", r"timeout_min is 6; qos 'short' allows 5"),
    "dependency on an unknown job": (
        {"additional_parameters": "{dependency: 'afterok:999'}"}, "", r"names job 999, which SLURM does not"
    ),
    "unknown GPU type": (
        {"additional_parameters": "{gpus_per_node: 'h10:2'}"}, "", r"type 'h10'; did you mean 'h100'\?"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("profile", "resources", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_refused_with_nothing_queued(check, profile, resources, message):
    with pytest.raises(PreflightError, match=message) as refused:
        check(profile=profile, resources=resources)

    assert len(str(refused.value).splitlines()) == 2, "one line, and that nothing was submitted"


def test_a_missing_script_is_refused(check):
    with pytest.raises(ConfigError, match=r"no jobs/cuont.py; did you mean 'count'\?"):
        check(spec="name: s\njob: cuont\nruns: {a: {}}\n")


def test_a_missing_data_path_is_refused(check):
    with pytest.raises(PreflightError, match=r"spec.yaml:3: run 'a': target.model is '/no/weights', which"):
        check(spec="name: s\njob: count\nruns: {a: {target.model: /no/weights}}\n")


def test_an_unwritable_run_folder_is_refused(check, project):
    (project / "file").touch()

    with pytest.raises(PreflightError, match=r"my 'lab/file: not writable"):
        check(runs="file")


@pytest.mark.parametrize("python", ["/no/venv/bin/python", "/etc/passwd"])
def test_an_absent_interpreter_is_refused(check, python):
    with pytest.raises(PreflightError, match=f"slurm/test.yaml: python '{python}' is not a program here"):
        check(profile={"python": python})


def test_a_good_request_passes_and_slurm_agrees(check):
    warnings = check(scripts={"runs a": "#!/bin/sh\n#SBATCH --partition=low --nodes=3 --array=0-1\n"})

    assert all("other nodes may not see it" in text for text in warnings)


def test_several_mistakes_are_told_at_once(check):
    with pytest.raises(PreflightError) as refused:
        check(profile={"qos": "nope", "account": "nope"}, resources="nodes: 4, timeout_min: 2000")

    assert len(str(refused.value).splitlines()) == 5


def test_an_unknown_name_in_the_exclude_list_only_warns(check):
    warnings = check(profile={"exclude": "gpu[03-04],login1"})

    assert "exclude names gpu04, login1, not nodes of this cluster; left out." in "".join(warnings)


def test_slurms_own_check_has_the_last_word(check):
    with pytest.raises(PreflightError, match=r"runs a: SLURM says: .*Requested reservation is invalid"):
        check(scripts={"runs a": "#!/bin/sh\n#SBATCH --partition=low --reservation=nope\n"})


def test_a_request_that_waits_for_a_drained_node_is_warned_of_and_not_refused(check, cluster):
    cluster.run("scontrol", "update", "NodeName=gpu02", "State=DRAIN", "Reason=test")
    try:
        limits = read_limits()
        warnings = check(resources="nodes: 3", limits=limits)
        said = ask_slurm("#!/bin/sh\n#SBATCH --partition=low --nodes=3\n", limits)
    finally:
        cluster.run("scontrol", "update", "NodeName=gpu02", "State=RESUME")

    assert "nodes is 3; only 2 of 3 in partition 'low' are in service" in "".join(warnings)
    assert said is None


def test_a_full_queue_is_no_fault_of_the_request_and_its_limit_is_read(limits, cluster):
    assert [row.max_submit for row in limits.associations if row.account == "lab"] == [None]
    modify = ["sacctmgr", "-iQ", "modify", "user", "root", "where", "account=lab", "set"]
    cluster.run(*modify, "MaxSubmitJobs=1")
    try:
        cluster.run("sbatch", "--hold", "--output=/dev/null", "--wrap=true")
        said = ask_slurm("#!/bin/sh\n#SBATCH --partition=low\n", limits)
        limits = read_limits()
    finally:
        cluster.run("scancel", "--user=root")
        cluster.run(*modify, "MaxSubmitJobs=-1")

    assert [row.max_submit for row in limits.associations if row.account == "lab"] == [1]
    assert said is None


def test_without_accounting_all_but_accounts_is_still_checked(check, cluster_without_accounting, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(cluster_without_accounting.conf))
    limits = read_limits()

    assert (limits.accounting, limits.associations, limits.qos) == (False, None, None)
    assert check(profile={"account": "any", "qos": "any"}, limits=limits) is not None
    with pytest.raises(PreflightError, match="nodes is 2; partition 'low' gives a job 1"):
        check(resources="nodes: 2", limits=limits)
