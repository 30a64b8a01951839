"""One run in plain words: what it does or waits for, how it ended, and what happens next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import NamedTuple

from latentbridge.errors import SchedulerError
from latentbridge.launch import slurm
from latentbridge.launch.node.attempt import history
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.status import ACTIVE, Phase, RunStatus, status
from latentbridge.launch.view.endings import attempt_lines, duration, last_ending
from latentbridge.launch.view.overview import where
from latentbridge.launch.view.reasons import advise

# a rank that has not moved for so long is worth a word
QUIET_RANK_S = 60
# SLURM guesses a start for other reasons too, where it says nothing
EXPECTED = ("Resources", "Priority", "None", "JobArrayTaskLimit")
DEAD_ENDS = ("failed", "cancelled", "held", "blocked")


class Case(NamedTuple):
    """One run among all runs of its launch."""

    launch: Launch
    run: PlannedRun
    states: dict[str, RunStatus]

    @property
    def state(self) -> RunStatus:
        return self.states[self.run.name]


def explain(launch: Launch, run_name: str) -> list[str]:
    """What a person whose run is not done wants to know, line by line."""
    run = launch.run(run_name)
    case = Case(launch, run, {state.name: state for state in status(launch)})
    state = case.state
    job = f", job {state.job}" if state.job and state.phase in ACTIVE else ""
    lines = [f"{run_name} is {state.phase}{job}", *(f"  {line}" for line in _NOW[state.phase](case))]
    if state.phase != "done":
        lines += last_ending(launch, run)
    manifest = run.folder.read_manifest()
    lines += [f"changed: {change}" for change in manifest.get("changes", [])]
    lines += [f"chosen: {key}: {why}" for key, why in manifest.get("best_of", {}).items()]
    if past := attempt_lines(run):
        lines += ["attempts:", *(f"  {line}" for line in past)]
    return lines


def _done(case: Case) -> list[str]:
    taken = [case.state.detail] if case.state.detail else []
    return [*taken, f"it finished at {where(case.state) or 'once'}; nothing happens to it any more"]


def _failed(case: Case) -> list[str]:
    why = case.run.folder.read_marker().get("why")
    given_up = [f"nobody starts it again: {why}"] if why else []
    return [*given_up, f"once the cause is gone: {_retry(case.run)}"]


def _cancelled(case: Case) -> list[str]:
    return [case.state.detail or "somebody took it out", f"to have it after all: {_retry(case.run)}"]


def _stopped(case: Case) -> list[str]:
    past = history(case.run.folder)
    why = [f"another attempt may follow: {past[-1]['why']}"] if past else []
    return [*why, *_who_starts_it(case.launch)]


def _planned(case: Case) -> list[str]:
    refused = [s.refused for s in case.launch.ledger if case.run.name in s.runs and s.refused]
    why = f"it was not taken when it was last submitted: {refused[-1]}" if refused else ""
    return [
        why or "it has not begun, and nothing keeps it from beginning",
        *_who_starts_it(case.launch),
    ]


def _lost(case: Case) -> list[str]:
    state = case.state
    if state.can_be_closed and case.launch.is_slurm:
        return [
            state.detail,
            "how it ended is written down, and judged, at the next step",
            *_who_starts_it(case.launch),
        ]
    return [state.detail, f"to start it again: {_launch_command(case.launch)}"]


def _unknown(case: Case) -> list[str]:
    state = case.state
    last = f"the last that is known is job {state.job}" if state.job else "it has no job that is known"
    return [f"{state.detail}; {last}", "ask again in half a minute; nothing is concluded from silence"]


def _blocked(case: Case) -> list[str]:
    bad = [case.states[need] for need in case.run.needs if case.states[need].phase in DEAD_ENDS]
    return [
        f"it needs {s.name}, which is {s.phase}: see {_command('explain', case.launch.run(s.name))}"
        for s in bad
    ]


def _waiting(case: Case) -> list[str]:
    if case.state.twin:
        twin = os.path.relpath(case.launch.path.parent / case.state.twin)
        return [case.state.detail, f"see `latentbridge explain {shlex.quote(twin)}`"]
    unmet = [case.states[need] for need in case.run.needs if case.states[need].phase != "done"]
    needs = [f"it needs {s.name}, which is {s.phase} {where(s)}".rstrip() for s in unmet]
    return [*needs, "it is submitted as soon as those are done"]


def _running(case: Case) -> list[str]:
    state = case.state
    place = f"job {state.job} on {state.nodes or 'a node'}" if state.job else "a worker on this machine"
    attempts = case.run.folder.list_attempts()
    if not attempts:
        return [f"{place} has started; its worker has not yet opened an attempt"]
    lines = [f"{place} is at {where(state) or 'its start'}"]
    quiet = [beat for beat in case.run.folder.beats(attempts[-1]) if beat.age_s > QUIET_RANK_S]
    lines += [f"rank {beat.rank} has not moved for {duration(beat.age_s)}" for beat in quiet]
    patience = case.launch.hang_timeout_s
    if quiet and patience is not None:
        lines.append(f"when no rank moves for {duration(patience)} it is ended as hung (hang_timeout_min)")
    return lines


def _pending(case: Case) -> list[str]:
    """Why SLURM lets it wait; one more question to SLURM, which tells more of a single job."""
    state = case.state
    job = _ask_about(str(state.job))
    # scontrol writes underscores where squeue writes blanks
    reason = (job.get("Reason") or state.detail or "None").replace("_", " ")
    advice = advise(reason, job)
    lines = [f"{advice.meaning} (SLURM: {reason})"]
    if advice.is_hopeless:
        steps = (
            f"{_command('cancel', case.run)}, then {_launch_command(case.launch)}, then {_retry(case.run)}"
        )
        lines += ["it will never start as it was submitted", *_helps(advice.remedy)]
        lines.append(f"to submit it anew, with what the profile in slurm/ then says: {steps}")
        return lines
    start = job.get("StartTime", "Unknown")
    if reason in EXPECTED and start not in ("Unknown", "N/A"):
        lines.append(f"SLURM expects to start it at {start.replace('T', ' ')}, earlier if others end early")
    return [*lines, *_helps(advice.remedy)]


def _helps(remedy: str) -> list[str]:
    return [f"what helps: {remedy}"] if remedy else []


def _ask_about(job: str) -> dict[str, str]:
    try:
        lines = slurm.ask("scontrol", "show", "job", job, "--oneliner")
    except SchedulerError:
        return {}
    return dict(word.split("=", 1) for word in lines[0].split() if "=" in word) if lines else {}


_NOW: dict[Phase, Callable[[Case], list[str]]] = {
    "done": _done,
    "failed": _failed,
    "cancelled": _cancelled,
    "held": _cancelled,
    "stopped": _stopped,
    "blocked": _blocked,
    "waiting": _waiting,
    "planned": _planned,
    "pending": _pending,
    "running": _running,
    "lost": _lost,
    "unknown": _unknown,
}


def _who_starts_it(launch: Launch) -> list[str]:
    if launch.is_slurm:
        return [
            "it is submitted when a job of this launch ends, by `latentbridge watch`, or by "
            f"{_launch_command(launch)}"
        ]
    return [f"to go on: {_launch_command(launch)}"]


def _launch_command(launch: Launch) -> str:
    return f"`{shlex.join(['python', *launch.plan['command']])}`"


def _retry(run: PlannedRun) -> str:
    return _command("retry", run)


def _command(verb: str, run: PlannedRun) -> str:
    return f"`latentbridge {verb} {_shown(run)}`"


def _shown(run: PlannedRun) -> str:
    """A run's path as a shell takes it, the shorter way."""
    path = str(run.folder.path)
    return shlex.quote(min(path, os.path.relpath(path), key=len))
