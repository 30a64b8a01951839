"""What each run asks for against what its partition has: nodes, GPUs, CPUs, memory, time."""

from __future__ import annotations

import re
from collections.abc import Iterator

from latentbridge.launch.checks.names import additional, feature_names, near, nodes_of
from latentbridge.launch.cluster import Cluster, Resources
from latentbridge.launch.slurm.limits import Limits, Node, Partition
from latentbridge.launch.slurm.text import node_names

# a key of Resources, and what is wrong with its value
Misfit = tuple[str, str]


def find_misfits(cluster: Cluster, request: Resources, limits: Limits) -> list[Misfit]:
    """Why no partition of the profile will ever run this; empty where one can."""
    found: list[Misfit] = []
    if cluster.signal_delay_s >= request.timeout_min * 60:
        asked = (
            f"timeout_min is {request.timeout_min}, signal_delay_s of the profile {cluster.signal_delay_s}"
        )
        found = [("timeout_min", f"{asked}: it would be stopped as it starts; raise one or lower the other")]
    tried = [
        [*_sizes(cluster, request, limits, partition), *_times(cluster, request, limits, partition)]
        for partition in limits.partitions_of(cluster)
    ]
    return found + min(tried, key=len, default=[])


def find_waits(cluster: Cluster, request: Resources, limits: Limits) -> Iterator[str]:
    """Requests that fit, though not before nodes that are out of service come back."""
    for partition in limits.partitions_of(cluster):
        nodes = candidates(cluster, limits, partition)
        usable = sum(node.is_usable for node in nodes)
        if usable < request.nodes <= len(nodes):
            yield (
                f"nodes is {request.nodes}; only {usable} of {len(nodes)} in partition '{partition.name}' "
                "are in service, so it will wait for others to come back"
            )


def candidates(cluster: Cluster, limits: Limits, partition: Partition) -> list[Node]:
    """The nodes of a partition that exclude and constraint leave."""
    expression = cluster.constraint or ""
    nodes = nodes_of(cluster, limits, partition)
    # one that no node has is told of by its name
    wanted = set(feature_names(expression)) & {feature for node in nodes for feature in node.features}
    if re.search(r"[\[\]()*!]", expression):
        wanted = set()  # counts and groups are left to SLURM's own check
    excluded = set(node_names(cluster.exclude or ""))
    return [
        node
        for node in nodes
        if node.name not in excluded
        and (wanted <= set(node.features) or ("|" in expression and wanted & set(node.features)))
    ]


def gpus_wanted(cluster: Cluster, request: Resources) -> tuple[str | None, int]:
    """Type and number of GPUs a node must have; only gres and gpus_per_node can ask for a type."""
    options = additional(cluster)
    gres = [item for item in str(options.get("gres", "")).split(",") if item.startswith("gpu:")]
    for text in (str(options.get("gpus_per_node", "")), *gres):
        kind, _, count = text.removeprefix("gpu:").rpartition(":")
        if count.isdigit():
            return kind or None, int(count)
    return None, request.gpus_per_node or 0


def _sizes(cluster: Cluster, request: Resources, limits: Limits, partition: Partition) -> Iterator[Misfit]:
    place, nodes = f"partition '{partition.name}'", candidates(cluster, limits, partition)
    if not nodes:
        yield "nodes", f"exclude and constraint leave no node of {place}; loosen one of them"
        return
    most = len(nodes)
    if not any("PartitionMaxNodes" in qos.flags for qos in limits.qos_of(cluster, partition)):
        most = min(most, partition.max_nodes or most)
    if request.nodes > most:
        yield "nodes", f"nodes is {request.nodes}; {place} gives a job {most}: it would never start; lower it"
        return
    kind, gpus = gpus_wanted(cluster, request)
    kinds = {known for node in nodes for known in node.gpus}
    if kind and kind not in kinds:
        yield "gpus_per_node", f"no node of {place} has GPUs of type '{kind}'; {near(kind, kinds - {''})}"
        return
    yield from _per_node(request, nodes, kind, gpus, place)
    for qos in limits.qos_of(cluster, partition) if "limits" in limits.enforced else ():
        for key, amount, unit, bound in (
            ("gpus_per_node", request.nodes * gpus, "GPUs in all", qos.max_gpus),
            ("nodes", request.nodes, "nodes", qos.max_nodes),
        ):
            if bound is not None and amount > bound:
                yield (
                    key,
                    f"{amount} {unit}; qos '{qos.name}' gives {bound}: it would never start; ask for less",
                )


def _per_node(
    request: Resources, nodes: list[Node], kind: str | None, gpus: int, place: str
) -> Iterator[Misfit]:
    cpus = (request.gpus_per_node or 1) * request.cpus_per_gpu
    amounts = {
        "gpus_per_node": (gpus, "GPUs", [node.num_gpus(kind) for node in nodes]),
        "cpus_per_gpu": (cpus, "CPUs (ranks x cpus_per_gpu)", [node.cpus for node in nodes]),
        "mem_gb": (request.mem_gb or 0, "GB of memory", [node.memory_mb // 1024 for node in nodes]),
    }
    alone_fine = True
    for key, (asked, unit, have) in amounts.items():
        enough = sum(count >= asked for count in have)
        if enough < request.nodes:
            alone_fine = False
            found = f"{enough} of its nodes have them, and the largest has {max(have)}"
            if enough == 0:
                found = f"its largest node has {max(have)}"
            yield key, f"{asked} {unit} on each of {request.nodes} nodes of {place}; {found}; ask for less"
    together = sum(
        all(have[index] >= asked for asked, _, have in amounts.values()) for index in range(len(nodes))
    )
    if alone_fine and together < request.nodes:
        yield (
            "nodes",
            f"nodes is {request.nodes}; {place} has {together} with these GPUs, CPUs and memory at once",
        )


def _times(cluster: Cluster, request: Resources, limits: Limits, partition: Partition) -> Iterator[Misfit]:
    ranked = limits.qos_of(cluster, partition)
    bounds: list[tuple[str, int | None]] = []
    if not any("PartitionTimeLimit" in qos.flags for qos in ranked):
        bounds.append((f"partition '{partition.name}'", partition.max_time_min))
    if "limits" in limits.enforced:
        # the first that sets a limit binds: the partition's QOS, the job's, then the association
        walls = [(f"qos '{qos.name}'", qos.max_wall_min) for qos in ranked]
        walls += [(f"account '{row.account}'", row.max_wall_min) for row in limits.associations_of(cluster)]
        bounds += [wall for wall in walls if wall[1] is not None][:1]
    for name, most in bounds:
        if most is not None and request.timeout_min > most:
            text = f"timeout_min is {request.timeout_min}; {name} allows {most}: it would never start"
            yield "timeout_min", f"{text}; lower it, for a run goes on after a time limit"
