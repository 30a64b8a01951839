"""`latentbridge doctor`: what this machine and its cluster offer, what that means for runs, and remedies."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

from latentbridge.errors import SchedulerError
from latentbridge.launch.checks.files import LOW_SPACE_BYTES, NEEDED
from latentbridge.launch.cluster import Cluster, load_cluster, local_gpus
from latentbridge.launch.environment import versions
from latentbridge.launch.slurm.limits import Limits, Partition, read_limits

Verdict = Literal["good", "warn", "bad"]
COLOURS = {"good": "green", "warn": "yellow", "bad": "red"}
# leases and deadlines compare this host's clock with times on the disk
MAX_SKEW_S = 2
# without accounting a job that ended can be asked about for this long
MIN_JOB_AGE_S = 60
# below this a large checkpoint is unlikely to be written between warning and end
SHORT_GRACE_S = 60


@dataclass(frozen=True)
class Row:
    """One thing that was looked at."""

    name: str
    found: str
    verdict: Verdict = "good"
    remedy: str = ""


def doctor(root: Path) -> int:
    """Print everything found; 1 if something keeps runs from working, else 0."""
    from latentbridge.launch.view.display import console

    limits, rows = _ask_slurm()
    rows = [*package_rows(), *disk_rows(root / "runs"), *_gpu_rows(limits is not None), *rows]
    if limits is not None:
        console.print(_partition_table(limits))
        name, cluster = load_cluster(None, root)
        rows += limit_rows(limits, f"slurm/{name}.yaml", cluster)
        rows += [preemption(limits, place, cluster) for place in limits.partitions]
    table = Table(title="doctor", title_justify="left")
    for column in ("what", "found", "verdict", "remedy"):
        table.add_column(column, overflow="fold")
    for row in rows:
        colour = COLOURS[row.verdict]
        table.add_row(row.name, escape(row.found), f"[{colour}]{row.verdict}[/]", escape(row.remedy))
    console.print(table)
    return 1 if any(row.verdict == "bad" for row in rows) else 0


def _ask_slurm() -> tuple[Limits | None, list[Row]]:
    if not shutil.which("sbatch"):
        return None, [Row("SLURM", "not here: runs execute on this machine (--cluster local)")]
    try:
        limits = read_limits()
    except SchedulerError as error:
        return None, [Row("SLURM", str(error), "bad", "try again; `scontrol ping` tells whether it is up")]
    return limits, [Row("SLURM", f"{limits.version or 'version unknown'} on {limits.cluster_name}")]


def package_rows() -> Iterator[Row]:
    """Versions of what runs depend on."""
    for name, version in versions().items():
        if version is not None:
            yield Row(name, version)
        elif name in NEEDED:
            yield Row(name, "missing", "bad", "pip install latentbridge, into this environment")
        else:
            yield Row(name, "missing", "warn", "pip install 'latentbridge[hf]' for models of the hub")


def disk_rows(runs: Path) -> Iterator[Row]:
    """Whether the run folder can do what launches rely on: writes, locks, hard links, a common clock."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=runs, prefix=".doctor.") as folder:
            yield Row("runs/", f"{runs} is writable")
            yield from _file_rows(Path(folder) / "probe")
    except OSError as error:
        yield Row("runs/", f"{runs}: {error.strerror}", "bad", "make it a folder that you may write")
        return
    free = shutil.disk_usage(runs).free
    yield Row("disk space", f"{free / (1 << 30):.1f} GiB free", "good" if free > LOW_SPACE_BYTES else "warn")


def _file_rows(probe: Path) -> Iterator[Row]:
    before = time.time()
    with open(probe, "w") as file:
        file.write("?")
        file.flush()
        os.fsync(file.fileno())
        yield _attempt("locks (flock)", lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB))
    yield _attempt("hard links", lambda: os.link(probe, probe.with_suffix(".link")))
    # a file's time has the disk's clock; the call itself lies between the two times of ours
    skew = max(before - probe.stat().st_mtime, probe.stat().st_mtime - time.time(), 0.0)
    remedy = "" if skew <= MAX_SKEW_S else "have both hosts follow one time server"
    yield Row("clock of the disk", f"{skew:.1f} s from ours", "warn" if remedy else "good", remedy)


