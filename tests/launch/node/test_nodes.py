"""Which nodes later requests leave out, and which they cannot."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from latentbridge.launch.cluster import Cluster
from latentbridge.launch.node.nodes import bad_nodes, dead_among, nodes_to_avoid, report_bad

NODES = {"gpu01": "low", "gpu02": "low", "gpu03": "low", "cpu01": "other"}


@pytest.fixture
def launch(tmp_path):
    """A launch on the three nodes of partition `low`."""
    low = SimpleNamespace(name="low")
    nodes = tuple(SimpleNamespace(name=name, partitions=(partition,)) for name, partition in NODES.items())
    limits = SimpleNamespace(nodes=nodes, partitions_of=lambda cluster: [low])
    return SimpleNamespace(path=tmp_path / "s_1", cluster=Cluster(executor="slurm"), limits=limits)


def report(launch, *nodes, hours=1.0):
    for node in nodes:
        report_bad(launch.path.parent, [node], "it burnt", "a", hours)


def test_a_bad_node_is_left_out_until_its_time_is_over(launch, monkeypatch):
    report(launch, "gpu02", hours=2)
    assert nodes_to_avoid(launch, needed=1) == ["gpu02"]

    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * 3600 + 1)

    assert nodes_to_avoid(launch, needed=1) == []
    assert bad_nodes(launch.path.parent) == []


def test_a_node_that_the_cluster_or_the_partition_does_not_have_is_not_named(launch):
    report(launch, "gpu99", "cpu01", "gpu03")

    assert nodes_to_avoid(launch, needed=1) == ["gpu03"]


def test_as_many_nodes_are_spared_as_the_request_needs_the_latest_failures_left_out_first(launch):
    report(launch, "gpu01", "gpu03", "gpu02")

    assert nodes_to_avoid(launch, needed=1) == ["gpu02", "gpu03"]
    assert nodes_to_avoid(launch, needed=2) == ["gpu02"]
    assert nodes_to_avoid(launch, needed=3) == []


def test_what_the_profile_excludes_cannot_be_spared(launch):
    launch.cluster = Cluster(executor="slurm", exclude="gpu[01-02]")
    report(launch, "gpu03")

    assert nodes_to_avoid(launch, needed=1) == []


def test_dead_nodes_are_those_that_slurm_lost_and_not_those_that_drain(tmp_path, monkeypatch):
    (tmp_path / "scontrol").write_text(
        """#!/bin/sh
        echo "$*" >&2
        echo 'NodeName=gpu01 Arch=x86_64 State=DOWN+NOT_RESPONDING Reason=Not responding [root@now]'
        echo 'NodeName=gpu02 Arch=x86_64 State=MIXED+PLANNED ThreadsPerCore=1 Comment=was DOWN'
        echo 'NodeName=gpu03 Arch=x86_64 State=MIXED+DRAIN'
        echo 'NodeName=gpu04 Arch=x86_64 State=IDLE+POWERED_DOWN'
        echo 'NodeName=gpu05 Arch=x86_64 State=DOWN*+DRAIN'
        """
    )
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    assert dead_among("gpu[01-05]") == ["gpu01", "gpu05"]


def test_nodes_under_suspicion_go_first_unless_they_are_so_many_that_it_is_the_disk(launch):
    report(launch, "gpu03")

    assert nodes_to_avoid(launch, needed=1, first=["gpu02"]) == ["gpu02", "gpu03"]
    assert nodes_to_avoid(launch, needed=1, first=["gpu01", "gpu02", "gpu04", "gpu05"]) == ["gpu03"]
