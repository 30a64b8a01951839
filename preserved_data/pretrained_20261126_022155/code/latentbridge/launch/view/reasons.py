"""SLURM's reasons for letting a job wait, in plain words: what each means, and what helps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class Advice(NamedTuple):
    """What a reason means, and what helps; no remedy: waiting is all there is to do."""

    meaning: str
    remedy: str = ""
    # the job will never start as it was submitted
    is_hopeless: bool = False


_OPERATORS = "ask the operators of the cluster"

# {name}: a field of `scontrol show job`
ADVICE = {
    "None": Advice("SLURM has not looked at it yet"),
    "Priority": Advice("jobs of higher priority are before it in partition {Partition}"),
    "Resources": Advice("it is next in partition {Partition}, but others still use what it asks for"),
    "Nodes required for job are DOWN": Advice(
        "the nodes it could run on are down, drained, or kept for partitions of higher priority",
        "`sinfo -R` says which are down and why; another partition may be quicker",
    ),
    "ReqNodeNotAvail": Advice(
        "nodes that it asks for by name cannot be had now: down, drained or reserved",
        "`sinfo -R` says why; without nodelist in the profile it may run on others",
    ),
    "NodeDown": Advice("a node that it needs is down", "`sinfo -R` says why"),
    "JobArrayTaskLimit": Advice(
        "of its array at most {ArrayTaskThrottle} run at a time (max_parallel), and those are at work",
        "if there is more room: `scontrol update JobId={ArrayJobId} ArrayTaskThrottle=N`",
    ),
    "BeginTime": Advice(
        "it may not start before {StartTime}: so it was asked for, or it was requeued moments ago"
    ),
    "Dependency": Advice("it waits for other jobs: {Dependency}"),
    "DependencyNeverSatisfied": Advice(
        "it waits for jobs that ended otherwise than it demands: {Dependency}", is_hopeless=True
    ),
    "JobHeldUser": Advice("it is held by its owner", "`scontrol release {JobId}`"),
    "JobHeldAdmin": Advice("it is held by an operator", _OPERATORS),
    "JobHoldMaxRequeue": Advice(
        "it was requeued so often that SLURM holds it", "`scontrol release {JobId}` once the cause is gone"
    ),
    "launch failed requeued held": Advice(
        "its nodes could not start it, so SLURM holds it", "`scontrol release {JobId}` once the cause is gone"
    ),
    "PartitionTimeLimit": Advice(
        "it asks for {TimeLimit}, more than partition {Partition} ever gives",
        "lower timeout_min, or name another partition",
        is_hopeless=True,
    ),
    "PartitionNodeLimit": Advice(
        "it asks for more nodes than partition {Partition} has or gives",
        "lower nodes, or name another partition",
        is_hopeless=True,
    ),
    "PartitionConfig": Advice(
        "it asks for more time or nodes than partition {Partition} gives",
        "`scontrol show partition {Partition}` says how much there is",
        is_hopeless=True,
    ),
    "PartitionDown": Advice("partition {Partition} starts no jobs at present", _OPERATORS),
    "PartitionInactive": Advice("partition {Partition} is switched off", _OPERATORS),
    "Licenses": Advice("the licenses it asks for are in use: {Licenses}"),
    "Reservation": Advice("its reservation has not begun"),
    "ReservationDeleted": Advice("its reservation is gone", "name another, or none", is_hopeless=True),
    "ReservationInvalid": Advice("its reservation cannot be used", "name another, or none", is_hopeless=True),
    "BadConstraints": Advice(
        "no node has the features that it asks for ({Features})",
        "`sinfo -o '%N %f'` lists them",
        is_hopeless=True,
    ),
    "MaxMemPerLimit": Advice(
        "it asks for more memory per node or CPU than partition {Partition} gives",
        "lower mem_gb",
        is_hopeless=True,
    ),
    "Cleaning": Advice("its former start is still being cleaned up"),
    "Prolog": Advice("its nodes are being prepared"),
    "InvalidAccount": Advice(
        "account {Account} may not be used here", "name another account", is_hopeless=True
    ),
    "AccountNotAllowed": Advice(
        "account {Account} may not use partition {Partition}", "name another of the two", is_hopeless=True
    ),
    "InvalidQOS": Advice("QOS {QOS} is none of yours", "name another qos", is_hopeless=True),
    "QOSNotAllowed": Advice(
        "QOS {QOS} may not be used in partition {Partition}", "name another of the two", is_hopeless=True
    ),
    "QOSUsageThreshold": Advice("you have used more than QOS {QOS} lets run", "wait, or name another qos"),
    "DeadLine": Advice("it can no longer end before its deadline", is_hopeless=True),
}

# QOSMaxWallDurationPerJobLimit, AssocGrpGRES, QOSMaxJobsPerUserLimit, AssocMaxCpuMinutesPerJobLimit,
# MaxCpuRunMinsPerUser (a QOS's), ...
_LIMIT = re.compile(
    r"(?P<owner>QOS|Assoc|Association)?(?P<kind>Grp|Max|Min)?(?P<what>[A-Z][A-Za-z]*?)"
    r"(?P<minutes>(?:Run)?Min(?:ute)?s)?(?:Per(?P<scope>Job|User|Account|Acct|Node))?(?:Limit|NotSatisfied)?"
)
_WHAT = {
    "cpu": "CPUs",
    "gres": "GPUs",
    "mem": "memory",
    "memory": "memory",
    "node": "nodes",
    "job": "jobs at work",
    "submitjob": "queued jobs",
    "wall": "running time",
    "wallduration": "running time",
    "time": "running time",
    "resource": "resources",
    "license": "licenses",
    "bb": "burst buffer",
    "billing": "billing units",
    "energy": "energy",
    "unknown": "resources",
}


def advise(reason: str, job: Mapping[str, str]) -> Advice:
    """What a reason means for this job, and what to do.

    job: fields of `scontrol show job`, empty where it did not answer
    """
    advice = _find(reason)
    fields = _Fields(job)
    return advice._replace(meaning=advice.meaning.format_map(fields), remedy=advice.remedy.format_map(fields))


def _find(reason: str) -> Advice:
    # ReqNodeNotAvail, UnavailableNodes:gpu02
    known = ADVICE.get(reason) or ADVICE.get(reason.partition(",")[0])
    unknown = Advice("this reason is not known here", "`man squeue` explains it, under JOB REASON CODES")
    return known or _limit(reason) or unknown


def _limit(reason: str) -> Advice | None:
    """The advice on one of SLURM's many reasons that are limits of a QOS or an association."""
    match = _LIMIT.fullmatch(reason)
    what = match and _WHAT.get(match["what"].removesuffix("s").lower())
    if not match or not what or not (match["owner"] or match["kind"]):
        return None
    owner = "QOS {QOS}" if match["owner"] in ("QOS", None) else "account {Account}"
    if match["kind"] == "Min":
        return Advice(f"it asks for less {what} than {owner} demands of a job", is_hopeless=True)
    # a running time is always one job's, except where a group shares a total
    if match["scope"] in ("Job", "Node") or (what == "running time" and match["kind"] != "Grp"):
        table = "qos" if match["owner"] in ("QOS", None) else "assoc"
        remedy = f"ask for less; `sacctmgr show {table}` says how much there is"
        return Advice(f"it asks for more {what} than {owner} gives one job", remedy, is_hopeless=True)
    who = "all its users together" if match["kind"] == "Grp" else "you"
    meaning = f"{owner} lets {who} have only so much of this at a time: {what}"
    if match["minutes"]:
        meaning = f"{owner} lets {who} use only so many minutes of {what}, and they are used up or spoken for"
    return Advice(meaning, "`latentbridge doctor` shows the limits; a job above one by itself never starts")


class _Fields(dict[str, str]):
    """A field that SLURM did not tell is said to be unknown."""

    def __missing__(self, key: str) -> str:
        return f"({key} unknown)"
