"""A test cluster, and waiting for what happens on it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Cluster:
    """A test cluster in a folder of its own; settings: SLURM_TEST_* variables."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.conf = folder / "etc" / "slurm.conf"
        self.has_accounting = settings.get("SLURM_TEST_ACCT") != "0"
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.environ |= settings | {"SLURM_TEST_DIR": str(folder), "SLURM_CONF": str(self.conf)}

    def __enter__(self) -> Cluster:
        self.run(str(ROOT / "slurm" / "testcluster"), "up")
        return self

    def __exit__(self, *error: object) -> None:
        self.run(str(ROOT / "slurm" / "testcluster"), "down", "--purge")

    def run(self, *argv: str) -> str:
        """The output of a command on this cluster."""
        done = subprocess.run(argv, env=self.environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def queue(self) -> dict[str, list[str]]:
        """States of the pending and running tasks, by job id without the task."""
        found: dict[str, list[str]] = {}
        for line in self.run("squeue", "--noheader", "--array", "--format=%F %T %r").splitlines():
            job, state, reason = line.split(maxsplit=2)
            found.setdefault(job, []).append(f"{state} ({reason})")
        return found

    def take_all_nodes(self, seconds: int) -> str:
        """Submit a job that preempts everything in `low`; returns its id."""
        wish = ["--parsable", "--partition=high", "--exclusive", "--nodes=3", "--output=/dev/null"]
        return self.run("sbatch", *wish, f"--wrap=sleep {seconds}").strip()

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Within this no job starts."""
        job = self.take_all_nodes(600)
        wait_for(lambda: self.queue()[job][0].startswith("RUNNING"), 60)
        try:
            yield
        finally:
            self.run("scancel", job)


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.7)
    return True
