"""What a person at the terminal sees: the plan, the runs at work, the states of all."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from latentbridge.launch.account import at_most
from latentbridge.launch.status import RunStatus
from latentbridge.launch.view.overview import (
    NOTABLE,
    by_interest,
    halvings,
    in_words,
    plan_cost,
    plan_groups,
    shortened,
    totals,
    where,
)

if TYPE_CHECKING:
    from latentbridge.launch.checks.rehearse import Report
    from latentbridge.launch.local import LocalPool
    from latentbridge.launch.plan import Plan
    from latentbridge.launch.record import Launch

# in a pipe rich takes 80 columns, which folds run names
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
COLOURS = {
    "done": "green",
    "failed": "red",
    "lost": "red",
    "blocked": "red",
    "unknown": "magenta",
    "running": "cyan",
    "stopped": "yellow",
    "cancelled": "yellow",
}
STATUS_COLUMNS = ["run", "state", "at", "attempts", "GPU-hours", "job", "nodes", "detail"]
# a narrow terminal has no room for these; --json and `explain` have them
WIDE, SPARED = 120, ("job", "nodes")
# title, header and rules of a table, and the line that says how many more runs there are
FRAME_LINES = 6
# above this a table shows what matters and counts the rest
MOST_ROWS = 200
SOME_ROWS = 40
# between lines of a log file that say nothing new has happened
QUIET_S = 30


def plan_table(plan: Plan) -> RenderableType:
    """What each run asks for and what sets it apart; a large plan by groups of equal requests."""
    title = f"{plan.spec.name}: {len(plan.cells)} runs of jobs/{plan.spec.job}.py"
    table = _plan_rows(plan, title) if len(plan.cells) <= MOST_ROWS else _plan_group_rows(plan, title)
    return Group(table, Text(plan_cost(plan)))


def _plan_rows(plan: Plan, title: str) -> Table:
    rows = []
    for cell in plan.cells:
        asked = plan.resources[cell.name]
        size, hours = f"{asked.nodes} x {asked.gpus_per_node}", f"{at_most([asked]):.4g}"
        differs = ", ".join(f"{key}={value}" for key, value in cell.overrides.items())
        rows.append([cell.name, cell.id, size, hours, " ".join(cell.needs), differs])
    columns = ["run", "id", "nodes x ranks", "GPU-hours at most", "needs", "differs from the base by"]
    return _table(title, columns, rows)


def _plan_group_rows(plan: Plan, title: str) -> Table:
    title = f"{title}, from {plan.cells[0].name} to {plan.cells[-1].name}"
    return _table(title, ["runs", "nodes x ranks", "vary"], [list(group) for group in plan_groups(plan)])


def rehearsal_table(report: Report) -> RenderableType:
    """What every check showed, of how many runs; of more than three different answers the commonest two."""
    found: dict[str, Counter[str]] = {}
    for verdict in report.verdicts:
        found.setdefault(verdict.check, Counter())[verdict.text] += len(verdict.runs)
    rows = []
    for name, texts in found.items():
        answers = texts.most_common()
        if others := answers[2:] if len(answers) > 3 else []:
            answers[2:] = [(f"{len(others)} other answers", sum(runs for _, runs in others))]
        first = [name, *[""] * (len(answers) - 1)]
        rows += [[at, str(runs), text] for at, (text, runs) in zip(first, answers, strict=True)]
    rows += [[name, "-", "left out (--no-check)"] for name in report.off]
    cost = "known from before" if report.seconds is None else f"{report.seconds:.0f} s"
    part = "" if report.sample[0] == report.sample[1] else ", {} of {} cells".format(*report.sample)
    return _table(f"rehearsal on tiny models: {cost}{part}", ["check", "runs", "shows"], rows)


def show_twins(twins: Mapping[str, list[str]], num_outdated: int) -> None:
    """Say which runs of a new launch an earlier one computes, and how many it did otherwise."""
    if twins:
        launches = sorted({place.partition("/")[0] for places in twins.values() for place in places})
        console.print(
            f"{len(twins)} of its runs are the same experiments as in {shortened(launches)}: what is done "
            f"there is taken over, what is at work there waited for (--new runs all afresh)\n"
            f"  {shortened(list(twins))}",
            highlight=False,
        )
    if num_outdated:
        console.print(
            f"{num_outdated} of its runs are done in an earlier launch, by other code or packages: run again"
        )


def show_status(launch: Launch, states: list[RunStatus]) -> None:
    """Print the table of a launch."""
    console.print(status_table(launch, states))


def status_table(launch: Launch, states: list[RunStatus], height: int | None = None) -> RenderableType:
    """One line a run: where it stands, and why; totals below.

    height: lines that there is room for, given to the most interesting runs; None: all runs of a launch of
    ordinary size, in the order of the spec
    """
    footer = totals(launch, states)
    shown = states
    if height is not None:
        shown = by_interest(states)[: max(1, height - FRAME_LINES - len(footer))]
    elif len(states) > MOST_ROWS:
        shown = [state for state in by_interest(states) if state.phase in NOTABLE][:SOME_ROWS]
    if len(shown) < len(states):
        footer = [f"{len(states) - len(shown)} more; --json for all", *footer]
    columns = [column for column in STATUS_COLUMNS if console.width >= WIDE or column not in SPARED]
    rows = [_status_row(launch, state) for state in shown]
    table = _table(launch.name, columns, [[row[column] for column in columns] for row in rows])
    table.expand = True
    detail = table.columns[-1]
    detail.no_wrap, detail.overflow, detail.ratio, detail.min_width = True, "ellipsis", 1, 12
    return Group(table, *(Text(line, overflow="ellipsis", no_wrap=True) for line in footer))


def _status_row(launch: Launch, state: RunStatus) -> dict[str, str | Text]:
    times = halvings(launch, state)
    halved = f"micro-batch / {2**times}; " if times else ""
    return {
        "run": state.name,
        "state": Text(state.phase, COLOURS.get(state.phase, "")),
        "at": where(state),
        "attempts": str(state.attempts or ""),
        "GPU-hours": f"{state.gpu_hours:.2f}" if state.attempts else "",
        "job": state.job or "",
        "nodes": state.nodes,
        "detail": halved + in_words(state),
    }


def _table(title: str, columns: list[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """A table without those columns that say nothing; the first and the last are always there."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    last = len(columns) - 1
    kept = [i for i in range(len(columns)) if i in (0, last) or any(row[i] for row in rows)]
    for i in kept:
        table.add_column(columns[i], overflow="fold")
    for row in rows:
        cells = [row[i] for i in kept]
        table.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in cells))
    return table


