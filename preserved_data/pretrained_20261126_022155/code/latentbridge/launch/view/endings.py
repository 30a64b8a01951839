"""How a run's attempts ended: the last one at length, each in a line."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from latentbridge.launch.account import HOUR_S, attempt_s
from latentbridge.launch.node.attempt import history, read_opening
from latentbridge.launch.node.causes import OOM, tail_of
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.view.stacks import where_ranks_stand
from latentbridge.rundir import read_json

# of a traceback: the innermost frames and the message
TRACEBACK_LINES = 7
# torchrun puts it before what a rank writes
_RANK = r"(?:\[rank\d+\]: ?)?"
_TRACEBACK = re.compile(rf"^{_RANK}Traceback \(most recent call last\):$", re.MULTILINE)


def last_ending(launch: Launch, run: PlannedRun) -> list[str]:
    """How the last attempt that ended did so, and what that leaves; nothing where none has."""
    ended = [a for a in run.folder.list_attempts() if (a / "exit.json").exists()]
    if not ended:
        return []
    attempt, record = ended[-1], read_json(ended[-1] / "exit.json")
    message = " ".join(record["message"].split())
    code = "" if record["exit_code"] is None else f", exit code {record['exit_code']}"
    lines = [
        f"attempt {attempt.name} ended: {record['cause']}: {message}",
        f"  at update {record['step']} on {_nodes(attempt)}{code}",
        *(f"  | {line}" for line in _traceback(attempt, record["message"])),
    ]
    if record["cause"] == "hang":
        lines += [f"  {line}" for line in where_ranks_stand(attempt, launch.code)]
    return [*lines, f"  {_tries_left(launch, run, record['cause'])}"]


def attempt_lines(run: PlannedRun) -> list[str]:
    """Every attempt: start, duration, GPU-hours, cause, update, nodes."""
    return [_attempt_line(attempt) for attempt in run.folder.list_attempts()]


def duration(seconds: float) -> str:
    """A span of time for reading, e.g. 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _tries_left(launch: Launch, run: PlannedRun, cause: str) -> str:
    rule = _rule(cause)
    if not hasattr(launch.retry, rule):
        return f"'{cause}' is not tried again by itself"
    limit = getattr(launch.retry, rule)
    if limit is None:
        return f"retry.{rule} is unlimited"
    past = history(run.folder, after=launch.ledger.orders.forgiven.get(run.name, 0))
    used = Counter(_rule(record["cause"]) for record in past)[rule]
    return f"retry.{rule}: {min(used, limit)} of {limit} used"


def _rule(cause: str) -> str:
    return "oom" if cause in OOM else cause


def _traceback(attempt: Path, message: str) -> list[str]:
    """The end of the traceback that led to a message; empty where the logs hold none."""
    says_it = re.compile(rf"^{_RANK}{re.escape(message)}", re.MULTILINE)
    for log in sorted(attempt.glob("stderr*.log")):
        text = tail_of(log)
        ends = [match.end() for match in says_it.finditer(text)] if message else []
        starts = [match.start() for match in _TRACEBACK.finditer(text, 0, ends[-1])] if ends else []
        if starts:
            return text[starts[-1] : ends[-1]].splitlines()[-TRACEBACK_LINES:]
    return []


def _attempt_line(attempt: Path) -> str:
    opened = read_opening(attempt)
    file = attempt / "exit.json"
    record: dict[str, Any] = read_json(file) if file.exists() else {}
    started = record.get("began", opened.get("started"))
    words = [attempt.name.rjust(2), _clock(started) if started else "never opened"]
    if record:
        seconds = attempt_s(attempt)
        words += [duration(seconds), f"{seconds * record['gpus'] / HOUR_S:.2f} GPU-hours"]
        words += [record["cause"], f"update {record['step']}"]
    else:
        words.append("no end yet")
    return "  ".join([*words, _nodes(attempt)])


def _nodes(attempt: Path) -> str:
    return str(read_opening(attempt).get("nodes", "an unknown node"))


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
