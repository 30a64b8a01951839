"""Launch folders for tests that need no process: planned, and with attempts as a worker leaves them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from latentbridge.launch.plan import make_plan, write_launch
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.rundir import write_json


def planned_launch(root: Path, spec: str = "spec") -> Launch:
    """The launch folder of a spec of this project, with nothing started."""
    plan = make_plan(spec, cluster=None, settings=[], root=root)
    return write_launch(plan, root / "runs", ["launch.py", spec], None)


def begin(run: PlannedRun, nodes: str = "gpu01", ago_s: float = 0) -> Path:
    """An attempt as its worker opens it, so many seconds ago."""
    attempt = run.folder.new_attempt()
    write_json(attempt / "env.json", {"slurm": None, "nodes": nodes, "started": time.time() - ago_s})
    return attempt


def end(run: PlannedRun, cause: str, message: str = "", *, took_s: float = 60, **more: Any) -> Path:
    """An attempt that has ended a moment ago, with the marker that its cause leaves."""
    attempt = begin(run, ago_s=took_s)
    now = time.time()
    record = {"cause": cause, "message": message, "exit_code": 1, "step": 7, "gpus": 1, "again": False}
    record |= {"began": now - took_s, "ended": now, "why": "because", **more}
    write_json(attempt / "exit.json", record)
    if not record["again"]:
        run.folder.mark("DONE" if cause == "done" else "FAILED", record)
    return attempt
