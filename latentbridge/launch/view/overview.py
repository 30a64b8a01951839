"""A launch in a few lines: which runs deserve a look first, how many are where, what it has cost."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentbridge.launch.account import HOUR_S, at_most
from latentbridge.launch.node.attempt import STOPPED_BY, history
from latentbridge.launch.node.nodes import bad_nodes
from latentbridge.launch.status import ACTIVE, ENDED, Phase, RunStatus
from latentbridge.rundir import RunDir

if TYPE_CHECKING:
    from latentbridge.launch.plan import Plan
    from latentbridge.launch.record import Launch

# what a person looks at first
INTEREST: tuple[Phase, ...] = (
    "failed",
    "lost",
    "blocked",
    "unknown",
    "running",
    "stopped",
    "cancelled",
    "pending",
    "waiting",
    "planned",
    "held",
    "done",
)
NOTABLE = INTEREST[:7]
# these saved what they had, or nobody wanted more
NOT_LOST = ("done", "preempted", "timeout", *STOPPED_BY)
# values of one setting that a line can hold
MOST_VALUES = 8
# bad nodes, each with its reason
MOST_NODES = 4


def by_interest(states: list[RunStatus]) -> list[RunStatus]:
    """Failed runs first, finished ones last; among equals the order of the spec."""
    return sorted(states, key=lambda state: INTEREST.index(state.phase))


def where(state: RunStatus) -> str:
    """How far a run is."""
    return state.stage or (f"update {state.step}" if state.step else "")


def in_words(state: RunStatus) -> str:
    """Why a run is where it is, in one line."""
    detail = " ".join(state.detail.split())
    if state.phase in ACTIVE:
        after = f"after {state.cause}" if state.cause else ""
        return ", ".join(filter(None, [detail, after]))
    if state.cause in (None, "done"):
        return detail
    return f"{state.cause}: {detail}" if detail else str(state.cause)


def halvings(launch: Launch, state: RunStatus) -> int:
    """How many times a run's micro-batch was halved to fit into memory."""
    return _past(launch.run(state.name).folder, state.attempts, state.phase)[1] if state.attempts else 0


def lost_hours(launch: Launch, states: list[RunStatus]) -> float:
    """GPU-hours of the attempts that failed."""
    tried = [state for state in states if state.attempts]
    return sum(_past(launch.run(s.name).folder, s.attempts, s.phase)[0] for s in tried)


# of a run whose last attempt ended, or began, nothing that is read here changes until its phase does
@lru_cache(maxsize=20_000)
def _past(folder: RunDir, attempts: int, phase: Phase) -> tuple[float, int]:
    if phase == "done" and attempts == 1:
        return 0.0, 0
    lost = [record for record in history(folder) if record["cause"] not in NOT_LOST]
    hours = sum((r.get("released", r["ended"]) - r["began"]) * r["gpus"] for r in lost) / HOUR_S
    is_halved = any(record["cause"].endswith("_oom") for record in lost)
    return hours, folder.read_manifest().get("backoff", 0) if is_halved else 0


def totals(launch: Launch, states: list[RunStatus]) -> list[str]:
    """Runs by phase, GPU-hours, nodes left out, and changed micro-batches, one line each."""
    counts = Counter(state.phase for state in states)
    phases = ", ".join(f"{counts[phase]} {phase}" for phase in reversed(INTEREST) if counts[phase])
    lines = [f"{len(states)} runs: {phases}", _hours(launch, states)]
    halved = [state.name for state in states if halvings(launch, state)]
    if halved:
        lines.append(f"micro-batch halved for want of memory: {shortened(halved)}")
    bad = bad_nodes(launch.path.parent)
    lines += [f"{b.node} is left out until {_clock(b.until)}: {b.reason}" for b in bad[:MOST_NODES]]
    if len(bad) > MOST_NODES:
        lines.append(f"{len(bad) - MOST_NODES} more nodes are left out")
    archive = Path(launch.plan["archives"]) / launch.name
    if all(state.phase in ENDED for state in states) and not archive.exists():
        by_hand = f"`latentbridge preserve {shlex.quote(str(launch.path))}`"
        lines.append(f"not preserved yet: its last job does it, or {by_hand}")
    return lines


def _clock(at: float) -> str:
    return time.strftime("%m-%d %H:%M", time.localtime(at))


def _hours(launch: Launch, states: list[RunStatus]) -> str:
    used, lost = sum(state.gpu_hours for state in states), lost_hours(launch, states)
    budget = "" if launch.budget_gpu_hours is None else f" of {launch.budget_gpu_hours:g}"
    return f"GPU-hours: {used:.2f}{budget} used, {lost:.2f} of them by attempts that failed"


def shortened(words: list[str], most: int = MOST_VALUES) -> str:
    """The first words of a list, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def plan_cost(plan: Plan) -> str:
    """What a plan may cost at most, beside what it is allowed."""
    most, budget = at_most(plan.resources.values()), plan.spec.budget_gpu_hours
    line = f"at most {most:.4g} GPU-hours, if every run needs all its time once"
    if budget is None:
        return line
    return f"{line}; budget_gpu_hours {budget:g} " + (
        "stops it before that" if most > budget else "allows that"
    )


def plan_groups(plan: Plan) -> list[tuple[str, str, str]]:
    """A large plan by what its runs vary and ask for: how many, nodes x ranks, the values of each setting."""

    def kind(name: str) -> tuple[Any, ...]:
        return tuple(cells[name].overrides), plan.resources[name].model_dump_json()

    cells = {cell.name: cell for cell in plan.cells}
    groups = []
    for (keys, _), members in groupby(sorted(cells, key=kind), key=kind):
        names = list(members)
        varied = []
        for key in keys:
            values = list(dict.fromkeys(str(cells[name].overrides[key]) for name in names))
            varied.append(f"{key}={shortened(values)}")
        asked = plan.resources[names[0]]
        groups.append((str(len(names)), f"{asked.nodes} x {asked.gpus_per_node}", "; ".join(varied)))
    return groups
