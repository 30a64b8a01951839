"""What SLURM's tools print, old and new, becomes the limits a launch respects."""

from __future__ import annotations

import json

import pytest
from recorded import limits_2205, limits_2411, limits_2511

from latentbridge.errors import SchedulerError
from latentbridge.launch.cluster import Cluster
from latentbridge.launch.slurm import limits as limits_module
from latentbridge.launch.slurm.limits import Limits, make_limits, read_limits


def profile(**settings):
    return Cluster.model_validate({"executor": "slurm", **settings})


def test_the_settings_of_a_cluster_are_read():
    limits = limits_2205()

    assert (limits.version, limits.cluster_name) == ("22.05.8", "testcluster")
    assert (limits.max_array_size, limits.max_job_count) == (1001, 10000)
    assert (limits.min_job_age_s, limits.kill_wait_s) == (300, 30)
    assert (limits.accounting, limits.enforced) == (True, ("associations", "limits", "qos"))
    assert (limits.preempt_type, limits.preempt_mode) == ("preempt/partition_prio", "REQUEUE")
    assert (limits.sends_user_signal, limits.requeue_default) == (False, True)
    assert limits.enforce_part_limits == "NO"


def test_partitions_are_read():
    low, main, old = limits_2205().partitions

    assert [place.is_default for place in (low, main, old)] == [False, True, False]
    assert [place.max_time_min for place in (low, main, old)] == [1440, 120, None]
    assert [place.max_nodes for place in (low, main, old)] == [None, 2, None]
    assert [place.total_nodes for place in (low, main, old)] == [3, 2, 1]
    assert [place.state for place in (low, main, old)] == ["UP", "UP", "DOWN"]
    assert [place.qos for place in (low, main, old)] == [None, "short", None]
    assert [place.grace_s for place in (low, main, old)] == [0, 90, 0]
    assert (low.allow_accounts, main.allow_accounts, old.deny_qos) == (None, ("lab", "guests"), ("short",))


def test_nodes_are_read_less_what_is_set_aside_for_the_system():
    first, second, third = limits_2205().nodes

    assert (first.cpus, first.memory_mb) == (30, 524288 - 4096)
    assert [node.gpus for node in (first, second, third)] == [{"h100": 4}, {"h100": 4}, {"a100": 2, "": 2}]
    assert (third.num_gpus(None), third.num_gpus("a100"), third.num_gpus("h100")) == (4, 2, 0)
    assert (first.features, third.features) == (("ib", "rack1"), ())
    assert third.partitions == ("low", "old")
    assert [node.is_usable for node in (first, second, third)] == [True, False, True]


@pytest.mark.parametrize(
    ("state", "usable"),
    [("IDLE", True), ("IDLE+CLOUD+POWERED_DOWN", True), ("MIXED+PLANNED", True), ("DOWN*", False),
     ("IDLE*", False), ("IDLE+NOT_RESPONDING", False), ("IDLE+DRAIN", False), ("FAIL", False)],
)  # fmt: skip
def test_a_node_is_in_service_unless_its_state_says_otherwise(state, usable):
    (node,) = make_limits({}, partitions=[], nodes=[f"NodeName=a State={state}"], user=None, qos=None).nodes

    assert node.is_usable is usable


def test_accounts_and_qos_of_this_cluster_are_read():
    limits = limits_2205()
    lab, guests = limits.associations
    normal, short = limits.qos

    assert limits.default_account == "lab"
    assert (lab.account, lab.partition, lab.qos) == ("lab", None, ("normal", "short"))
    assert (lab.default_qos, lab.max_submit, lab.max_wall_min) == ("normal", 40, None)
    assert (guests.partition, guests.max_wall_min) == ("main", 2880)
    assert (normal.max_wall_min, normal.max_submit, normal.max_gpus) == (None, None, None)
    assert (short.max_wall_min, short.max_submit, short.max_gpus, short.max_nodes) == (5, 25, 4, 2)
    assert (short.grace_s, short.flags) == (90, ("DenyOnLimit",))


def test_a_newer_slurm_with_accounting_is_read():
    limits = limits_2411()

    assert (limits.version, limits.enforced) == ("24.11.5", ("associations", "limits", "qos"))
    assert (limits.kill_wait_s, limits.default_account) == (3, "lab")
    (low,) = limits.partitions
    assert (low.max_time_min, low.max_nodes, low.total_nodes, low.preempt_mode) == (1440, None, 3, "REQUEUE")
    assert [(node.gpus, node.is_usable) for node in limits.nodes] == [
        ({"h100": 4}, False),
        ({"h100": 4}, True),
    ]
    assert [(qos.max_wall_min, qos.max_gpus) for qos in limits.qos] == [(None, None), (5, 4)]
    assert [row.qos for row in limits.associations] == [("normal",), ("normal", "short")]


def test_a_newer_slurm_without_accounting_is_read():
    limits = limits_2511()

    assert (limits.version, limits.accounting, limits.enforced) == ("25.11.4", False, ())
    assert (limits.associations, limits.qos, limits.preempt_type) == (None, None, None)
    assert (limits.sends_user_signal, limits.requeue_default) == (True, False)
    assert [place.name for place in limits.partitions] == ["gpu nodes (amd)"]
    assert [node.gpus for node in limits.nodes] == [{}, {"1g.5gb": 7}]


def test_a_slurm_that_prints_nothing_known_gives_unknown_limits():
    limits = make_limits({}, partitions=["?"], nodes=["?"], user=[], qos=[])

    assert (limits.version, limits.max_array_size, limits.requeue_default) == (None, None, None)
    assert limits.submit_limit(profile()) is None


@pytest.mark.parametrize(
    "limits", [limits_2205(), limits_2411(), limits_2511()], ids=["22.05", "24.11", "25.11"]
)
def test_limits_survive_a_json_file(limits):
    assert Limits.from_record(json.loads(json.dumps(limits.as_record()))) == limits


def test_the_submit_limit_is_the_smallest_that_applies_unless_the_profile_says():
    limits = limits_2205()

    assert limits.submit_limit(profile(partition="low")) == 40
    assert limits.submit_limit(profile(partition="low", qos="short")) == 25
    assert limits.submit_limit(profile(partition="main", account="guests")) == 25, "the partition's own qos"
    assert limits.submit_limit(profile(partition="low", account="guests")) is None
    assert limits.submit_limit(profile(partition="low", submit_limit=7)) == 7
    assert limits_2205(enforced=("associations",)).submit_limit(profile(partition="low")) is None


def test_the_qos_of_a_partition_goes_before_that_of_a_job():
    limits = limits_2205()
    low, main, _ = limits.partitions

    assert [qos.name for qos in limits.qos_of(profile(), low)] == ["normal"]
    assert [qos.name for qos in limits.qos_of(profile(), main)] == ["short", "normal"]


def test_a_silent_accounting_database_leaves_accounts_unknown(monkeypatch):
    def silent(*argv, patience_s):
        raise SchedulerError("sacctmgr did not answer")

    monkeypatch.setattr(limits_module, "call", silent)
    monkeypatch.setattr(
        limits_module, "ask", lambda *argv: ["AccountingStorageType = accounting_storage/slurmdbd"]
    )

    limits = read_limits()

    assert (limits.accounting, limits.associations, limits.qos) == (True, None, None)
