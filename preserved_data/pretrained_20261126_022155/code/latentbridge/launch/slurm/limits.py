"""What a cluster allows, read from SLURM in five calls: partitions, nodes, time, sizes, accounts, preemption.

What a version of SLURM does not print is None.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from latentbridge.errors import SchedulerError
from latentbridge.launch.cluster import Cluster
from latentbridge.launch.slurm import ask, call
from latentbridge.launch.slurm.text import (
    number_or_none,
    parse_amounts,
    parse_config,
    parse_fields,
    parse_gpus,
    parse_minutes,
    parse_seconds,
    parse_table,
    parse_words,
    text_or_none,
)

# the accounting database may be down while the controller works; what it would say is then unknown
ACCOUNTING_PATIENCE_S = 15
# words of a node's state that keep new jobs off it until an administrator or the node itself acts
UNUSABLE = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "ERROR", "INVAL", "NOT_RESPONDING"}


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One queue, and what it lets through."""

    name: str
    state: str | None
    is_default: bool
    max_time_min: int | None  # None: without limit
    max_nodes: int | None
    total_nodes: int | None
    allow_accounts: tuple[str, ...] | None  # None: all
    allow_qos: tuple[str, ...] | None
    deny_qos: tuple[str, ...]
    qos: str | None  # whose limits go before those of a job's own QOS
    grace_s: int
    preempt_mode: str | None
    alloc_nodes: str | None = None  # host list of those that may submit; None: all


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine, as far as jobs may use it."""

    name: str
    state: str
    cpus: int
    memory_mb: int
    gpus: dict[str, int]  # by type; "": no type declared
    features: tuple[str, ...]
    partitions: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        """Whether it takes jobs now; powered-down cloud nodes do."""
        return not UNUSABLE & set(re.findall(r"[A-Z_]+", self.state)) and "*" not in self.state

    def num_gpus(self, kind: str | None) -> int:
        """Its GPUs of one type, or of all."""
        return sum(self.gpus.values()) if kind is None else self.gpus.get(kind, 0)


@dataclass(frozen=True, kw_only=True)
class Association:
    """One account this user may charge."""

    account: str
    partition: str | None  # None: in any
    qos: tuple[str, ...]
    default_qos: str | None
    max_submit: int | None
    max_wall_min: int | None


@dataclass(frozen=True, kw_only=True)
class Qos:
    """One quality of service; the smallest of its limits on a job, a user and all its jobs together."""

    name: str
    flags: tuple[str, ...]
    grace_s: int
    preempt_mode: str | None  # None: the cluster's
    max_wall_min: int | None
    max_submit: int | None
    max_gpus: int | None
    max_nodes: int | None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Everything a launch must respect on one cluster."""

    version: str | None
    cluster_name: str | None
    partitions: tuple[Partition, ...]
    nodes: tuple[Node, ...]
    max_array_size: int | None
    max_job_count: int | None
    min_job_age_s: int | None
    kill_wait_s: int | None
    accounting: bool
    enforced: tuple[str, ...]  # which of associations, limits, qos SLURM checks at submission
    preempt_type: str | None
    preempt_mode: str | None
    sends_user_signal: bool  # preempt_send_user_signal
    enforce_part_limits: str | None
    requeue_default: bool | None  # ours ask for --requeue, which goes before it
    default_account: str | None
    # None: there is no accounting, or it did not answer
    associations: tuple[Association, ...] | None
    qos: tuple[Qos, ...] | None

    def as_record(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return dict(TypeAdapter(Limits).dump_python(self, mode="json"))

    @staticmethod
    def from_record(record: dict[str, Any]) -> Limits:
        """What as_record gave."""
        return TypeAdapter(Limits).validate_python(record)

    def partitions_of(self, cluster: Cluster) -> list[Partition]:
        """The partitions a profile's jobs may go to, those that exist; the default one if it names none."""
        if cluster.partition is None:
            return [partition for partition in self.partitions if partition.is_default]
        names = cluster.partition.split(",")
        return [partition for partition in self.partitions if partition.name in names]

    def associations_of(self, cluster: Cluster) -> list[Association]:
        """This user's rows for a profile's account, or for the default account."""
        account = cluster.account or self.default_account
        places = {None, *(partition.name for partition in self.partitions_of(cluster))}
        return [
            row
            for row in self.associations or ()
            if account in (None, row.account) and row.partition in places
        ]

    def qos_of(self, cluster: Cluster, partition: Partition) -> list[Qos]:
        """The QOS whose limits bind a job, the one that goes first in front."""
        own = cluster.qos or next((row.default_qos for row in self.associations_of(cluster)), None)
        by_name = {qos.name: qos for qos in self.qos or ()}
        found = [by_name[name] for name in (partition.qos, own) if name in by_name]
        if found and "OverPartQOS" in found[-1].flags:
            found.reverse()
        return found

    def submit_limit(self, cluster: Cluster) -> int | None:
        """Jobs and array tasks of this user that may be in the queue at once; None: as many as one likes."""
        if cluster.submit_limit is not None:
            return cluster.submit_limit
        if "limits" not in self.enforced:
            return None
        rows = [row.max_submit for row in self.associations_of(cluster)]
        rows += [
            qos.max_submit for place in self.partitions_of(cluster) for qos in self.qos_of(cluster, place)
        ]
        return min((row for row in rows if row is not None), default=None)


def read_limits() -> Limits:
    """Ask the cluster this machine belongs to; SchedulerError where its controller does not answer."""
    config = parse_config(ask("scontrol", "show", "config"))
    user = qos = None
    if "slurmdbd" in config.get("AccountingStorageType", ""):
        # the database takes a third of a second for each
        with ThreadPoolExecutor(2) as pool:
            user, qos = pool.map(_ask_accounting, (f"user {_user_name()} withassoc", "qos"))
    return make_limits(
        config,
        partitions=ask("scontrol", "--all", "--oneliner", "show", "partition"),
        nodes=ask("scontrol", "--all", "--oneliner", "show", "node"),
        user=user,
        qos=qos,
    )


def cluster_name() -> str | None:
    """What the cluster is called that SLURM's tools here talk to; SchedulerError where it does not answer."""
    return text_or_none(parse_config(ask("scontrol", "show", "config")).get("ClusterName"))


def _user_name() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _ask_accounting(what: str) -> list[str] | None:
    try:
        answer = call("sacctmgr", "--parsable2", "show", *what.split(), patience_s=ACCOUNTING_PATIENCE_S)
    except SchedulerError:
        return None
    return answer.stdout.splitlines() if answer.returncode == 0 else None


def make_limits(
    config: dict[str, str],
    *,
    partitions: Iterable[str],
    nodes: Iterable[str],
    user: list[str] | None,
    qos: list[str] | None,
) -> Limits:
    """Limits from what SLURM's tools printed; user and qos: None where accounting gave no answer."""
    cluster_name = text_or_none(config.get("ClusterName"))
    rows = None if user is None else [row for row in parse_table(user) if row.get("Cluster") == cluster_name]
    return Limits(
        version=text_or_none(config.get("SLURM_VERSION")),
        cluster_name=cluster_name,
        partitions=tuple(parse_partition(line) for line in partitions if line.strip()),
        nodes=tuple(parse_node(line) for line in nodes if line.strip()),
        max_array_size=number_or_none(config.get("MaxArraySize")),
        max_job_count=number_or_none(config.get("MaxJobCount")),
        min_job_age_s=number_or_none(config.get("MinJobAge")),
        kill_wait_s=number_or_none(config.get("KillWait")),
        accounting="slurmdbd" in config.get("AccountingStorageType", ""),
        enforced=parse_words(config.get("AccountingStorageEnforce")),
        preempt_type=text_or_none(config.get("PreemptType")),
        preempt_mode=text_or_none(config.get("PreemptMode")),
        sends_user_signal="preempt_send_user_signal" in parse_words(config.get("SlurmctldParameters")),
        enforce_part_limits=text_or_none(config.get("EnforcePartLimits")),
        requeue_default={"1": True, "yes": True, "0": False, "no": False}.get(
            config.get("JobRequeue", "").lower()
        ),
        default_account=next((text_or_none(row.get("Def Acct")) for row in rows or ()), None),
        associations=None if rows is None else tuple(_association(row) for row in rows),
        qos=None if qos is None else tuple(_qos(row) for row in parse_table(qos)),
    )


def parse_partition(line: str) -> Partition:
    """One line of `scontrol --oneliner show partition`."""
    fields = parse_fields(line)
    allow_accounts, allow_qos = parse_words(fields.get("AllowAccounts")), parse_words(fields.get("AllowQos"))
    return Partition(
        name=fields.get("PartitionName", ""),
        state=text_or_none(fields.get("State")),
        is_default=fields.get("Default") == "YES",
        max_time_min=parse_minutes(fields.get("MaxTime")),
        max_nodes=number_or_none(fields.get("MaxNodes")),
        total_nodes=number_or_none(fields.get("TotalNodes")),
        allow_accounts=None if allow_accounts in ((), ("ALL",)) else allow_accounts,
        allow_qos=None if allow_qos in ((), ("ALL",)) else allow_qos,
        deny_qos=parse_words(fields.get("DenyQos")),
        qos=text_or_none(fields.get("QoS")),
        grace_s=number_or_none(fields.get("GraceTime")) or 0,
        preempt_mode=text_or_none(fields.get("PreemptMode")),
        alloc_nodes=None if fields.get("AllocNodes") == "ALL" else text_or_none(fields.get("AllocNodes")),
    )


def parse_node(line: str) -> Node:
    """One line of `scontrol --oneliner show node`."""
    fields = parse_fields(line)
    # what is set aside for the system cannot be asked for
    cpus = number_or_none(fields.get("CPUEfctv")) or number_or_none(fields.get("CPUTot")) or 0
    memory = (number_or_none(fields.get("RealMemory")) or 0) - (
        number_or_none(fields.get("MemSpecLimit")) or 0
    )
    return Node(
        name=fields.get("NodeName", ""),
        state=fields.get("State", ""),
        cpus=cpus,
        memory_mb=memory,
        gpus=parse_gpus(fields.get("Gres")),
        features=parse_words(fields.get("AvailableFeatures")),
        partitions=parse_words(fields.get("Partitions")),
    )


def _association(row: dict[str, str]) -> Association:
    return Association(
        account=row.get("Account", ""),
        partition=text_or_none(row.get("Partition")),
        qos=parse_words(row.get("QOS")),
        default_qos=text_or_none(row.get("Def QOS")),
        max_submit=number_or_none(row.get("MaxSubmit")),
        max_wall_min=parse_minutes(row.get("MaxWall")),
    )


def _qos(row: dict[str, str]) -> Qos:
    amounts = [parse_amounts(row.get(column)) for column in ("MaxTRES", "MaxTRESPU", "MaxTRESPA", "GrpTRES")]
    submits = [number_or_none(row.get(column)) for column in ("MaxSubmitPU", "MaxSubmitPA", "GrpSubmit")]
    return Qos(
        name=row.get("Name", ""),
        flags=parse_words(row.get("Flags")),
        grace_s=parse_seconds(row.get("GraceTime")) or 0,
        preempt_mode=None if row.get("PreemptMode") == "cluster" else text_or_none(row.get("PreemptMode")),
        max_wall_min=parse_minutes(row.get("MaxWall")),
        max_submit=min((limit for limit in submits if limit is not None), default=None),
        max_gpus=min((found["gres/gpu"] for found in amounts if "gres/gpu" in found), default=None),
        max_nodes=min((found["node"] for found in amounts if "node" in found), default=None),
    )
