"""A project of its own for tests of launching: a job that counts, so that only launching takes time."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

REPOSITORY = Path(__file__).parents[1]

COUNT_JOB = '''
"""Counts to config.steps, saving each step; fails where it is told to."""
import time

from latentbridge import job
from latentbridge.config import Config as Settings, JobConfig
from latentbridge.rundir import read_json, write_json


class Side(Settings):
    model: str = "a"


class Config(JobConfig):
    steps: int = 3
    step_s: float = 0.0
    fail_at: int | None = None
    fail_times: int = 1
    source: Side = Side()
    target: Side = Side(model="b")


def train(config, run):
    saved = run.folder.path / "count.json"
    done = read_json(saved)["done"] if saved.exists() else 0
    while done < config.steps:
        if run.should_stop():
            run.stopped_at(done)
            return None
        if done == config.fail_at and len(run.folder.list_attempts()) <= config.fail_times:
            raise ValueError(f"told to fail at {done}")
        time.sleep(config.step_s)
        done += 1
        if run.is_main:
            write_json(saved, {"done": done})
        run.log({"step": done, "loss": 1.0 / done})
        run.progress("counting", done, config.steps)
    return {"steps": done}


if __name__ == "__main__":
    job.main(Config, train)
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with jobs/count.py, an empty configs/ and a local profile; its path has a space and a quote."""
    root = tmp_path / "my 'lab"
    for folder in ("jobs", "configs", "slurm"):
        (root / folder).mkdir(parents=True)
    (root / "latentbridge").symlink_to(REPOSITORY / "latentbridge")
    (root / "jobs" / "count.py").write_text(COUNT_JOB)
    (root / "slurm" / "local.yaml").write_text("executor: local\nmax_parallel: 2\n")
    monkeypatch.setenv("LATENTBRIDGE_ROOT", str(root))
    monkeypatch.delenv("NUM_GPUS", raising=False)
    return root


@pytest.fixture
def write_spec(project: Path):
    """Write configs/<name>.yaml from indented text; returns its path."""

    def write(text: str, name: str = "spec") -> Path:
        path = project / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"))
        return path

    return write
