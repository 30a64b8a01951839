"""Names that a cluster does not know are told of with the nearest that it does."""

from __future__ import annotations

import re
from dataclasses import replace
from subprocess import CompletedProcess

import pytest
from recorded import limits_2205, limits_2511

from latentbridge.errors import SchedulerError
from latentbridge.launch.checks import names
from latentbridge.launch.checks.names import feature_names, find_unknown, known_nodes, near
from latentbridge.launch.cluster import Cluster


def complaints(limits=None, **settings):
    cluster = Cluster.model_validate({"executor": "slurm", "partition": "low", **settings})
    return list(find_unknown(cluster, limits or limits_2205()))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"partition": "mian"}, "partition 'mian' does not exist .* did you mean 'main'"),
        ({"partition": "low,hgih"}, "partition 'hgih' does not exist"),
        ({"partition": "old"}, "partition 'old' is DOWN and starts no jobs; Known: low, main"),
        ({"account": "la"}, "account 'la' is not one you may charge; did you mean 'lab'"),
        ({"account": "far"}, "account 'far' .* Known: guests, lab"),
        ({"account": "guests"}, "'guests' may not be charged .* guests in main, lab in any partition"),
        ({"qos": "shrot"}, "qos 'shrot' is not one you may use; did you mean 'short'"),
        ({"account": "guests", "partition": "main", "qos": "short"}, "qos 'short' .* Known: normal"),
        ({"constraint": "ib&rack2"}, "constraint names 'rack2', .* did you mean 'rack1'"),
        ({"additional_parameters": {"nodelist": "gpu[03-04]"}}, "nodelist names 'gpu04'"),
        ({"additional_parameters": {"nodelist": "gpu03"}, "exclude": "gpu[02-03]"}, "both name gpu03"),
        ({"additional_parameters": {"comment": "mine"}}, "comment would replace .*; leave it out"),
        ({"additional_parameters": {"cpus-per-task": 3}}, "set resources.cpus_per_gpu instead"),
        ({"additional_parameters": {"no-requeue": True}}, "no_requeue: runs go on .* `retry` in the spec"),
    ],
)
def test_an_unknown_or_misplaced_name_is_told_of_once(settings, expected):
    (complaint,) = complaints(**settings)

    assert re.search(expected, complaint), complaint


def test_names_that_go_together_pass():
    assert complaints(account="lab", qos="short", constraint="[rack1*2|ib]", exclude="gpu01") == []
    assert complaints(partition=None, account="guests", qos="normal") == []
    assert complaints(additional_parameters={"reservation": "r", "mail-type": "END"}) == []


def test_a_qos_that_a_partition_turns_away_is_told_of():
    limits = limits_2205()
    low = replace(limits.partitions[0], deny_qos=("short",))

    assert complaints(replace(limits, partitions=(low,)), qos="short") == [
        "qos 'short' may not use partition 'low', which takes all but short; set another"
    ]


def test_a_cluster_without_a_default_partition_wants_one_named():
    limits = limits_2205()

    (complaint,) = complaints(replace(limits, partitions=limits.partitions[:1]), partition=None)

    assert complaint == "partition is not set, and this cluster has no default one; Known: low"


def test_accounts_and_qos_go_unchecked_where_nobody_enforces_them():
    assert complaints(limits_2511(), partition=None, account="any", qos="any") == []
    assert complaints(limits_2205(enforced=()), account="any", qos="short") == []
    only_accounts = limits_2205(enforced=("associations",))
    assert complaints(only_accounts, account="guests", partition="main", qos="short") == []


def test_unknown_nodes_leave_a_host_list():
    assert known_nodes("gpu[02-05],login1", limits_2205()) == ("gpu02,gpu03", ["gpu04", "gpu05", "login1"])
    assert known_nodes("login1", limits_2205()) == (None, ["login1"])
    assert known_nodes(None, limits_2205()) == (None, [])


def test_feature_names_are_found_in_an_expression():
    assert feature_names("[rack1*2&rack-2]|ib,a100.80") == ["rack1", "rack-2", "ib", "a100.80"]
    assert feature_names(None) == []


def test_of_many_known_names_a_message_shows_twelve():
    assert near("n", [f"node{number:02}" for number in range(15)]).endswith("node11 and 3 more")


def test_only_jobs_that_slurm_knows_may_be_depended_on(monkeypatch):
    asked = []

    def squeue(*argv):
        asked.append(argv)
        return CompletedProcess(argv, 0, "41 41\n40 43\n", "")

    monkeypatch.setattr(names, "call", squeue)

    found = complaints(additional_parameters={"dependency": "afterok:40_1:42,afterany:43+5?singleton"})

    assert len(asked) == 1
    assert [text.split(",")[0] for text in found] == ["additional_parameters.dependency names job 42"]


def test_a_controller_that_does_not_answer_is_no_unknown_job(monkeypatch):
    answer = CompletedProcess([], 1, "", "slurm_load_jobs error: Socket timed out on send/recv operation")
    monkeypatch.setattr(names, "call", lambda *argv: answer)

    with pytest.raises(SchedulerError, match="Socket timed out"):
        complaints(additional_parameters={"dependency": "afterok:40"})
