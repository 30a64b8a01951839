"""What pretend tasks leave in their run folders: a worker's files, through the product's own rules."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from simulator.cluster import How, Settings, Task

from latentbridge.launch.node.attempt import Ending, close_lost, conclude
from latentbridge.launch.node.causes import Cause
from latentbridge.launch.record import Launch, PlannedRun

STEPS = 1000
CHECKPOINT_S = 900
# how long a job takes that is no worker
OTHER_S = 60
# who ends so has no time to write anything
SUDDEN: tuple[How, ...] = ("node_fail", "vanished")
_WORKER = re.compile(r"^.*-m latentbridge\.launch\.node\.worker .*$", re.MULTILINE)


@dataclass
class Life:
    """One run as it truly is, whatever the launcher thinks of it."""

    run: PlannedRun
    length_s: float
    is_broken: bool
    saved_s: float = 0
    attempts: int = 0
    at_work: set[int] = field(default_factory=set)  # numbers of the tasks that execute it now
    # the marker it ended with
    ended: str | None = None

    @property
    def step(self) -> int:
        return min(STEPS, int(STEPS * self.saved_s / self.length_s))


class PretendWorkers:
    """The workers of all tasks; they count what must never happen."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lives: dict[str, Life] = {}
        # doubles: two tasks at work on one run; needless: a task began though its run was done
        self.counts: Counter[str] = Counter(doubles=0, needless=0, attempts=0)
        self._launches: dict[str, Launch] = {}
        self._scripts: dict[int, tuple[Launch, tuple[str, ...]] | None] = {}

    def run_of(self, task: Task) -> tuple[Launch, PlannedRun] | None:
        """The run that a task is for, found as a worker finds it: by token, in the ledger."""
        if task.job.number not in self._scripts:
            self._scripts[task.job.number] = self._read(task.job.script)
        found = self._scripts[task.job.number]
        return (found[0], found[0].runs[found[1][task.index]]) if found else None

    def _read(self, script: str) -> tuple[Launch, tuple[str, ...]] | None:
        line = _WORKER.search(script)
        if line is None:
            return None
        words = shlex.split(line[0])
        path = words[words.index("latentbridge.launch.node.worker") + 1]
        launch = self._launches.setdefault(path, Launch(Path(path)))
        return launch, launch.ledger.read(words[words.index("--token") + 1].rstrip(";")).runs

    def start(self, task: Task, now: float) -> tuple[float, How]:
        """Open an attempt, and decide how it will go."""
        found = self.run_of(task)
        if found is None:
            return OTHER_S, "done"
        launch, run = found
        life = self._life(run)
        self.counts["doubles"] += bool(life.at_work)
        self.counts["needless"] += run.folder.is_done
        if run.folder.is_done or not close_lost(launch, run, "node_fail", "its node died"):
            return 1, "refused"
        self.counts["attempts"] += 1
        life.at_work.add(task.number)
        life.attempts += 1
        life.ended = None
        run.folder.clear_marker()
        attempt = run.folder.new_attempt()
        opening = {
            "slurm": f"{task.number}.{task.restarts}",
            "host": task.nodes[0],
            "nodes": ",".join(task.nodes),
        }
        progress = {"stage": "counting", "done": life.step, "total": STEPS, "at": now}
        (attempt / "env.json").write_text(json.dumps(opening | {"pid": 1, "started": now}))
        run.folder.progress_file(attempt).write_text(json.dumps(progress))
        for path in (*attempt.iterdir(), attempt):
            os.utime(path, (now, now))
        return self._fate(life)

    def end(self, task: Task, how: How, now: float) -> bool:
        """Write what a worker in this situation can; True if it asks to be started again."""
        found = self.run_of(task)
        life = self._life(found[1]) if found else None
        if found is None or life is None or task.number not in life.at_work:
            return False
        launch, run = found
        life.at_work.remove(task.number)
        worked_s = now - (task.began or now)
        if how in SUDDEN:
            life.saved_s += worked_s // CHECKPOINT_S * CHECKPOINT_S
            return False
        life.saved_s += worked_s
        with open(run.folder.train_log, "a") as log:
            log.write(json.dumps({"step": life.step, "loss": 1.0}) + "\n")
        if how == "done":
            run.folder.mark("DONE", {"steps": STEPS})
        cause = next(cause for cause in get_args(Cause) if cause == how)
        attempt = run.folder.list_attempts()[-1]
        again = conclude(launch, run, attempt, Ending(cause=cause, message=f"pretended: {how}", ended=now))
        state = run.folder.state
        life.ended = state.lower() if state else None
        return again

    def _life(self, run: PlannedRun) -> Life:
        key = str(run.folder.path)
        if key not in self.lives:
            chance = random.Random(f"{self.settings.seed} {run.name}")
            length_s = self.settings.median_s * chance.lognormvariate(0, 0.5)
            self.lives[key] = Life(run, length_s, chance.random() < self.settings.broken_rate)
        return self.lives[key]

    def _fate(self, life: Life) -> tuple[float, How]:
        """When and how an attempt ends: the same for the same seed, run and number of the attempt."""
        settings = self.settings
        chance = random.Random(f"{settings.seed} {life.run.name} {life.attempts}")
        left_s = max(1.0, life.length_s - life.saved_s)
        if life.is_broken:
            return left_s * chance.random(), "error"
        hows: list[How] = ["error", "preempted", "node_fail", "vanished", "done"]
        rates = [
            settings.error_rate,
            settings.preemption_rate,
            settings.node_death_rate,
            settings.vanish_rate,
        ]
        (how,) = chance.choices(hows, [*rates, 1 - sum(rates)])
        return (left_s if how == "done" else left_s * chance.random()), how
