"""The end of an attempt: written down once, by its worker or by whoever found the worker dead."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentbridge.config import read_yaml
from latentbridge.launch.node.causes import OOM, Cause, may_retry
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.slurm.text import node_names
from latentbridge.rundir import RunDir, State, read_json, write_json
from latentbridge.train.config import backed_off

# why its worker was signalled, by SLURM's word at that moment
SIGNALLED = "signal.json"
# someone's wish, not a failure
STOPPED_BY = ("stopped", "cancelled", "budget")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an attempt ended."""

    cause: Cause
    message: str
    exit_code: int | None = None
    ended: float  # seconds since the epoch


def conclude(launch: Launch, run: PlannedRun, attempt: Path, ending: Ending) -> bool:
    """Write down how an attempt ended, with the run's marker if it was the last; True if another may follow.

    The marker comes first: whoever dies between the two has decided that there is no other attempt.
    After out-of-memory the next attempt gets half the micro-batch; the manifest says so.
    """
    opened = read_opening(attempt)
    record: dict[str, Any] = {
        "cause": ending.cause,
        "message": ending.message,
        "exit_code": ending.exit_code,
        "step": run.folder.last_step(),
        "began": opened.get("started", ending.ended),
        "ended": ending.ended,
        "gpus": ranks_of(run),
        "token": opened.get("token"),
    }
    past = [*history(run.folder, launch.ledger.orders.forgiven.get(run.name, 0), before=attempt), record]
    again, why = may_retry(past, launch.retry)
    if again and ending.cause in OOM:
        again, why = _back_off(run, attempt, ending.cause)
    record |= {"again": again, "why": why}
    if not again and ending.cause != "done":
        marker: State = "STOPPED" if ending.cause in STOPPED_BY else "FAILED"
        run.folder.mark(marker, record | {"attempt": attempt.name})
    write_json(attempt / "exit.json", record)
    return again


def _back_off(run: PlannedRun, attempt: Path, cause: Cause) -> tuple[bool, str]:
    """Halve the micro-batch of the attempts to come; the global batch stays what it was."""
    train = read_yaml(run.folder.config).values.get("train")
    manifest = run.folder.read_manifest()
    halvings = manifest.get("backoff", 0)
    if not isinstance(train, dict) or "batch_size" not in train:
        # memory of the host may be free next time; that of the device is as full as before
        return cause == "host_oom", "jobs without train.batch_size have no micro-batch to halve"
    per_rank = train["batch_size"] // ranks_of(run)
    micro = train.get("micro_batch_size") or per_rank
    before, after = (backed_off(per_rank, micro, n) for n in (halvings, halvings + 1))
    if after is None:
        return False, "the micro-batch is 1 already; ask for more memory, or more GPUs"
    note = f"micro-batch {before} -> {after} after {cause} in attempt {attempt.name}; global batch unchanged"
    changes = [*manifest.get("changes", []), note]
    run.folder.write_manifest(manifest | {"backoff": halvings + 1, "changes": changes})
    return True, note


def close_lost(
    launch: Launch,
    run: PlannedRun,
    cause: Cause,
    message: str,
    *,
    up_to: int | None = None,
    is_told: bool = False,
) -> bool:
    """Write down the end of attempts whose worker cannot any more; True if another may follow.

    cause, message: of those that left no sign of it themselves;  up_to: the last one that is known to be dead
    is_told: SLURM says so, which counts for more than what a worker guessed when it was signalled
    """
    again = True
    for attempt in run.folder.list_attempts():
        is_known = up_to is None or int(attempt.name) <= up_to
        if is_known and not (attempt / "exit.json").exists():
            why, what = _last_known(run, attempt, believes_guess=not is_told) or (cause, message)
            ending = Ending(cause=why, message=what, ended=last_sign(attempt))
            again = conclude(launch, run, attempt, ending)
    return again


def close_unbegun(
    launch: Launch, run: PlannedRun, token: str, cause: Cause, message: str, nodes: str
) -> bool:
    """Write down a start that failed before there was an attempt; True if another may follow."""
    attempt, now = run.folder.new_attempt(), time.time()
    opened = {"slurm": None, "token": token, "nodes": nodes, "started": now, "began": False}
    write_json(attempt / "env.json", opened)
    return conclude(launch, run, attempt, Ending(cause=cause, message=message, ended=now))


def failed_to_begin_on(run: PlannedRun) -> list[str]:
    """The nodes on which a run's last start failed before its worker could open an attempt.

    A node without the disk or the interpreter fails its jobs at once, so it is free for the next ones too.
    """
    attempts = run.folder.list_attempts()
    opened = read_opening(attempts[-1]) if attempts else {}
    if opened.get("began", True):
        return []
    ended = history(run.folder)[-1:]
    return node_names(opened.get("nodes") or "") if ended and ended[0]["cause"] in ("error", "killed") else []


def _last_known(run: PlannedRun, attempt: Path, believes_guess: bool) -> tuple[Cause, str] | None:
    """What an attempt without an end left behind that tells its cause."""
    if run.folder.is_done:
        return "done", "finished"
    marker = run.folder.read_marker()
    if marker.get("attempt") == attempt.name:
        return marker["cause"], marker["message"]  # whoever wrote it died before the record
    if (attempt / SIGNALLED).exists():
        note = read_json(attempt / SIGNALLED)
        if believes_guess or not note.get("is_guess"):
            return note["cause"], note["message"]
    return None


def history(run: RunDir, after: int = 0, before: Path | None = None) -> list[dict[str, Any]]:
    """Exit records of a run's attempts above number `after` and before `before`, oldest first."""
    attempts = [a for a in run.list_attempts() if int(a.name) > after]
    if before is not None:
        attempts = [a for a in attempts if int(a.name) < int(before.name)]
    return [read_json(a / "exit.json") for a in attempts if (a / "exit.json").exists()]


def read_opening(attempt: Path) -> dict[str, Any]:
    """What the worker wrote when it opened the attempt; empty if it died before that."""
    file = attempt / "env.json"
    return dict(read_json(file)) if file.exists() else {}


def last_sign(attempt: Path) -> float:
    """When anything in an attempt's folder last changed, seconds since the epoch."""
    newest = attempt.stat().st_mtime
    for path in (*attempt.iterdir(), *attempt.glob("beats/*")):
        with suppress(FileNotFoundError):  # the draft of a file that was renamed this moment
            newest = max(newest, path.stat().st_mtime)
    return newest


def silent_for(run: RunDir) -> float:
    """Seconds since a run's last attempt gave any sign of life; infinite if there is none."""
    attempts = run.list_attempts()
    return time.time() - last_sign(attempts[-1]) if attempts else float("inf")


def ranks_of(run: PlannedRun) -> int:
    """How many ranks a run has in all."""
    return run.resources.nodes * (run.resources.gpus_per_node or 1)
