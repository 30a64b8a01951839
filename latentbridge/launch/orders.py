"""What people ask about single runs: leave it out, cancel it, bring it back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from latentbridge.errors import ConfigError, LockedError, RunError, SchedulerError
from latentbridge.job import STOP_REQUEST
from latentbridge.launch import slurm
from latentbridge.launch.advance import LOCK
from latentbridge.launch.lease import lease
from latentbridge.launch.ledger import SKIPPED, Orders
from latentbridge.launch.record import Launch
from latentbridge.launch.status import ACTIVE, status
from latentbridge.rundir import RunDir, hold_lock

PATIENCE_S = 60
POLL_S = 1.0
# an error names so many runs
MOST_NAMES = 12
CANCELLED = "cancelled by `latentbridge cancel`"


def find_skipped(cells: Mapping[str, str], only: Sequence[str], skip: Sequence[str]) -> list[str]:
    """The runs that patterns leave out, of their names or of their cells'; ConfigError if one matches none.

    cells: the cell of each run, by the run's name
    """

    def is_meant(name: str, pattern: str) -> bool:
        return fnmatchcase(name, pattern) or fnmatchcase(cells[name], pattern)

    def is_wanted(name: str) -> bool:
        chosen = not only or any(is_meant(name, pattern) for pattern in only)
        return chosen and not any(is_meant(name, pattern) for pattern in skip)

    names = list(cells)
    for pattern in (*only, *skip):
        if not any(is_meant(name, pattern) for name in names):
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            raise ConfigError(
                f"--only/--skip '{pattern}' matches no run and no cell; runs: "
                f"{', '.join(names[:MOST_NAMES])}{more}"
            )
    return [name for name in names if not is_wanted(name)]


def select(launch: Launch, skipped: Sequence[str]) -> None:
    """From now on submit no run of these, and all others that nobody cancelled."""
    with lease(launch.path / LOCK, f"choosing runs of {launch.name}", PATIENCE_S):
        orders = launch.ledger.orders
        held = {name: reason for name, reason in orders.held.items() if reason != SKIPPED}
        held = dict.fromkeys(skipped, SKIPPED) | held
        if held != orders.held:
            launch.ledger.order(Orders(held=held, forgiven=orders.forgiven))


def cancel(launch: Launch, names: Sequence[str]) -> list[str]:
    """Stop these runs and start them no more until `retry`; returns those that were not ended already.

    A run at work is asked to save what it has, however long that takes; asked a second time, it is ended with
    what SLURM gives it. The order stands even where this raises: SchedulerError if SLURM cannot be told,
    RunError for a run that is trained by hand.
    """
    with lease(launch.path / LOCK, f"cancelling runs of {launch.name}", PATIENCE_S):
        states = {state.name: state for state in status(launch) if state.name in set(names)}
        open_ = [name for name, state in states.items() if state.phase not in ("done", "failed", "cancelled")]
        orders = launch.ledger.orders
        asked_before = {name for name, why in orders.held.items() if why == CANCELLED}
        # on disk first: whatever starts or ends from now on knows
        launch.ledger.order(
            Orders(held=orders.held | dict.fromkeys(open_, CANCELLED), forgiven=orders.forgiven)
        )
    queued = [
        states[name] for name in open_ if states[name].phase in (*ACTIVE, "unknown") and states[name].job
    ]
    # a plain scancel would leave it the seconds between SLURM's TERM and KILL
    saving = [s for s in queued if s.phase == "running" and s.is_open and s.name not in asked_before]
    _scancel("--signal=TERM", *(str(state.job) for state in saving))
    _scancel(*(str(state.job) for state in queued if state not in saving))
    at_work = [launch.run(name).folder for name in open_ if states[name].phase == "running"]
    # without SLURM ranks are asked by file; a worker that has not started them yet reads the order first
    here = [folder for folder in at_work if not states[folder.name].job]
    by_hand = []
    for folder in here:
        # looked at anew: a worker that opened an attempt since may have read the orders before ours
        attempts = folder.list_attempts()
        if attempts and not (attempts[-1] / "exit.json").exists():
            (attempts[-1] / STOP_REQUEST).touch()
        elif not _has_worker(folder):
            by_hand.append(folder.name)
    if by_hand:
        raise RunError(
            f"{', '.join(by_hand)}: trained by a process that somebody started by hand, and has to stop; "
            "nothing else will start it"
        )
    return open_


def _has_worker(folder: RunDir) -> bool:
    try:
        hold_lock(folder.worker_lock, 0).close()
    except LockedError:
        return True
    return False


def _scancel(*words: str) -> None:
    if all(word.startswith("-") for word in words):
        return
    answer = slurm.call("scancel", *words)
    if answer.returncode != 0:
        raise SchedulerError(
            f"scancel: {answer.stderr.strip()}. The runs are marked as cancelled, but their jobs may "
            "live on; run the same command again"
        )


def bring_back(launch: Launch, names: Sequence[str]) -> list[str]:
    """Let failed, cancelled and held runs start again, their earlier attempts forgiven; returns which.

    Those that were cancelled moments ago are waited for until they have ended.
    """
    with lease(launch.path / LOCK, f"bringing back runs of {launch.name}", PATIENCE_S):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            states = {state.name: state for state in status(launch) if state.name in set(names)}
            ending = launch.ledger.orders.held.keys() & {s.name for s in states.values() if s.phase in ACTIVE}
            if not ending or time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        wanted = [name for name, s in states.items() if s.phase in ("failed", "cancelled", "held", "lost")]
        orders = launch.ledger.orders
        held = {name: reason for name, reason in orders.held.items() if name not in wanted}
        launch.ledger.order(
            Orders(held=held, forgiven=orders.forgiven | {name: states[name].attempts for name in wanted})
        )
    return wanted
