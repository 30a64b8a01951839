"""Names in a cluster profile that the cluster must know: partition, account, QOS, features, nodes, jobs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from latentbridge.errors import SchedulerError
from latentbridge.launch.cluster import Cluster
from latentbridge.launch.slurm import call
from latentbridge.launch.slurm.limits import Limits, Node, Partition
from latentbridge.launch.slurm.text import node_names

# set among the additional parameters, these would escape the ledger or the checks; where they belong
PLACES = {
    **{key: key for key in ("partition", "account", "qos", "constraint", "exclude")},
    "nodes": "resources.nodes",
    "time": "resources.timeout_min",
    "mem": "resources.mem_gb",
    "cpus_per_task": "resources.cpus_per_gpu",
    "signal": "signal_delay_s",
}
OURS = ("array", "comment", "error", "job_name", "ntasks_per_node", "open_mode", "output")
REQUEUE = ("requeue", "no_requeue")
# of a cluster's thousand nodes a message names so many
MAX_NAMES = 12


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, and those there are."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{hint}Known: {', '.join(names[:MAX_NAMES]) or 'none'}{more}"


def nodes_of(cluster: Cluster, limits: Limits, partition: Partition | None = None) -> list[Node]:
    """Nodes of one partition, or of all that the profile names."""
    names = {place.name for place in ([partition] if partition else limits.partitions_of(cluster))}
    return [node for node in limits.nodes if names & set(node.partitions)]


def additional(cluster: Cluster) -> dict[str, Any]:
    """The profile's further sbatch options, every key in one spelling."""
    return {key.replace("-", "_"): value for key, value in cluster.additional_parameters.items()}


def find_unknown(cluster: Cluster, limits: Limits) -> Iterator[str]:
    """Every name in a profile that this cluster does not know, or that do not go together."""
    yield from _partitions(cluster, limits)
    yield from _account(cluster, limits)
    yield from _qos(cluster, limits)
    for partition in limits.partitions_of(cluster):
        yield from _doors(cluster, partition)
    features = {feature for node in nodes_of(cluster, limits) for feature in node.features}
    for name in feature_names(cluster.constraint):
        if name not in features:
            yield f"constraint names '{name}', which no node there has; {near(name, features)}"
    yield from _options(cluster, limits)


def feature_names(constraint: str | None) -> list[str]:
    """The features in an expression such as `[rack1*2&rack2]|ib`."""
    return re.findall(r"[^\s&|,!()\[\]:]+", re.sub(r"\*\d+", " ", constraint or ""))


def _partitions(cluster: Cluster, limits: Limits) -> Iterator[str]:
    known = [partition.name for partition in limits.partitions]
    places = limits.partitions_of(cluster)
    if cluster.partition is None and not places:
        yield f"partition is not set, and this cluster has no default one; {near('', known)}"
    for name in cluster.partition.split(",") if cluster.partition else ():
        if name not in known:
            yield f"partition '{name}' does not exist on this cluster; {near(name, known)}"
    for partition in places:
        if partition.state not in (None, "UP"):
            up = [other.name for other in limits.partitions if other.state == "UP"]
            yield f"partition '{partition.name}' is {partition.state} and starts no jobs; {near('', up)}"


def _account(cluster: Cluster, limits: Limits) -> Iterator[str]:
    if limits.associations is None or "associations" not in limits.enforced:
        return
    accounts = [row.account for row in limits.associations]
    if cluster.account is not None and cluster.account not in accounts:
        yield f"account '{cluster.account}' is not one you may charge; {near(cluster.account, accounts)}"
    elif not limits.associations_of(cluster):
        account = cluster.account or limits.default_account
        pairs = [f"{row.account} in {row.partition or 'any partition'}" for row in limits.associations]
        yield f"account '{account}' may not be charged in this partition; {near('', pairs)}"


def _qos(cluster: Cluster, limits: Limits) -> Iterator[str]:
    rows = limits.associations_of(cluster)
    if cluster.qos is None or limits.qos is None:
        return
    known = [qos.name for qos in limits.qos]
    if rows and "qos" in limits.enforced:
        known = [name for row in rows for name in row.qos]
    if cluster.qos not in known:
        yield f"qos '{cluster.qos}' is not one you may use; {near(cluster.qos, known)}"


def _doors(cluster: Cluster, partition: Partition) -> Iterator[str]:
    # its list of accounts includes accounts below them, which only SLURM's own check knows
    qos, allowed, denied = cluster.qos, partition.allow_qos, partition.deny_qos
    if qos is not None and (qos in denied or (allowed is not None and qos not in allowed)):
        rule = f"only {', '.join(allowed)}" if allowed else f"all but {', '.join(denied)}"
        yield f"qos '{qos}' may not use partition '{partition.name}', which takes {rule}; set another"


def known_nodes(hostlist: str | None, limits: Limits) -> tuple[str | None, list[str]]:
    """A host list without the names this cluster does not have, and those names.

    SLURM refuses a whole request for one unknown name in its exclude list.
    """
    names = node_names(hostlist or "")
    have = {node.name for node in limits.nodes}
    kept = [name for name in names if name in have]
    return ",".join(kept) or None, [name for name in names if name not in have]


def _options(cluster: Cluster, limits: Limits) -> Iterator[str]:
    """additional_parameters that get in the way, and the nodes and jobs they name."""
    options = additional(cluster)
    for key in options:
        if key in PLACES:
            yield f"additional_parameters.{key} would go unchecked; set {PLACES[key]} instead"
        elif key in OURS:
            yield f"additional_parameters.{key} would replace what jobs are recognised by; leave it out"
        elif key in REQUEUE:
            yield f"additional_parameters.{key}: runs go on by being requeued; `retry` in the spec bounds it"
    wanted = str(options.get("nodelist", ""))
    known = [node.name for node in limits.nodes]
    for name in known_nodes(wanted, limits)[1]:
        yield f"additional_parameters.nodelist names '{name}', no node of this cluster; {near(name, known)}"
    if both := set(node_names(cluster.exclude or "")) & set(node_names(wanted)):
        yield f"exclude and additional_parameters.nodelist both name {', '.join(sorted(both))}; drop one"
    yield from _dependencies(str(options.get("dependency", "")))


def _dependencies(dependency: str) -> Iterator[str]:
    """Jobs that SLURM does not know: it takes them for finished well, and would not wait."""
    jobs = list(dict.fromkeys(re.findall(r":(\d+)", dependency)))
    if not jobs:
        return
    # one unknown id alone is an error, one among several is left out in silence
    answer = call("squeue", "--noheader", "--states=all", f"--jobs={','.join(jobs)}", "--format=%F %A")
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
        raise SchedulerError(f"squeue failed: {' '.join(answer.stderr.split())}; run the same command later")
    for job in jobs:
        if job not in answer.stdout.split():
            yield (
                f"additional_parameters.dependency names job {job}, which SLURM does not know and would not "
                "wait for; leave it out, or order the runs of one spec by its `needs`"
            )
