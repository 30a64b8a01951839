"""Nodes to stay away from: who failed here, why, and until when; shared by all launches of a project.

RUNS/.bad_nodes/<node>.json is one node; a record past its time is ignored.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from latentbridge.launch import slurm
from latentbridge.launch.checks.names import nodes_of
from latentbridge.launch.record import Launch
from latentbridge.launch.slurm.text import node_names, parse_fields
from latentbridge.rundir import read_json, write_json

FOLDER = ".bad_nodes"
# on which a job could not begin; on more than these it is the disk's fault, or the profile's
MOST_SUSPECTS = 3
# of a node that does no work any more; one that drains ends what it has, and gets nothing new anyway
DEAD_STATES = {"DOWN", "FAIL", "NOT_RESPONDING"}


@dataclass(frozen=True, kw_only=True)
class BadNode:
    """One node that failed a run."""

    node: str
    reason: str
    run: str
    since: float
    until: float


def report_bad(runs: Path, nodes: Iterable[str], reason: str, run: str, hours: float) -> None:
    """Have every submission from now on leave these nodes out for so many hours."""
    folder = runs / FOLDER
    folder.mkdir(exist_ok=True)
    now = time.time()
    for node in nodes:
        record = BadNode(node=node, reason=reason, run=run, since=now, until=now + 3600 * hours)
        write_json(folder / f"{node}.json", asdict(record))


def bad_nodes(runs: Path) -> list[BadNode]:
    """The nodes that failed a run not long ago, the latest first."""
    found = [BadNode(**read_json(file)) for file in (runs / FOLDER).glob("*.json")]
    return sorted((bad for bad in found if bad.until > time.time()), key=lambda bad: -bad.since)


def nodes_to_avoid(launch: Launch, needed: int, first: Sequence[str] = ()) -> list[str]:
    """Bad nodes that a request for `needed` nodes can do without: `first`, then the latest.

    One that this cluster does not have would spoil the request; so would leaving out too many.
    first: nodes under suspicion, which count only while they are few
    """
    suspects = list(dict.fromkeys(first))
    known = [bad.node for bad in bad_nodes(launch.path.parent)]
    names = list(dict.fromkeys([*(suspects if len(suspects) <= MOST_SUSPECTS else ()), *known]))
    if launch.limits is None:
        return names
    excluded = node_names(launch.cluster.exclude or "")
    allowed = {node.name for node in nodes_of(launch.cluster, launch.limits)} - {*excluded}
    return [name for name in names if name in allowed][: max(0, len(allowed) - needed)]


def dead_among(nodes: str) -> list[str]:
    """Those of a SLURM node list that SLURM itself holds for dead; SchedulerError if it does not say."""
    known = [parse_fields(line) for line in slurm.ask("scontrol", "show", "node", nodes, "--oneliner")]
    # by word: a node that is POWERED_DOWN is well
    return [node["NodeName"] for node in known if DEAD_STATES & {*re.findall(r"\w+", node["State"])}]
