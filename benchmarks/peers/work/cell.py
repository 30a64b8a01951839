"""The work that every system is given: count, saving each step, and write down who counted what.

python cell.py SCENE CELL     what the cell does is told by SCENE/cells.json; needs the standard library only
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# nobody waits so long for the gate
PATIENCE_S = 240


def count(scene: Path, cell: str, should_stop: Callable[[], bool] = lambda: False) -> tuple[int, bool]:
    """Go on from the saved step; returns the step reached, and whether that was the last one.

    Leaves the process with 7 as often as cells.json says, and waits at the last step while the gate is shut.
    """
    wanted = json.loads((scene / "cells.json").read_text())[cell]
    saved = scene / "record" / f"{cell}.step"
    done = int(saved.read_text()) if saved.exists() else 0
    execution = 1 + sum(line["cell"] == cell and line["what"] == "began" for line in read_record(scene))
    write_down(scene, cell, "began", done)
    print(f"{cell}: this is execution {execution}", flush=True)
    if execution <= wanted.get("fails", 0):
        write_down(scene, cell, "failed", done)
        sys.exit(7)
    while done < wanted["steps"]:
        if should_stop():
            return done, False
        time.sleep(0.2)
        done += 1
        # a rename, for the process may be killed at any moment
        saved.with_suffix(".new").write_text(str(done))
        saved.with_suffix(".new").rename(saved)
    deadline = time.monotonic() + PATIENCE_S
    while (scene / "shut").exists() and time.monotonic() < deadline:
        if should_stop():
            return done, False
        time.sleep(0.2)
    # whoever executes it again starts from nothing
    saved.unlink(missing_ok=True)
    write_down(scene, cell, "ended", done)
    return done, True


def write_down(scene: Path, cell: str, what: str, step: int) -> None:
    """Add a line about one execution, with the SLURM job that it is in."""
    job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    line: dict[str, Any] = {
        "cell": cell,
        "what": what,
        "step": step,
        "at": time.time(),
        "job": job or os.environ["SLURM_JOB_ID"],
        "task": task,
        "raw": os.environ["SLURM_JOB_ID"],
    }
    with open(scene / "record" / "executions.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def read_record(scene: Path) -> list[dict[str, Any]]:
    """Every line about executions, oldest first."""
    file = scene / "record" / "executions.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


if __name__ == "__main__":
    count(Path(sys.argv[1]), sys.argv[2])