def _attempt(name: str, action: Callable[[], None]) -> Row:
    try:
        action()
    except OSError as error:
        remedy = "put runs/ on a file system that has them, or mount this one so"
        return Row(name, error.strerror or str(error), "bad", remedy)
    return Row(name, "work")


def _gpu_rows(is_cluster: bool) -> Iterator[Row]:
    gpus = local_gpus()
    if gpus or is_cluster:
        yield Row("GPUs here", str(len(gpus)))
    else:
        yield Row("GPUs here", "0", "warn", "runs will compute on CPU; `nvidia-smi` should list your GPUs")


def limit_rows(limits: Limits, profile: str, cluster: Cluster) -> Iterator[Row]:
    """What the site allows, and whether states and causes can be told."""
    limit = limits.submit_limit(cluster)
    yield Row("submit limit", f"{limit} jobs in the queue ({profile})" if limit else "none known")
    yield Row("MaxArraySize", f"{limits.max_array_size}: larger arrays are split")
    yield Row("KillWait", f"{limits.kill_wait_s} s from SIGTERM to SIGKILL")
    if limits.accounting and limits.associations is None:
        yield Row("accounting", "does not answer", "warn", "accounts and QOS go unchecked; try again later")
    elif limits.accounting:
        yield Row("accounting", f"on, enforcing {', '.join(limits.enforced) or 'nothing'}")
    else:
        yield Row("accounting", "off: how jobs ended is told by our own markers")
    age, short = limits.min_job_age_s, not limits.accounting and (limits.min_job_age_s or 0) < MIN_JOB_AGE_S
    remedy = f"MinJobAge={MIN_JOB_AGE_S} or more helps to tell cancelled from lost jobs" if short else ""
    yield Row("MinJobAge", f"ended jobs are remembered for {age} s", "warn" if short else "good", remedy)
    default = {True: "requeues", False: "does not requeue", None: "may requeue"}[limits.requeue_default]
    yield Row("requeue", f"the site {default} by default; our jobs ask for it")


def preemption(limits: Limits, partition: Partition, cluster: Cluster) -> Row:
    """What happens to a profile's runs in a partition when a more important job wants their nodes."""
    name = f"preemption in {partition.name}"
    mode, grace_s = partition.preempt_mode, partition.grace_s
    if limits.preempt_type == "preempt/qos":
        own = next(iter(limits.qos_of(cluster, partition)[-1:]), None)
        mode, grace_s = (own and own.preempt_mode) or limits.preempt_mode, own.grace_s if own else 0
    if limits.preempt_type is None or mode in (None, "OFF"):
        return Row(name, "never")
    if "SUSPEND" in mode:
        return Row(name, "suspended in place: nothing is lost, but a run may look as if it hung", "warn")
    ending = "cancelled, and submitted again by the launch" if "CANCEL" in mode else "requeued"
    warning = "USR2" if limits.sends_user_signal else "SIGTERM"
    if grace_s == 0:
        # what is left is the time that SLURM gives every job between SIGTERM and SIGKILL
        warning, grace_s = (
            "USR2 with SIGTERM" if limits.sends_user_signal else warning,
            limits.kill_wait_s or 0,
        )
    found = f"{warning}, {grace_s} s to save, then killed and {ending}"
    if grace_s >= SHORT_GRACE_S:
        return Row(name, found)
    return Row(name, found, "warn", "checkpoint often; GraceTime, which the site sets, gives time to save")


def _partition_table(limits: Limits) -> Table:
    table = Table(title=f"partitions of {limits.cluster_name}", title_justify="left")
    for column in ("name", "state", "MaxTime", "nodes", "MaxNodes", "CPUs", "GB", "GPUs a node"):
        table.add_column(column, overflow="fold")
    for place in limits.partitions:
        nodes = [node for node in limits.nodes if place.name in node.partitions]
        kinds = {f"{count} {kind}".strip() for node in nodes for kind, count in node.gpus.items()}
        table.add_row(
            place.name + ("*" if place.is_default else ""),
            place.state,
            "unlimited" if place.max_time_min is None else f"{place.max_time_min} min",
            f"{sum(node.is_usable for node in nodes)} of {len(nodes)} in service",
            "all" if place.max_nodes is None else str(place.max_nodes),
            str(max((node.cpus for node in nodes), default=0)),
            str(max((node.memory_mb for node in nodes), default=0) // 1024),
            ", ".join(sorted(kinds)) or "none",
        )
    return table
