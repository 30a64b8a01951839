"""Requests that no partition of a profile can ever run, each with the key to change."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from recorded import limits_2205

from latentbridge.launch.checks.sizes import find_misfits, find_waits, gpus_wanted
from latentbridge.launch.cluster import Cluster, Resources


def misfits(limits=None, profile=None, **asked):
    cluster = Cluster.model_validate({"executor": "slurm", "partition": "low", **(profile or {})})
    return find_misfits(cluster, Resources(**{"gpus_per_node": 1, **asked}), limits or limits_2205())


# gpu01: 30 CPUs, 508 GB, 4 h100, ib rack1
# gpu02: 32 CPUs, 512 GB, 4 h100, ib
# gpu03: 16 CPUs, 256 GB, 2 a100 and 2 of no type
@pytest.mark.parametrize(
    ("profile", "asked", "key", "words"),
    [
        ({}, {"nodes": 4}, "nodes", "nodes is 4; partition 'low' gives a job 3"),
        ({"exclude": "gpu[02-09]"}, {"nodes": 2}, "nodes", "gives a job 1"),
        ({"constraint": "ib&rack1"}, {"nodes": 2}, "nodes", "gives a job 1"),
        ({"constraint": "ib|rack1"}, {"nodes": 3}, "nodes", "gives a job 2"),
        ({"exclude": "gpu[01-03]"}, {}, "nodes", "leave no node of partition 'low'"),
        ({}, {"gpus_per_node": 5}, "gpus_per_node", "5 GPUs .* its largest node has 4"),
        ({}, {"cpus_per_gpu": 31, "nodes": 2}, "cpus_per_gpu", "31 CPUs .* 1 of its nodes have them, .* 32"),
        ({}, {"gpus_per_node": 3, "cpus_per_gpu": 11}, "cpus_per_gpu", "33 CPUs .* largest node has 32"),
        ({}, {"mem_gb": 513}, "mem_gb", "513 GB of memory .* largest node has 512"),
        ({}, {"mem_gb": 509, "nodes": 2}, "mem_gb", "1 of its nodes have them"),
        ({"constraint": "rack1|ib"}, {"mem_gb": 510, "cpus_per_gpu": 32, "nodes": 1, "timeout_min": 1441},
         "timeout_min", "1441; partition 'low' allows 1440"),
        ({"qos": "short"}, {"timeout_min": 6}, "timeout_min", "6; qos 'short' allows 5"),
        ({"qos": "short"}, {"timeout_min": 5, "nodes": 2, "gpus_per_node": 3}, "gpus_per_node",
         "6 GPUs in all; qos 'short' gives 4"),
        ({"partition": "main"}, {"timeout_min": 6}, "timeout_min", "qos 'short' allows 5"),
        ({"signal_delay_s": 120}, {"timeout_min": 2}, "timeout_min", "is 2, signal_delay_s .* 120"),
        ({"additional_parameters": {"gres": "gpu:h10:1"}}, {}, "gpus_per_node", "type 'h10'; .* 'h100'\?"),
        ({"additional_parameters": {"gpus-per-node": "a100:3"}}, {}, "gpus_per_node", "largest node has 2"),
        ({"partition": "main,low"}, {"nodes": 4, "timeout_min": 5}, "nodes", "nodes is 4"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_run_names_the_key_to_change(profile, asked, key, words):
    ((found_key, text),) = misfits(profile=profile, **asked)

    assert found_key == key
    assert re.search(words, text), text


def test_a_request_that_some_partition_of_the_profile_can_run_passes():
    assert misfits(nodes=3, gpus_per_node=4, cpus_per_gpu=4, mem_gb=256, timeout_min=1440) == []
    assert misfits(profile={"partition": "main,low"}, nodes=3) == []
    assert misfits(profile={"constraint": "[rack1*1&ib*2]"}, nodes=3) == [], "left to SLURM's own check"
    assert misfits(profile={"additional_parameters": {"gres": "nvme:1,gpu:a100:2"}}) == []
    assert misfits(profile={"constraint": "unheard_of"}) == [], "told of by its name"


def test_each_size_may_fit_some_node_and_all_of_them_none():
    # 32 CPUs are on gpu02, ib and rack1 together only on gpu01; without features, an a100 is on gpu03
    (found,) = misfits(profile={"additional_parameters": {"gpus_per_node": "a100:2"}}, mem_gb=300)

    assert found[0] == "nodes"
    assert found[1].endswith("partition 'low' has 0 with these GPUs, CPUs and memory at once")


def test_every_size_that_does_not_fit_is_told():
    found = misfits(gpus_per_node=5, cpus_per_gpu=9, mem_gb=600, timeout_min=2000)

    assert [key for key, _ in found] == ["gpus_per_node", "cpus_per_gpu", "mem_gb", "timeout_min"]


def test_limits_that_the_site_does_not_enforce_do_not_bind():
    limits = limits_2205(enforced=("associations", "qos"))

    assert misfits(limits, {"qos": "short"}, timeout_min=6, nodes=2, gpus_per_node=3) == []


@pytest.mark.parametrize(
    ("flag", "asked"), [("PartitionTimeLimit", {"timeout_min": 121}), ("PartitionMaxNodes", {"nodes": 2})]
)
def test_a_qos_may_lift_the_limits_of_a_partition(flag, asked):
    limits = limits_2205()
    main = replace(limits.partitions[1], max_nodes=1, qos=None)
    lifted = replace(limits.qos[0], flags=(flag,))
    profile = {"partition": "main"}

    assert len(misfits(replace(limits, partitions=(main,)), profile, **{"timeout_min": 9, **asked})) == 1
    assert (
        misfits(replace(limits, partitions=(main,), qos=(lifted,)), profile, **{"timeout_min": 9, **asked})
        == []
    )


def test_a_qos_may_go_before_that_of_the_partition():
    limits = limits_2205()
    first = replace(limits.qos[0], flags=("OverPartQOS",), max_wall_min=60)

    profile = {"partition": "main"}
    assert misfits(replace(limits, qos=(first, limits.qos[1])), profile, timeout_min=60) == []


def test_a_request_that_needs_a_drained_node_waits():
    limits, cluster = limits_2205(), Cluster(executor="slurm", partition="low")

    assert list(find_waits(cluster, Resources(nodes=2), limits)) == []
    assert list(find_waits(cluster, Resources(nodes=4), limits)) == []
    (text,) = find_waits(cluster, Resources(nodes=3), limits)
    assert "nodes is 3; only 2 of 3 in partition 'low' are in service" in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (None, 3)), ({"gpus_per_node": "h100:2"}, ("h100", 2)), ({"gres": "nvme:1,gpu:2"}, (None, 2)),
     ({"gres": "gpu:1g.5gb:7"}, ("1g.5gb", 7)), ({"gres": "nvme:1"}, (None, 3)),
     ({"gpus-per-node": 2}, (None, 2))],
)  # fmt: skip
def test_the_type_of_gpu_comes_from_the_additional_parameters(options, expected):
    cluster = Cluster(executor="slurm", additional_parameters=options)

    assert gpus_wanted(cluster, Resources(gpus_per_node=3)) == expected
