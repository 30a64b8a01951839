"""What one refresh of `latentbridge watch` costs: python benchmarks/watch.py   (a laptop, no SLURM, 60 s)

CPU seconds of this process, median of ten refreshes: asking for the states of all runs, and laying out a
screen of 50 lines. Every run has two attempts behind it; those at work get on between any two refreshes, the
others are done. squeue is a stand-in that prints what SLURM would.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console

from latentbridge.launch.plan import make_plan, write_launch
from latentbridge.launch.record import Launch
from latentbridge.launch.status import Monitor
from latentbridge.launch.view.display import status_table

ROOT = Path(__file__).parents[1]
REFRESHES = 10
HEIGHT = 50
SIZES = [(200, 200), (200, 20), (2000, 64), (10000, 64)]  # runs, of them at work
JOB = '''"""Nothing."""
from latentbridge import job
from latentbridge.config import JobConfig as Config
if __name__ == "__main__":
    job.main(Config, lambda config, run: {})
'''


def make_launch(folder: Path, runs: int, at_work: int) -> Launch:
    """A launch of so many runs in one array: the first ones at work, the others done."""
    (folder / "latentbridge").symlink_to(ROOT / "latentbridge")
    seeds = ", ".join(map(str, range(runs)))
    for name, text in {
        "jobs/nothing.py": JOB,
        "slurm/big.yaml": "executor: slurm\n",
        "configs/wide.yaml": f"name: wide\njob: nothing\ncluster: big\nseeds: [{seeds}]\n",
    }.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(text)
    plan = make_plan("wide", cluster=None, settings=[], root=folder)
    launch = write_launch(plan, folder / "runs", ["launch.py", "wide"], None)
    for number, run in enumerate(launch.runs.values()):
        causes = ["preempted", "error", "" if number < at_work else "done"]
        for attempt, cause in enumerate(causes, start=1):
            write_attempt(run.folder.attempts / str(attempt), cause)
        run.folder.train_log.write_text('{"step": 1234, "loss": 2.5}\n' * 100)
        if number >= at_work:
            (run.folder.path / "DONE").write_text("{}")
    write_squeue(folder, launch, at_work)
    return launch


def write_attempt(attempt: Path, cause: str) -> None:
    """An attempt of a quarter of an hour; without a cause it goes on."""
    attempt.mkdir(parents=True)
    now = time.time()
    (attempt / "env.json").write_text(json.dumps({"slurm": "7.0", "nodes": "gpu01", "started": now - 900}))
    write_progress(attempt, 0)
    if cause:
        record = {"cause": cause, "message": "of some length " * 5, "step": 9, "gpus": 4}
        (attempt / "exit.json").write_text(json.dumps(record | {"began": now - 900, "ended": now}))


def write_progress(attempt: Path, done: int) -> None:
    """What rank 0 says about how far it is, replaced in one step as it does."""
    draft = attempt / "draft"
    draft.write_text(json.dumps({"stage": "training", "done": done, "total": 99}))
    draft.rename(attempt / "progress.json")


def write_squeue(folder: Path, launch: Launch, at_work: int) -> None:
    """The stand-in: every task at work on a line of its own."""
    submission = launch.ledger.accepted(launch.ledger.intend(launch.run_names), "7")
    queue, squeue = folder / "queue", folder / "bin" / "squeue"
    lines = (f"7|{i}|R|None|gpu{i:04}|latentbridge:{submission.token}\n" for i in range(at_work))
    queue.write_text("".join(lines))
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\nexec cat '{queue}'\n")
    squeue.chmod(0o755)


def measure(runs: int, at_work: int) -> str:
    """One line of the table."""
    polls, screens = [], []
    console = Console(file=io.StringIO(), width=160, height=HEIGHT, force_terminal=True)
    tools = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as folder:
        launch = make_launch(Path(folder), runs, at_work)
        os.environ["PATH"] = f"{folder}/bin:{tools}"
        monitor = Monitor(launch)
        for refresh in range(1 + REFRESHES):
            for run in list(launch.runs.values())[:at_work]:
                write_progress(run.folder.attempts / "3", refresh)
            started = time.process_time()
            states = monitor.poll()
            polled = time.process_time()
            console.print(status_table(launch, states, HEIGHT))
            polls.append(polled - started)
            screens.append(time.process_time() - polled)
    os.environ["PATH"] = tools
    first = polls.pop(0) + screens.pop(0)
    poll, screen = statistics.median(polls), statistics.median(screens)
    return f"{runs:6} {at_work:8} {first:8.3f} {poll:8.3f} {screen:9.3f} {poll + screen:10.3f}"


def main() -> None:
    """Print the table."""
    print(f"{'runs':>6} {'at work':>8} {'first s':>8} {'poll s':>8} {'screen s':>9} {'refresh s':>10}")
    for size in SIZES:
        print(measure(*size), flush=True)


if __name__ == "__main__":
    main()
