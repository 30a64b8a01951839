"""Why an attempt ended, in one word that decides whether another one may cure it."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from latentbridge.launch.spec import Retry

Cause = Literal[
    "done",
    "stopped",  # asked to stop by whoever started it here
    "cancelled",  # by `latentbridge cancel` or scancel
    "preempted",  # SLURM gave its nodes to someone else
    "timeout",
    "node_fail",
    "device_oom",
    "host_oom",
    "hang",
    "killed",  # a process was killed from outside, and nothing says by whom
    "error",
    "refused",  # the config cannot work
    "budget",
]
CAUSES = get_args(Cause)
OOM = ("device_oom", "host_oom")
# no other attempt can change these, or nobody wants one
FINAL = ("done", "stopped", "cancelled", "refused", "budget")
# what is not the run's doing says nothing about its progress
NOT_ITS_DOING = ("preempted", "node_fail", *FINAL)

TAIL_BYTES = 64 * 1024
_DEVICE_OOM = re.compile(
    r"(CUDA|HIP) out of memory|torch\.(cuda\.)?OutOfMemoryError|CUDA error: out of memory|STATUS_ALLOC_FAILED"
)
# NCCL tells it behind its exception
_NCCL_OOM = re.compile(r"Cuda failure (\d+ )?'out of memory'|Failed to CUDA (host )?[mc]?alloc")
_HOST_OOM = re.compile(
    r"DefaultCPUAllocator: can't allocate|Cannot allocate memory|^MemoryError|oom[-_ ]kill|Out Of Memory"
)
_HANG = re.compile(r"Watchdog caught collective operation timeout|collective operation timed? ?out", re.I)
# of torchrun's report; it ends the other ranks by SIGTERM itself
_RANK_EXIT = re.compile(r"exitcode\s*: (?!-15\b)(-?\d+)\b")
_EXCEPTION = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)$")
# torchrun's own report of a dead rank says nothing about why
_ECHO = ("ChildFailedError", "RendezvousClosedError", "SignalException")
# what the other ranks say when one has died
_AFTERMATH = re.compile(
    r"closed by peer|connection|recvVector|NCCL|gloo|DistBackendError|DistNetworkError", re.I
)
# addresses and process ids differ from one attempt to the next
_VARYING = re.compile(r"0x[0-9a-f]+|\bpid[ =]\d+|\[rank\d+\]", re.I)


class Failure(NamedTuple):
    """What is known of ranks that failed."""

    cause: Cause
    message: str
    # the logs tell only what a death elsewhere did to these ranks
    is_aftermath: bool = False


def classify(exit_code: int, attempt: Path, oom_kills: int = 0, kills_are_ours: bool = True) -> Failure:
    """Why the ranks of an attempt failed, by the logs of all its nodes.

    exit_code: torchrun's;  oom_kills: processes the kernel killed for want of memory meanwhile
    kills_are_ours: False where they may be a stranger's on the same host
    """
    tails = [tail_of(log) for log in sorted(attempt.glob("stderr*.log"))]
    messages = [message for tail in tails if (message := last_exception(tail))]
    own = next((message for message in messages if not _AFTERMATH.search(message)), "")
    said = own or next(iter(messages), "")
    if own.startswith("LockedError"):
        return Failure("preempted", own)  # someone else is at this run, and will end
    if own.startswith(("ConfigError", "PreflightError")):
        return Failure("refused", own)  # the same config cannot fare better
    if _DEVICE_OOM.search(own) or any(_NCCL_OOM.search(tail) for tail in tails):
        return Failure("device_oom", said)
    if (oom_kills and (kills_are_ours or not own)) or _HOST_OOM.search(own):
        return Failure("host_oom", own or f"the kernel killed {oom_kills} processes for want of memory")
    if any(_HANG.search(tail) for tail in tails):
        return Failure("hang", f"a collective timed out: {said}")
    if own:
        return Failure("error", own)
    exits = [int(code) for tail in tails for code in _RANK_EXIT.findall(tail)]
    died = next((code for code in exits if code < 0), None)
    if died is None and not exits and exit_code < 0:
        died = exit_code
    if died == -signal.SIGKILL:
        return Failure("killed", "one of its processes was killed by SIGKILL from outside")
    if died is not None:
        return Failure("error", f"one of its processes died of {signal.Signals(-died).name}")
    if said:
        return Failure("error", said, is_aftermath=True)
    return Failure("error", f"a rank exited with code {exits[0] if exits else exit_code} and no exception")


def last_exception(text: str) -> str:
    """The last line of the last traceback that tells a reason; empty where there is none.

    torchrun's echo never counts, and what ranks say of a lost peer only where they say nothing else.
    """
    lines = [
        match.group(1).strip() for line in text.splitlines() if (match := _EXCEPTION.match(line.strip()))
    ]
    told = [line for line in lines if not any(echo in line for echo in _ECHO)]
    own = [line for line in told if not _AFTERMATH.search(line)]
    return [*told[-1:], *own[-1:]][-1][:500] if told else ""


def tail_of(log: Path) -> str:
    """The end of a log, which may be of any size."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")


def may_retry(past: Sequence[dict[str, Any]], retry: Retry) -> tuple[bool, str]:
    """Whether the rules of the spec allow another attempt, and why; past: exit records, the last one new."""
    cause = past[-1]["cause"]
    if cause in FINAL:
        return False, f"'{cause}' is no cause to try again"
    rule = "oom" if cause in OOM else cause
    limit = getattr(retry, rule)
    times = Counter("oom" if record["cause"] in OOM else record["cause"] for record in past)[rule]
    if limit is not None and times > limit:
        return False, f"ended by {cause} {times} times; retry.{rule} is {limit}"
    repeats = _repeats(past)
    if cause == "error" and retry.deterministic is not None and repeats >= retry.deterministic:
        return False, (
            f"the same error at the same step {repeats + 1} times; "
            f"retry.deterministic is {retry.deterministic}"
        )
    steps = [record["step"] for record in past if record["cause"] not in NOT_ITS_DOING]
    if retry.no_progress is not None and cause not in NOT_ITS_DOING and _is_stuck(steps, retry.no_progress):
        stuck = f"{retry.no_progress + 1} attempts came no further than {steps[-1]}"
        return False, f"{stuck}; see retry.no_progress"
    return True, f"ended by {cause} {times} times; retry.{rule} is {'unlimited' if limit is None else limit}"


def _is_stuck(steps: Sequence[int], patience: int) -> bool:
    """Whether the last `patience` attempts came no further than the one before them."""
    before = len(steps) - 1 - patience
    return before >= 0 and max(steps[before:]) == steps[before]


def _repeats(past: Sequence[dict[str, Any]]) -> int:
    """How many attempts just before the last one ended as it did: same message, same step."""
    signs = [(r["cause"], _VARYING.sub("", r["message"]), r["step"]) for r in past]
    signs = [sign for sign in signs if sign[0] not in NOT_ITS_DOING]
    count = 0
    while count + 1 < len(signs) and signs[-2 - count] == signs[-1]:
        count += 1
    return count
