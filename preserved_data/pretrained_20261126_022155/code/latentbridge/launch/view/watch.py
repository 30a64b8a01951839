"""A launch as it goes on: a live table, or lines of what changed; what may start is started on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from latentbridge.errors import LatentbridgeError, LockedError, RunError, SchedulerError
from latentbridge.launch.advance import advance, is_moving
from latentbridge.launch.record import Launch
from latentbridge.launch.status import Monitor, RunStatus
from latentbridge.launch.view.display import console, show_status, status_table
from latentbridge.launch.view.overview import in_words, shortened, totals

EXIT_FAILED, EXIT_BUDGET, EXIT_INTERRUPTED = 1, 3, 130
ADVANCE_EVERY_S = 15
# after SLURM has said no
REFUSED_PAUSE_S = 60
BUDGET_NOTE = "the budget is used up: nothing more is submitted"
# between the end of one run and the start of the next a local launcher has none at work
LOCAL_PAUSE_S = 15
# lines about single runs in one go
MOST_LINES = 50

Show = Callable[[list[RunStatus], str], None]


def watch(launch: Launch, every_s: float = 2.0) -> int:
    """Show a launch until nothing of it is at work or will be; leaving harms nothing.

    Returns 0 if every run that was wanted is done, 1 if some are not, 3 if the budget stopped them,
    130 on Ctrl-C.
    """
    watcher = Watcher(launch)
    try:
        with _screen(launch) if console.is_terminal else _lines(launch) as show:
            while True:
                states = watcher.look()
                show(states, watcher.note)
                if watcher.has_ended(states):
                    break
                time.sleep(every_s)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if console.is_terminal:
        show_status(launch, states)
    else:
        for line in totals(launch, states):
            _say(line)
    return exit_code(launch, states)


class Watcher:
    """What a watched launch is doing, and one line on what is the matter with SLURM or with submitting."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.monitor = Monitor(launch)
        self._silent_since: float | None = None
        self._step_note = ""
        self._next_step = 0.0
        # nothing moves, and SLURM refused the rest or the budget is used up: asking again would not help
        self._is_over = False
        self._moved_at = time.monotonic()

    @property
    def note(self) -> str:
        """What a person should know beside the runs; empty if all is well."""
        if self._silent_since is not None:
            since = time.strftime("%H:%M:%S", time.localtime(self._silent_since))
            return f"SLURM does not answer since {since}"
        return self._step_note

    def look(self) -> list[RunStatus]:
        """The state of every run now, after whatever may start was submitted."""
        asked = time.time()
        states = self.monitor.poll()
        if self.monitor.queue is None:
            self._silent_since = self._silent_since or asked
            return states
        self._silent_since = None
        if not self._something_may_start(states):
            self._step_note = self._step_note if self._is_over else ""
        elif time.monotonic() >= self._next_step:
            self._next_step = time.monotonic() + self._take_step()
            states = self.monitor.poll()
        return states

    def has_ended(self, states: list[RunStatus]) -> bool:
        """Whether no run is at work or will be, as things are."""
        if is_moving(states) or self._something_may_start(states):
            self._moved_at = time.monotonic()
            return False
        left = any(state.phase in ("planned", "waiting", "stopped", "lost") for state in states)
        is_local_pause = left and not self.launch.is_slurm
        return not is_local_pause or time.monotonic() - self._moved_at > LOCAL_PAUSE_S

    def _something_may_start(self, states: list[RunStatus]) -> bool:
        if not self.launch.is_slurm or self._is_over:
            return False
        found = any(s.phase in ("planned", "stopped") or s.can_be_closed or s.twin for s in states)
        # who launched with --no-submit does not expect jobs from looking
        return found and any(True for _ in self.launch.ledger)

    def _take_step(self) -> float:
        """Submit what may start; returns after how many seconds to try again."""
        try:
            step = advance(self.launch)
        except (LockedError, SchedulerError, RunError, OSError) as error:
            self._step_note = f"tried again in {ADVANCE_EVERY_S} s: {error}"
            return ADVANCE_EVERY_S
        except LatentbridgeError as error:
            self._is_over = True
            self._step_note = f"nothing more is submitted from here: {error}"
            return ADVANCE_EVERY_S
        self._is_over = step.has_ended and (step.over_budget or bool(step.refusals))
        self._step_note = BUDGET_NOTE if step.over_budget else "; ".join(step.complaints)
        return REFUSED_PAUSE_S if step.is_full or step.refusals else ADVANCE_EVERY_S


def exit_code(launch: Launch, states: list[RunStatus]) -> int:
    """0 if every run that was wanted is done, 3 if the budget stopped the others, else 1."""
    if all(state.phase in ("done", "held") for state in states):
        return 0
    budget = launch.budget_gpu_hours
    is_used_up = budget is not None and sum(state.gpu_hours for state in states) >= budget
    return EXIT_BUDGET if is_used_up else EXIT_FAILED


@contextmanager
def _screen(launch: Launch) -> Iterator[Show]:
    """A table that stays in place; no more rows are laid out than fit."""

    def table(states: list[RunStatus], note: str) -> RenderableType:
        # the last line of a screen is the cursor's
        height = console.size.height - 2
        below = Text(note or "Ctrl-C leaves; the runs go on", "red" if note else "dim", no_wrap=True)
        return Group(status_table(launch, states, height), below)

    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        yield lambda states, note: live.update(table(states, note), refresh=True)


@contextmanager
def _lines(launch: Launch) -> Iterator[Show]:
    """The table once, then a line for every run whose state changed, for logs and pipes."""
    last: dict[str, RunStatus] = {}
    said = ""

    def show(states: list[RunStatus], note: str) -> None:
        nonlocal said
        if not last:
            show_status(launch, states)
            last.update({state.name: state for state in states})
        # while SLURM is silent the last word on a run stands
        changed = [s for s in states if s.phase != "unknown" and _has_changed(last[s.name], s)]
        last.update({state.name: state for state in changed})
        clock = time.strftime("%H:%M:%S")
        for state in changed[:MOST_LINES]:
            again = f" (attempt {state.attempts})" if state.attempts > 1 else ""
            _say(f"{clock} {state.name}: {state.phase}{again}: {in_words(state)}".rstrip(": "))
        if len(changed) > MOST_LINES:
            _say(f"{clock} {shortened([state.name for state in changed[MOST_LINES:]])} changed too")
        if note != said:
            _say(f"{clock} {note or 'all is well again'}")
            said = note

    yield show


def _has_changed(before: RunStatus, now: RunStatus) -> bool:
    return (before.phase, before.attempts, before.job) != (now.phase, now.attempts, now.job)


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False)
