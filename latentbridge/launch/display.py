"""What a person at the terminal sees: the plan, the runs at work, the states of all."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from latentbridge.launch.local import LocalPool
from latentbridge.launch.plan import Plan
from latentbridge.launch.record import PlannedRun
from latentbridge.launch.status import RunStatus
from latentbridge.rundir import read_json

console = Console(soft_wrap=True)
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
            cell.name, cell.id, f"{asked.nodes} x {asked.gpus_per_node}", " ".join(cell.needs), differs
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
        table.add_row(state.name, phase, str(state.step), str(state.attempts), state.job or "", state.detail)
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
        lines = []
        for name, run in working.items():
            stage, done, total = read_progress(run)
            if name not in self.bars:
                self.bars[name] = self.progress.add_task(name, total=None)
            self.progress.update(self.bars[name], description=f"{name}: {stage}", completed=done, total=total)
            lines.append(f"{name}: {stage}")
        if not self.is_terminal:
            self._say(f"{self.total - left}/{self.total} runs ended; " + "; ".join(lines))

    def _say(self, line: str) -> None:
        now = time.monotonic()
        if (line != self.said and (now - self.said_at > 2)) or now - self.said_at > QUIET_S:
            print(line, flush=True)
            self.said, self.said_at = line, now


def read_progress(run: PlannedRun) -> tuple[str, int, int | None]:
    """Stage, done and total of a run's current attempt."""
    attempts = run.folder.list_attempts()
    file = attempts[-1] / "progress.json" if attempts else None
    if file is None or not file.exists():
        return "starting", 0, None
    record = read_json(file)
    return str(record["stage"]), int(record["done"]), int(record["total"])
