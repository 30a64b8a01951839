"""What 10,000 cells on 1,000 nodes cost the login node: python benchmarks/scale.py   (no GPU, 4 minutes)

The launcher and the monitor are the real ones; SLURM is the stand-in of simulator/, with the latencies of a
real 22.05. It knows what is true, so every state that the monitor reports is compared with it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from simulator.cluster import Settings
from simulator.control import PretendSlurm

from latentbridge.errors import SchedulerError
from latentbridge.launch.advance import advance
from latentbridge.launch.record import Launch
from latentbridge.launch.status import Monitor, RunStatus

ROOT = Path(__file__).parents[1]
STEP_S = 900
ENDED = ("done", "failed")
STARTABLE = ("planned", "stopped", "lost")
# what may be said of a run, by what is true of it
ALLOWED = {
    "PENDING": ("pending",),
    "RUNNING": ("running",),
    "done": ("done",),
    "failed": ("failed",),
    "vanished": ("lost", "stopped"),
    "planned": ("planned",),
}
NEVER_STARTED: dict[str, Any] = {"tasks": [], "ended": None, "attempts": 0}
MIB = 1024
# launch.py's exit code where SLURM does not answer
SILENT = 75
# no launch of these sizes takes so many steps: something stands still then
MOST_STEPS = 2000
JOB = """
from latentbridge.config import JobConfig


class Config(JobConfig):
    steps: int = 1000
