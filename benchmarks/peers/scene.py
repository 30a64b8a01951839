"""One project of one system on a real cluster, and what is true of it whatever the system says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import Cluster, wait_for
from work.cell import read_record

if TYPE_CHECKING:
    from systems import System

HERE = Path(__file__).parent
# sbatch as users call it, but it notes every accepted job, and may take its caller with it before the answer
SBATCH = """#!/bin/sh
case "$*" in *--test-only*) exec {sbatch} "$@" ;; esac
answer=$({sbatch} "$@")
code=$?
[ $code -eq 0 ] && printf '%s\\n' "$answer" | grep -o '[0-9][0-9]*' | head -1 >> {scene}/accepted
[ $code -eq 0 ] && rm {scene}/kill_launcher 2>/dev/null && kill -KILL -$(cat {scene}/launcher.pid)
printf '%s\\n' "$answer"
exit $code
"""
# a site has its slurm.conf where every tool looks; here a variable names it, which some systems drop
SRUN = """#!/bin/sh
SLURM_CONF={conf} exec {srun} "$@"
"""
# a command that is silent for so long after a job was accepted has submitted what it will for now
QUIET_S = 3
SUBMIT_S = 60
LAST_STEP = 5
Cells = dict[str, dict[str, Any]]


class SceneError(Exception):
    """A scene did not come to the point at which its check begins."""


@dataclass
class Scene:
    """One system's project, from its first command to the end of its last job."""

    system: System
    cluster: Cluster
    folder: Path
    cells: Cells
    launchers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    unlocked: bool = False
    began: float = field(default_factory=time.time)
    settled: float = 0
    # why it could not be played to its end
    trouble: str = ""

    def prepare(self) -> None:
        """Make the folder with the work, the watched sbatch, and what the system wants."""
        shutil.copytree(HERE / "work", self.folder, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("record", "bin"):
            (self.folder / name).mkdir()
        (self.folder / "cells.json").write_text(json.dumps(self.cells))
        scripts = {
            "sbatch": SBATCH.format(sbatch=shutil.which("sbatch"), scene=self.folder),
            "srun": SRUN.format(srun=shutil.which("srun"), conf=self.cluster.conf),
        }
        for name, text in scripts.items():
            (self.folder / "bin" / name).write_text(text)
            (self.folder / "bin" / name).chmod(0o755)
        self.system.prepare(self)

    @property
    def environ(self) -> dict[str, str]:
        """What the system's commands run in."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        mine = {"PATH": path, "PYTHONPATH": str(self.folder), "LATENTBRIDGE_ROOT": str(self.folder)}
        # a cache of its own: nothing that another scene left is found
        return self.cluster.environ | mine | {"XDG_CACHE_HOME": str(self.folder / "cache")}

    def launch(self) -> None:
        """Type the command; returns once it has ended, or has submitted what it will for now."""
        before = known = len(self.accepted)
        launcher = self._start(self.system.command(self))
        began = last = time.monotonic()
        while launcher.poll() is None and time.monotonic() - began < SUBMIT_S:
            if len(self.accepted) > known:
                known, last = len(self.accepted), time.monotonic()
            if known > before and time.monotonic() - last > QUIET_S:
                return
            time.sleep(0.2)

    def launch_after_death(self) -> None:
        """Type the command again after its predecessor was killed, and what else the system asks for."""
        self.launch()
        if self.launchers[-1].poll() and self.system.unlock(self):
            self._start(self.system.unlock(self)).wait()
            self.unlocked = True
            self.launch()

    def launch_dying(self) -> None:
        """Type the command, which is killed as soon as SLURM has accepted a job, before it is told so."""
        (self.folder / "kill_launcher").touch()
        code = self._start(self.system.command(self)).wait()
        if code != -signal.SIGKILL:
            raise SceneError(
                f"the command was to be killed by its first sbatch, and ended with {code} before"
            )

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        log = open(self.folder / f"command_{len(self.launchers)}.log", "wb")  # noqa: SIM115 - the child's
        pid = self.folder / "launcher.pid"
        launcher = subprocess.Popen(
            ["sh", "-c", f'echo $$ > "{pid}"; exec "$@"', "sh", *command],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.launchers.append(launcher)
        return launcher

    def kill_launchers(self) -> None:
        """SIGKILL every command that is still at work, with its children."""
        for launcher in self.launchers:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
                launcher.wait()

    def settle(self, seconds: float) -> None:
        """Wait until no command is at work and no job is queued, or for so long."""
        wait_for(lambda: not self.at_work and not self.queued, seconds)
        self.settled = time.time()

    @property
    def at_work(self) -> int:
        """Commands that have not ended."""
        return sum(launcher.poll() is None for launcher in self.launchers)

    @property
    def accepted(self) -> list[str]:
        """Jobs and arrays that SLURM accepted, in order."""
        file = self.folder / "accepted"
        return file.read_text().split() if file.exists() else []

    @property
    def queued(self) -> list[str]:
        """States of its tasks that are pending or running."""
        queue = self.cluster.queue()
        return [state for job in self.accepted for state in queue.get(job, [])]

    def lines(self, what: str, cell: str = "") -> list[dict[str, Any]]:
        """What was written down about executions of one cell, or of all."""
        return [x for x in read_record(self.folder) if x["what"] == what and cell in ("", x["cell"])]

    def executions(self) -> dict[str, int]:
        """How often each cell was begun."""
        return {cell: len(self.lines("began", cell)) for cell in self.cells}

    def saved_step(self, cell: str) -> int:
        """How far a cell has counted; 0 before it began and after it ended."""
        try:
            return int((self.folder / "record" / f"{cell}.step").read_text())
        except FileNotFoundError:
            return 0

    def shut_gate(self) -> None:
        """From now on cells wait at their last step."""
        (self.folder / "shut").touch()

    def open_gate(self) -> None:
        """Let them end."""
        (self.folder / "shut").unlink(missing_ok=True)

    def clear(self) -> None:
        """Leave nothing at work."""
        self.open_gate()
        self.kill_launchers()
        if left := [job for job in dict.fromkeys(self.accepted) if job in self.cluster.queue()]:
            self.cluster.run("scancel", *left)