class Board:
    """Bars for the runs a local pool is working on; plain lines where there is no terminal."""

    def __init__(self, total: int, done: int) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self.is_terminal,
        )
        self.overall = self.progress.add_task("runs", total=total, completed=done)
        self.total = total
        self.bars: dict[str, TaskID] = {}
        self.said = ""
        self.said_at = 0.0

    def __enter__(self) -> Board:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, pool: LocalPool) -> None:
        """Show the pool as it is now."""
        working = {work.run.name: work for work in pool.working.values()}
        left = len(working) + len(pool.pending)
        self.progress.update(self.overall, completed=self.total - left)
        for name in [name for name in self.bars if name not in working]:
            self.progress.remove_task(self.bars.pop(name))
            print(f"{name}: {pool.launch.runs[name].folder.state or 'again'}", flush=True)
        lines = []
        for name, work in working.items():
            said = work.read_progress()
            stage, done, total = said.get("stage", "starting"), said.get("done", 0), said.get("total")
            if name not in self.bars:
                self.bars[name] = self.progress.add_task(escape(name), total=None)
            self.progress.update(
                self.bars[name], description=escape(f"{name}: {stage}"), completed=done, total=total
            )
            lines.append(f"{name}: {stage}")
        if pool.stopping:
            self._say(f"saving {', '.join(working)}; Ctrl-C once more kills instead")
        elif not self.is_terminal:
            self._say("; ".join([f"{self.total - left}/{self.total} runs ended", *lines]))

    def _say(self, line: str) -> None:
        now = time.monotonic()
        if (line != self.said and (now - self.said_at > 2)) or now - self.said_at > QUIET_S:
            print(line, flush=True)
            self.said, self.said_at = line, now
