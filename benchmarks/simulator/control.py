"""Starts and steers a pretend cluster from a benchmark or a test."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from simulator.cluster import Settings

START_S = 30


class PretendSlurm:
    """A pretend cluster for as long as the `with` block lasts."""

    def __init__(self, settings: Settings) -> None:
        # short: the path of a socket may have 107 characters
        self._temporary = tempfile.TemporaryDirectory(prefix="slurm")
        self.folder = Path(self._temporary.name)
        here = Path(__file__).parents[1]
        environ = os.environ | {"PYTHONPATH": f"{here}:{here.parent}"}
        command = [sys.executable, "-m", "simulator", str(self.folder), json.dumps(asdict(settings))]
        self._server = subprocess.Popen(command, env=environ)

    def __enter__(self) -> PretendSlurm:
        deadline = time.monotonic() + START_S
        while not (self.folder / "controller").exists():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the pretend controller did not start")
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.kill()
        self._server.wait()
        self._temporary.cleanup()

    def environ(self) -> dict[str, str]:
        """This process's environment with the pretend commands first on PATH."""
        return os.environ | {"PATH": f"{self.folder}:{os.environ['PATH']}"}

    def step(self, seconds: float = 0, runs: bool = False) -> dict[str, Any]:
        """Let simulated time pass; returns Server.counts, and under "runs" Server.runs if asked."""
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(self.folder / "controller"))
            link.sendall(f"control\0{seconds}\0{'runs' if runs else ''}".encode())
            link.shutdown(socket.SHUT_WR)
            with link.makefile() as answer:
                return dict(json.load(answer))
