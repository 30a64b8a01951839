"""Why an attempt ended, in one word that decides whether another one may cure it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from latentbridge.launch.spec import Retry
from latentbridge.rundir import RunDir, read_json

Cause = Literal["done", "stopped", "preempted", "timeout", "node_fail", "oom", "error", "refused", "needs"]

TAIL_BYTES = 64 * 1024
_OOM = re.compile(r"out of memory|OutOfMemory|DefaultCPUAllocator: can't allocate", re.IGNORECASE)
_KILLED = re.compile(r"exitcode\s*: -9|SIGKILL|oom.kill", re.IGNORECASE)
_EXCEPTION = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)$")
# torchrun's own report of a dead rank says nothing about why
_ECHO = ("ChildFailedError", "RendezvousClosedError", "SignalException")
# what the other ranks say when one has died
_AFTERMATH = re.compile(
    r"closed by peer|connection|recvVector|NCCL|gloo|DistBackendError|DistNetworkError", re.I
)


def classify(exit_code: int, attempt: Path) -> tuple[Cause, str]:
    """Cause and message of an attempt whose ranks failed: torchrun's exit code, and stderr of every node."""
    logs = sorted(attempt.glob("stderr*.log"))
    tails = [log.read_bytes()[-TAIL_BYTES:].decode(errors="replace") for log in logs]
    messages = [message for tail in tails if (message := last_exception(tail))]
    message = next((m for m in messages if not _AFTERMATH.search(m)), messages[0] if messages else "")
    if message.startswith("LockedError"):
        return "preempted", message  # someone else is at this run, and will end
    if message.startswith(("ConfigError", "PreflightError")):
        return "refused", message  # the same config cannot fare better
    if _OOM.search(message):
        return "oom", message
    if not message and (exit_code < 0 or any(_KILLED.search(tail) for tail in tails)):
        return "node_fail", "killed from outside: out of host memory, a dying node, or by hand"
    return "error", message or f"torchrun exited with {exit_code} and no exception; see {attempt}"


def last_exception(text: str) -> str:
    """The last line of the last traceback that is not torchrun's echo of it; empty where there is none."""
    lines = [
        match.group(1).strip() for line in text.splitlines() if (match := _EXCEPTION.match(line.strip()))
    ]
    own = [line for line in lines if not any(echo in line for echo in _ECHO)]
    return own[-1][:500] if own else ""


def history(run: RunDir) -> list[dict[str, Any]]:
    """The exit records of a run's attempts, oldest first."""
    files = [attempt / "exit.json" for attempt in run.list_attempts()]
    return [read_json(file) for file in files if file.exists()]


def may_retry(run: RunDir, cause: Cause, retry: Retry) -> bool:
    """Whether the retry rules of the spec allow another attempt after one that ended by `cause`."""
    if cause in ("done", "stopped", "refused", "needs"):
        return False
    limit = getattr(retry, cause)
    past = history(run)
    if limit is not None and Counter(record["cause"] for record in past)[cause] > limit:
        return False
    steps = [record.get("step", 0) for record in past if record["cause"] != "needs"]
    if retry.no_progress is None or len(steps) <= retry.no_progress:
        return True
    return bool(steps[-1] > steps[-1 - retry.no_progress])
