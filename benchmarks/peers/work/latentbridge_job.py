"""The same work as a job of latentbridge, under torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cell import count

from latentbridge import job
from latentbridge.config import JobConfig


class Config(JobConfig):
    """Which cell this is, and where its work is written down."""

    scene: str
    cell: str


def train(config: Config, run: job.Run) -> dict[str, Any] | None:
    """Execute one cell, or the rest of it."""
    done, finished = count(Path(config.scene), config.cell, run.should_stop)
    run.log({"step": done, "loss": 0.0})
    if not finished:
        run.stopped_at(done)
        return None
    return {"steps": done}


if __name__ == "__main__":
    job.main(Config, train)