"""


@dataclass(frozen=True, kw_only=True)
class Poll:
    """One look at all cells."""

    wall_s: float
    cpu_s: float  # of this process alone
    changed: int
    queued: int  # tasks that squeue knows
    calls: Counter[str]


@dataclass
class Report:
    """Everything measured at one size."""

    cells: int
    plan_s: float = 0
    submit_s: float = 0
    launcher_mib: float = 0
    submit_calls: Counter[str] = field(default_factory=Counter)
    polls: list[Poll] = field(default_factory=list)
    advances: list[Poll] = field(default_factory=list)
    monitor_mib: float = 0
    simulated_h: float = 0
    phases: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Any] = field(default_factory=dict)
    wrong: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    orphans: int = 0


def make_project(root: Path, cells: int, nodes: int) -> None:
    """A project whose one spec has so many cells of a job that is never executed."""
    for folder in ("jobs", "configs", "slurm"):
        (root / folder).mkdir(parents=True)
    (root / "latentbridge").symlink_to(ROOT / "latentbridge")
    (root / "jobs" / "count.py").write_text(JOB)
    profile = f"executor: slurm\nmax_parallel: {nodes}\nresources: {{gpus_per_node: 4, timeout_min: 1440}}\n"
    (root / "slurm" / "pretend.yaml").write_text(profile)
    grid = f"grid: {{steps: {list(range(1, 101))}, seed: {list(range(cells // 100))}}}\n"
    (root / "configs" / "wide.yaml").write_text(f"name: wide\njob: count\ncluster: pretend\n{grid}")


def launch(root: Path, *words: str) -> tuple[float, float]:
    """Run launch.py, again where SLURM was silent; returns its seconds in all and its peak memory in MiB."""
    began = time.perf_counter()
    command = [sys.executable, str(ROOT / "launch.py"), "wide", *words]
    while True:
        with open(root / "launch.log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode == 0:
            return time.perf_counter() - began, usage.ru_maxrss / MIB
        if process.returncode != SILENT:
            raise SystemExit((root / "launch.log").read_text())


def measure(cells: int, settings: Settings) -> Report:
    """Launch so many cells and watch them until all have ended."""
    report = Report(cells)
    with tempfile.TemporaryDirectory() as folder, PretendSlurm(settings) as slurm:
        root = Path(folder)
        make_project(root, cells, settings.nodes)
        with mock.patch.dict(os.environ, slurm.environ() | {"LATENTBRIDGE_ROOT": str(root)}):
            report.plan_s, _ = launch(root, "--no-submit")
            report.submit_s, report.launcher_mib = launch(root)
            (path,) = (root / "runs").glob("wide_*")
            Watch(path, slurm, report).until_the_end()
    report.monitor_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    return report


class Watch:
    """Does what `watch` does, with the clock of the stand-in, and compares what it sees with the truth."""

    def __init__(self, path: Path, slurm: PretendSlurm, report: Report) -> None:
        self.launch, self.slurm, self.report = Launch(path), slurm, report
        self.monitor = Monitor(self.launch)
        self.counts = slurm.step()
        self.states: list[RunStatus] = []
        report.submit_calls = Counter(self.counts["calls"])

    def until_the_end(self) -> None:
        """Poll twice a step, so that nothing has changed at the second; then submit what may start."""
        began = self.counts["now"]
        # whatever the product compares with the time was stamped by the stand-in
        with mock.patch("time.time", lambda: self.counts["now"]):
            for _ in range(MOST_STEPS):
                self.counts = self.slurm.step(STEP_S)
                self._look(self.report.polls, self.monitor.poll)
                self._look(self.report.polls, self.monitor.poll)
                if all(state.phase in ENDED for state in self.states):
                    break
                if any(state.phase in STARTABLE for state in self.states):
                    with suppress(SchedulerError):  # its answer was lost: the next step makes up for it
                        self._look(self.report.advances, lambda: advance(self.launch).states)
        self.report.counts, self.report.simulated_h = self.counts, (self.counts["now"] - began) / 3600
        self.report.phases = Counter(state.phase for state in self.states)
        known = {submission.job_id for submission in self.launch.ledger}
        self.report.orphans = len(self.counts["jobs"].keys() - known)

    def _look(self, kept: list[Poll], look: Callable[[], list[RunStatus]]) -> None:
        calls, wall, cpu = Counter(self.counts["calls"]), time.perf_counter(), time.process_time()
        states = look()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.counts = self.slurm.step(runs=True)
        self.judge(states, self.counts.pop("runs"))
        changed = (
            sum(a != b for a, b in zip(states, self.states, strict=True)) if self.states else len(states)
        )
        called = Counter(self.counts["calls"]) - calls
        kept.append(Poll(wall_s=wall, cpu_s=cpu, changed=changed, queued=self.counts["queued"], calls=called))
        self.states = states

    def judge(self, states: list[RunStatus], runs: dict[str, Any]) -> None:
        """Count what is said of a run and is not true of it; to know nothing is no error."""
        for state in states:
            true = true_state(runs.get(str(self.launch.path / state.name), NEVER_STARTED))
            if state.phase == "unknown":
                self.report.unknown += 1
            elif state.phase not in ALLOWED[true]:
                self.report.wrong[f"{true} called {state.phase}"] += 1


def true_state(run: dict[str, Any]) -> str:
    """A run as the stand-in knows it: what its task does, else how it ended, else whether it ever began."""
    if run["tasks"]:
        return str(run["tasks"][0])
    return str(run["ended"] or ("vanished" if run["attempts"] else "planned"))


def table(reports: list[Report]) -> str:
    """Markdown: one column a size."""
    rows: list[tuple[str, Callable[[Report], str]]] = [
        ("plan and write the run folders", lambda r: f"{r.plan_s:.1f} s"),
        ("find the launch again and submit", lambda r: f"{r.submit_s:.1f} s"),
        ("RPCs of both", lambda r: _counts(r.submit_calls)),
        ("peak memory of the launcher", lambda r: f"{r.launcher_mib:.0f} MiB"),
        ("first poll", lambda r: _times(r.polls[:1])),
        ("poll, nothing changed", lambda r: _times(p for p in r.polls if not p.changed)),
        ("poll, 1 to 50 cells changed", lambda r: _times(p for p in r.polls if 1 <= p.changed <= 50)),
        ("poll, 51 to 250 changed", lambda r: _times(p for p in r.polls if 51 <= p.changed <= 250)),
        ("poll, more changed", lambda r: _times(p for p in r.polls[1:] if p.changed > 250)),
        ("RPCs a poll, most", lambda r: _most(r.polls)),
        ("`advance`, nothing to do", lambda r: _times(p for p in r.advances if "sbatch" not in p.calls)),
        ("`advance`, with submissions", lambda r: _times(p for p in r.advances if "sbatch" in p.calls)),
        (
            "RPCs of an `advance`, most",
            lambda r: _most(r.advances),
        ),
        ("peak memory of the monitor", lambda r: f"{r.monitor_mib:.0f} MiB"),
        ("simulated time, polls", lambda r: f"{r.simulated_h:.0f} h, {len(r.polls)}"),
        ("most tasks in the queue", lambda r: str(max(p.queued for p in r.polls))),
        ("attempts", lambda r: str(r.counts["attempts"])),
        ("RPCs whose answer was lost", lambda r: str(r.counts["lost_answers"])),
        ("ended as", lambda r: _counts(r.phases)),
        ("two tasks at work on one cell", lambda r: str(r.counts["doubles"])),
        ("tasks begun for a cell that was done", lambda r: str(r.counts["needless"])),
        ("jobs that the ledger does not know", lambda r: str(r.orphans)),
        ("states reported that were not true", lambda r: _counts(r.wrong)),
        ("states reported as unknown", lambda r: str(r.unknown)),
    ]
    lines = [["", *(f"{r.cells:,} cells" for r in reports)], ["---"] * (1 + len(reports))]
    lines += [[name, *(show(r) for r in reports)] for name, show in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _times(polls: Iterable[Poll]) -> str:
    found = list(polls)
    if not found:
        return "none"
    wall, cpu = (
        1e3 * statistics.median(times) for times in zip(*((p.wall_s, p.cpu_s) for p in found), strict=True)
    )
    return f"{wall:.0f} ms, CPU {cpu:.0f} ms (median of {len(found)})"


def _most(polls: list[Poll]) -> str:
    return _counts(max((poll.calls for poll in polls), key=Counter.total, default=Counter()))


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10_000], help="multiples of 100")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lost-answers", type=float, default=0.01, help="share of RPCs")
    args = parser.parse_args()
    settings = Settings(nodes=args.nodes, seed=args.seed, lost_answer_rate=args.lost_answers)
    # a process for each: its peak memory is that of one size
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn, max_tasks_per_child=1) as pool:
        reports = list(pool.map(measure, args.cells, [settings] * len(args.cells)))
    print(table(reports))


if __name__ == "__main__":
    main()
