"""What each of SLURM's commands answers: the options that latentbridge uses, in the words of SLURM 22.05."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterable
from getopt import GetoptError, gnu_getopt
from pathlib import Path
from typing import NamedTuple

from simulator.cluster import MIN_JOB_AGE_S, Cluster, Job, Task
from simulator.folding import fold, fold_names, unfold, unfold_names

GPUS, CPUS, MEMORY_MB, MAX_TIME = 4, 32, 524_288, "7-00:00:00"
SHORT = {"PENDING": "PD", "RUNNING": "R", "COMPLETED": "CD", "FAILED": "F", "CANCELLED": "CA"}
# without SLURM_BITSTR_LEN=0 the list of an array's waiting tasks is cut here, with no sign of it
BITSTR_LEN = 64
SBATCH_OPTIONS = (
    "account array chdir comment constraint cpus-per-task dependency error exclude gpus-per-node gres "
    "job-name mem nodes ntasks-per-node open-mode output partition qos signal time wckey"
)


class Answer(NamedTuple):
    """What a command prints, and its exit code."""

    out: str
    code: int = 0
    err: str = ""


class Row(NamedTuple):
    """One line of squeue: a task, or all waiting tasks of one array."""

    job: Job
    tasks: list[Task]
    is_folded: bool


def answer(cluster: Cluster, tool: str, folder: str, bitstr_len: str, argv: list[str]) -> Answer:
    """Do what a command asks; one this stand-in does not understand fails loudly."""
    tools: dict[str, Callable[[], Answer]] = {
        "sbatch": lambda: sbatch(cluster, Path(folder), argv),
        "squeue": lambda: squeue(cluster, argv, int(bitstr_len or BITSTR_LEN)),
        "scancel": lambda: scancel(cluster, argv),
        "scontrol": lambda: scontrol(cluster, argv),
        "sacct": lambda: sacct(cluster, argv),
        "sacctmgr": lambda: sacctmgr(argv),
        "sinfo": lambda: sinfo(cluster, argv),
    }
    try:
        return tools[tool]()
    except GetoptError as error:
        return Answer("", 255, f"{tool}: the stand-in does not know this: {error}\n")


def sbatch(cluster: Cluster, folder: Path, argv: list[str]) -> Answer:
    """Queue the job of a batch script; options of the command line go before those of the script."""
    names = [f"{name}=" for name in SBATCH_OPTIONS.split()] + ["requeue", "test-only", "parsable"]
    given, files = gnu_getopt(argv, "", names)
    script = (folder / files[0]).read_text()
    written = [shlex.split(line) for line in re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)]
    inside, _ = gnu_getopt([word for words in written for word in words], "", names)
    options = {name.removeprefix("--"): value for name, value in [*inside, *given]}
    spans, _, throttle = options.get("array", "0").partition("%")
    indices = unfold(spans)
    refused = "sbatch: error: Batch job submission failed: "
    settings = cluster.settings
    if max(indices) >= settings.max_array_size:
        return Answer("", 1, f"{refused}Invalid job array specification\n")
    if int(options.get("nodes", "1")) > settings.nodes:
        return Answer("", 1, f"{refused}Node count specification invalid\n")
    queued = sum(task.is_live for task in cluster.known.values())
    if settings.max_submit is not None and queued + len(indices) > settings.max_submit:
        rule = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
        return Answer("", 1, f"sbatch: error: AssocMaxSubmitJobLimit\n{refused}{rule}\n")
    if "test-only" in options:
        return Answer(
            "", 0, "sbatch: Job 1 to start at 2030-01-01T00:00:00 using 32 processors on nodes node0001\n"
        )
    job = cluster.submit(options, script, indices, int(throttle) if throttle else None)
    return Answer(f"{job.number}\n" if "parsable" in options else f"Submitted batch job {job.number}\n")


def squeue(cluster: Cluster, argv: list[str], bitstr_len: int) -> Answer:
    """Tasks that live or ended a moment ago; waiting ones of an array in one line unless --array."""
    given = dict(
        gnu_getopt(argv, "hru:o:t:j:", ["noheader", "array", "user=", "me", "format=", "states=", "jobs="])[0]
    )
    states = given.get("--states") or given.get("-t") or "PENDING,RUNNING"
    wanted = set(states.split(","))
    tasks = [t for t in cluster.known.values() if states == "all" or {t.state, SHORT[t.state]} & wanted]
    if jobs := given.get("--jobs") or given.get("-j"):
        numbers = {int(name.partition("_")[0]) for name in jobs.split(",")}
        if len(numbers) == 1 and not numbers & {task.job.number for task in cluster.known.values()}:
            return Answer("", 1, "slurm_load_jobs error: Invalid job id specified\n")
        tasks = [task for task in tasks if task.job.number in numbers]
    form = given.get("--format") or given.get("-o") or "%i|%t"
    rows = _rows(tasks, split="--array" in given or "-r" in given)
    return Answer("".join(_squeue_line(cluster, row, form, bitstr_len) for row in rows))


def _rows(tasks: list[Task], split: bool) -> list[Row]:
    waiting: dict[Job, Row] = {}
    rows = []
    for task in tasks:
        if split or task.state != "PENDING" or not task.job.is_array:
            rows.append(Row(task.job, [task], False))
        elif task.job in waiting:
            waiting[task.job].tasks.append(task)
        else:
            waiting[task.job] = Row(task.job, [task], True)
    return [*waiting.values(), *rows]


def _squeue_line(cluster: Cluster, row: Row, form: str, bitstr_len: int) -> str:
    task = row.tasks[0]
    index = fold(task.index for task in row.tasks)
    # tasks that were requeued join the others, and the throttle is no longer shown
    if row.is_folded and row.job.throttle and not any(task.restarts for task in row.tasks):
        index += f"%{row.job.throttle}"
    if bitstr_len:
        index = index[: bitstr_len - 1]
    texts = {
        "i": f"{row.job.number}_[{index}]" if row.is_folded else task.name,
        "F": str(row.job.number),
        "K": index if row.job.is_array else "N/A",
        "A": str(task.number),
        "t": SHORT[task.state],
        "T": task.state,
        "r": ",".join(dict.fromkeys(map(cluster.why_pending, row.tasks))),
        "N": fold_names(task.nodes),
        "k": row.job.options.get("comment", "(null)"),
        "j": row.job.options.get("job-name", ""),
        "P": row.job.options.get("partition", "main"),
    }
    return _fill(form, texts) + "\n"


def _fill(form: str, texts: dict[str, str]) -> str:
    return re.sub(r"%([a-zA-Z])", lambda found: texts[found[1]], form)


def find(cluster: Cluster, name: str) -> list[Task]:
    """The tasks that 17, 17_4 or 17_[0-3,5] names; none for an unknown job."""
    number, _, index = name.partition("_")
    job = cluster.jobs.get(int(number))
    if job is None:
        return [task for task in cluster.known.values() if task.number == int(number)]
    indices = set(unfold(index.strip("[]"))) if index else None
    return [task for task in job.tasks if indices is None or task.index in indices]


def scancel(cluster: Cluster, argv: list[str]) -> Answer:
    """Cancel by id; like the real one it says nothing about ids it does not know."""
    for name in gnu_getopt(argv, "", ["quiet"])[1]:
        for task in find(cluster, name):
            cluster.cancel(task)
    return Answer("")


def scontrol(cluster: Cluster, argv: list[str]) -> Answer:
    """Show things, requeue and update tasks."""
    _, words = gnu_getopt(argv, "oa", ["oneliner", "all"])
    verb, *rest = words
    if verb == "show":
        return _show(cluster, rest[0], rest[1] if len(rest) > 1 else None)
    if verb in ("requeue", "hold", "release"):
        tasks = [task for name in rest[0].split(",") for task in find(cluster, name)]
        if not tasks:
            return Answer("", 1, f"Invalid job id specified for job {rest[0]}\n")
        return (
            Answer("")
            if all([cluster.requeue(task) for task in tasks])
            else Answer("", 1, "Job is pending\n")
        )
    if verb == "update":
        return _update(cluster, dict(word.split("=", 1) for word in rest))
    return Answer("", 1, f"scontrol: the stand-in does not know {' '.join(words)}\n")


def _update(cluster: Cluster, changes: dict[str, str]) -> Answer:
    name = changes.pop("JobId")
    for job in {task.job for task in find(cluster, name)}:
        if "ExcNodeList" in changes:
            job.options["exclude"] = changes["ExcNodeList"]
        if "ArrayTaskThrottle" in changes:
            job.throttle = int(changes["ArrayTaskThrottle"]) or None
    unknown = changes.keys() - {"ExcNodeList", "ArrayTaskThrottle"}
    return Answer("", 1, f"scontrol: the stand-in does not know {unknown}\n") if unknown else Answer("")


def _show(cluster: Cluster, kind: str, name: str | None) -> Answer:
    if kind == "config":
        return Answer("".join(f"{key:23} = {value}\n" for key, value in _config(cluster).items()))
    if kind == "partition":
        return Answer(
            f"PartitionName=main AllowAccounts=ALL AllowQos=ALL Default=YES QoS=N/A GraceTime=0 "
            f"MaxNodes=UNLIMITED MaxTime={MAX_TIME} Nodes={fold_names(cluster.nodes)} PreemptMode=REQUEUE "
            f"State=UP TotalCPUs={CPUS * len(cluster.nodes)} TotalNodes={len(cluster.nodes)}\n"
        )
    if kind == "node":
        return Answer(
            "".join(_node(cluster, node) for node in (unfold_names(name) if name else cluster.nodes))
        )
    if kind == "hostnames" and name:
        return Answer("".join(f"{node}\n" for node in unfold_names(name)))
    tasks = [task for task in find(cluster, name or "0") if task.number in cluster.known]
    if not tasks:
        return Answer("", 1, "slurm_load_jobs error: Invalid job id specified\n")
    return Answer("".join(_task(cluster, task) for task in tasks))


def _config(cluster: Cluster) -> dict[str, str]:
    storage = "slurmdbd" if cluster.settings.accounting else "none"
    return {
        "AccountingStorageEnforce": "none",
        "AccountingStorageType": f"accounting_storage/{storage}",
        "ClusterName": "pretend",
        "EnforcePartLimits": "NO",
        "JobRequeue": "1",
        "KillWait": "30 sec",
        "MaxArraySize": str(cluster.settings.max_array_size),
        "MaxJobCount": "50000",
        "MinJobAge": f"{MIN_JOB_AGE_S} sec",
        "PreemptMode": "REQUEUE",
        "PreemptType": "preempt/partition_prio",
        "SLURM_VERSION": "22.05.8",
        "SlurmctldParameters": "(null)",
    }


def _node(cluster: Cluster, name: str) -> str:
    return (
        f"NodeName={name} CPUEfctv={CPUS} CPUTot={CPUS} AvailableFeatures=(null) Gres=gpu:{GPUS} "
        f"RealMemory={MEMORY_MB} State={cluster.nodes[name]} Partitions=main\n"
    )


def _task(cluster: Cluster, task: Task) -> str:
    array = f"ArrayJobId={task.job.number} ArrayTaskId={task.index} " if task.job.is_array else ""
    return (
        f"JobId={task.number} {array}JobState={task.state} "
        f"Reason={cluster.why_pending(task)} Requeue=1 Restarts={task.restarts} PreemptTime=None "
        f"NodeList={fold_names(task.nodes)} Comment={task.job.options.get('comment', '')}\n"
    )


def sacct(cluster: Cluster, argv: list[str]) -> Answer:
    """Every task of the jobs asked for, ended ones too."""
    if not cluster.settings.accounting:
        return Answer("", 1, "Slurm accounting storage is disabled\n")
    names = ["noheader", "parsable2", "allocations", "jobs=", "format="]
    given = dict(gnu_getopt(argv, "nPXj:o:", names)[0])
    columns = (given.get("--format") or given.get("-o") or "JobID,State").split(",")
    jobs = (given.get("--jobs") or given.get("-j") or "").split(",")
    tasks = [task for name in jobs for task in find(cluster, name)]
    return Answer("".join("|".join(_sacct_text(task, c) for c in columns) + "\n" for task in tasks))


def _sacct_text(task: Task, column: str) -> str:
    # a controller that forgets a task never tells accounting of its end
    states = {"CANCELLED": "CANCELLED by 0", "VANISHED": "RUNNING"}
    texts = {
        "JobID": task.name,
        "JobIDRaw": str(task.number),
        "State": states.get(task.state, task.state),
        "ExitCode": "1:0" if task.state == "FAILED" else "0:0",
        "NodeList": fold_names(task.nodes) or "None assigned",
        "Start": _stamp(task.began),
        "End": _stamp(task.ended),
        "Comment": task.job.options.get("comment", ""),
    }
    return texts[column]


def _stamp(seconds: float | None) -> str:
    return "Unknown" if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


def sacctmgr(argv: list[str]) -> Answer:
    """One user with one account and one QOS, none of them with limits."""
    _, words = gnu_getopt(argv, "nP", ["parsable2", "noheader"])
    if words[:2] == ["show", "user"]:
        head = "User|Def Acct|Admin|Cluster|Account|Partition|MaxSubmit|MaxWall|QOS|Def QOS"
        return Answer(f"{head}\n{words[2]}|lab|None|pretend|lab||||normal|normal\n")
    return Answer("Name|Flags|GraceTime|MaxWall|MaxTRESPU|MaxSubmitPU\nnormal||00:00:00|||\n")


def sinfo(cluster: Cluster, argv: list[str]) -> Answer:
    """Nodes by state."""
    given = dict(gnu_getopt(argv, "hNo:", ["noheader", "Node", "format="])[0])
    form = given.get("--format") or given.get("-o") or "%N|%t"
    groups: Iterable[tuple[str, list[str]]]
    if "-N" in given or "--Node" in given:
        groups = [(state, [node]) for node, state in cluster.nodes.items()]
    else:
        found: dict[str, list[str]] = {}
        for node, state in cluster.nodes.items():
            found.setdefault(state, []).append(node)
        groups = found.items()
    lines = []
    for state, names in groups:
        texts = {
            "N": fold_names(names),
            "t": state.lower()[:5],
            "D": str(len(names)),
            "P": "main*",
            "l": MAX_TIME,
        }
        texts |= {"c": str(CPUS), "m": str(MEMORY_MB), "G": f"gpu:{GPUS}", "E": "none"}
        lines.append(_fill(form, texts))
    return Answer("".join(f"{line}\n" for line in lines))
