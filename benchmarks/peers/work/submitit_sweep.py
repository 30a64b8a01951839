"""A sweep as submitit's documentation writes it: an AutoExecutor, an array, a callable with checkpoint().

python submitit_sweep.py SCENE
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import submitit
from cell import count


class Count:
    """A checkpointable callable."""

    def __call__(self, scene: Path, cell: str) -> None:
        count(scene, cell)

    def checkpoint(self, scene: Path, cell: str) -> submitit.helpers.DelayedSubmission:
        """What submitit calls when SLURM warns a job: the same again, which goes on from the saved step."""
        return submitit.helpers.DelayedSubmission(self, scene, cell)


def submit(scene: Path, cells: dict[str, dict[str, Any]]) -> dict[str, submitit.Job[None]]:
    """One array of all cells that need nothing, then one job for each of the others."""
    executor = submitit.AutoExecutor(folder="submitit_logs/%j")
    executor.update_parameters(timeout_min=20, slurm_partition="low", mem_gb=1, cpus_per_task=1)
    first = [cell for cell in cells if not cells[cell].get("needs")]
    jobs = dict(
        zip(first, executor.map_array(Count(), [scene] * len(first), first), strict=True),
    )
    for cell in cells.keys() - jobs.keys():
        parents = ":".join(jobs[need].job_id for need in cells[cell]["needs"])
        dependency = {"dependency": f"afterok:{parents}", "kill-on-invalid-dep": "yes"}
        executor.update_parameters(slurm_additional_parameters=dependency)
        jobs[cell] = executor.submit(Count(), scene, cell)
    return jobs


def state_of(job: submitit.Job[None]) -> str:
    """What submitit says of a job."""
    if not job.done():
        return "running"
    return "failed" if job.exception() else "done"


def main() -> None:
    """Submit, and report until all have ended."""
    scene = Path(sys.argv[1])
    jobs = submit(scene, json.loads((scene / "cells.json").read_text()))
    states: dict[str, str] = {}
    while not set(states.values()) <= {"done", "failed"} or not states:
        states = {cell: state_of(job) for cell, job in jobs.items()}
        (scene / "states.new").write_text(json.dumps(states))
        (scene / "states.new").rename(scene / "states.json")
        time.sleep(1)
    if "failed" in states.values():
        sys.exit(1)


if __name__ == "__main__":
    main()
