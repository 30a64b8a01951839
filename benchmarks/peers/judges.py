"""When a check is passed: what was executed, left behind and said, whatever the system thinks of itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from scene import LAST_STEP, Scene

# in a scene: of the harness, or a copy
OURS = ("record", "bin", "cache", "preserved_data")
EXIT_CODE_7 = re.compile(r"exit[ _-]?(code|status)?\W{0,6}(of |is |with )?7\b", re.I)


@dataclass(frozen=True)
class Outcome:
    """What one system did in one scene."""

    passed: bool
    seen: str
    seconds: float | None = None


def judge_once(scene: Scene) -> Outcome:
    """Every cell began once and ended once."""
    times = scene.executions()
    seen = [f"cells executed {' and '.join(str(n) for n in times.values())} times"]
    seen += [f"{len(scene.accepted)} calls of sbatch"]
    seen += ["unlocked by hand"] if scene.unlocked else []
    is_settled = not scene.at_work and not scene.queued
    seen += [] if is_settled else [f"{scene.at_work} commands and {len(scene.queued)} tasks never ended"]
    ended = (len(scene.lines("ended", cell)) for cell in scene.cells)
    passed = all(n == 1 for n in (*times.values(), *ended)) and is_settled
    return Outcome(passed, ", ".join(seen))


def judge_adopted(scene: Scene) -> Outcome:
    """Every cell once, and the job that was accepted first did what no other did."""
    outcome = judge_once(scene)
    first = scene.accepted[0]
    its_cells = {line["cell"] for line in scene.lines("began") if line["job"] == first}
    others = {line["cell"] for line in scene.lines("began") if line["job"] != first}
    if not its_cells:
        return Outcome(False, f"{outcome.seen}, the accepted job died without a word")
    if its_cells & others:
        return Outcome(False, f"{outcome.seen}, the accepted job ran beside its double")
    return outcome


def judge_notice(scene: Scene) -> Outcome:
    """The killed cell is called failed, and the other one done."""
    states = scene.system.states(scene)
    said = ", ".join(f"{cell} called {states.get(cell, 'nothing')}" for cell in scene.cells)
    return Outcome(states == {"good": "done", "killed": "failed"}, said, scene.settled - scene.began)


def judge_history(scene: Scene) -> Outcome:
    """What the first of two attempts printed, and the code it left with, can still be read."""
    log = _file_with(scene, re.compile("a: this is execution 1"))
    code = _file_with(scene, EXIT_CODE_7)
    kept = scene.cluster.run("sacct", "-D", "-n", "-P", "-o", "ExitCode", "-j", ",".join(scene.accepted))
    where = f"in {code}" if code else "in sacct" if "7:0" in kept else "lost"
    seen = f"{scene.executions()['a']} executions, log {f'in {log}' if log else 'lost'}, exit code {where}"
    passed = len(scene.lines("ended", "a")) == 1 and log is not None and where != "lost"
    return Outcome(passed, seen, scene.settled - scene.began)


def _file_with(scene: Scene, pattern: re.Pattern[str]) -> str | None:
    """A file of the system's in which this can be read, by its path with stamps and job ids left out."""
    for path in sorted(scene.folder.rglob("*")):
        name = path.relative_to(scene.folder)
        is_ours = name.parts[0] in OURS or name.parts[0].startswith("command_") or path.suffix == ".py"
        if path.is_file() and not is_ours and pattern.search(path.read_text(errors="replace")):
            return re.sub(r"\d{5,}(_\d+)*", "N", f"`{name}`")
    return None


def judge_failed_parent(scene: Scene) -> Outcome:
    """eval was never executed, and nothing is left waiting for it."""
    times, left = scene.executions(), scene.queued
    seen = f"eval executed {times['eval']} times, left in the queue: {', '.join(left) or 'nothing'}"
    seen += f", {scene.at_work} commands still at work" if scene.at_work else ""
    passed = times["train"] > 0 and not times["eval"] and not left and not scene.at_work
    return Outcome(passed, seen, scene.settled - scene.began)


def judge_late_success(scene: Scene) -> Outcome:
    """eval was executed once, after the train that succeeded."""
    train, evaluated = scene.lines("ended", "train"), scene.lines("began", "eval")
    in_order = bool(train and evaluated) and evaluated[0]["at"] > train[0]["at"]
    times = scene.executions()
    seen = f"train executed {times['train']} times, eval {times['eval']}{' after it' if in_order else ''}"
    passed = in_order and times == {"train": 2, "eval": 1} and len(scene.lines("ended", "eval")) == 1
    return Outcome(passed, seen, scene.settled - scene.began)


def judge_resume(scene: Scene) -> Outcome:
    """The second execution began where the first was cut off, ended, and the system calls it done."""
    steps = [line["step"] for line in scene.lines("began", "a")]
    states = scene.system.states(scene)
    seen = f"began at steps {', '.join(map(str, steps))}; called {states.get('a', 'nothing')}"
    passed = steps == [0, LAST_STEP] and len(scene.lines("ended", "a")) == 1 and states == {"a": "done"}
    return Outcome(passed, seen, scene.settled - scene.began)
