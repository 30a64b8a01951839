"""What a person at the terminal sees: the plan, the runs at work, the states of all."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from latentbridge.launch.local import LocalPool
from latentbridge.launch.plan import Plan
from latentbridge.launch.status import RunStatus, progress

# in a pipe rich takes 80 columns, which folds run names
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
COLOURS = {"done": "green", "failed": "red", "lost": "red", "running": "cyan", "stopped": "yellow"}
# between lines of a log file that say nothing new has happened
QUIET_S = 30


def plan_table(plan: Plan) -> Table:
    """One row a run: its id, what it asks for, what sets it apart."""
    table = Table(
        title=f"{plan.spec.name}: {len(plan.cells)} runs of jobs/{plan.spec.job}.py", title_justify="left"
    )
    for column in ("run", "id", "nodes x ranks", "needs", "differs from the base by"):
        table.add_column(column, overflow="fold")
    for cell in plan.cells:
        asked = plan.resources[cell.name]
        differs = ", ".join(f"{key}={value}" for key, value in cell.overrides.items())
        table.add_row(
            cell.name,
            cell.id,
            f"{asked.nodes} x {asked.gpus_per_node}",
            " ".join(cell.needs),
            escape(differs),
        )
    return table


def status_table(name: str, states: list[RunStatus]) -> Table:
    """One row a run: where it stands, and why."""
    table = Table(title=name, title_justify="left")
    for column in ("run", "state", "update", "attempts", "job", "detail"):
        table.add_column(column, overflow="fold")
    for state in states:
        colour = COLOURS.get(state.phase, "")
        phase = f"[{colour}]{state.phase}[/]" if colour else state.phase
        table.add_row(
            state.name, phase, str(state.step), str(state.attempts), state.job or "", escape(state.detail)
        )
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
        working = {run.name: run for run, _ in pool.working.values()}
        left = len(working) + len(pool.pending)
        self.progress.update(self.overall, completed=self.total - left)
        for name in [name for name in self.bars if name not in working]:
            self.progress.remove_task(self.bars.pop(name))
            print(f"{name}: {pool.launch.runs[name].folder.state or 'again'}", flush=True)
        lines = []
        for name, run in working.items():
            stage, done, total = progress(run.folder)
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
