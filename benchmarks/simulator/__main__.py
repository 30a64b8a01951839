"""The pretend controller: python -m simulator FOLDER SETTINGS   (JSON; see cluster.Settings)

It puts sbatch, squeue and the rest into FOLDER, to be put first on PATH, and answers them on the socket
FOLDER/controller. Whoever steers it sends `control`, the seconds to let pass, and whether to tell of
all runs.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
from collections import Counter
from pathlib import Path

from simulator.cluster import Cluster, Settings
from simulator.commands import Answer, answer
from simulator.workers import PretendWorkers

# medians of one call each on a real 22.05 with other work on its two cores
LATENCY_S = {
    "sbatch": 0.015,
    "squeue": 0.020,
    "scontrol": 0.016,
    "scancel": 0.016,
    "sinfo": 0.009,
    "sacct": 0.107,
    "sacctmgr": 0.372,
}
# of the same cluster with 500 and with 2,000 jobs in the queue: 10 and 20 ms
SQUEUE_S_PER_TASK = 1e-5
TIMED_OUT = "Socket timed out on send/recv operation\n"


class Server:
    """One cluster behind one socket; requests are served one after another, as slurmctld's lock does."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.workers = PretendWorkers(settings)
        self.cluster = Cluster(settings, self.workers)
        self.calls: Counter[str] = Counter()
        self.lost = 0
        self._chance = random.Random(settings.seed)
        _install(folder)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / "controller"))
        self._socket.listen(64)

    def serve(self) -> None:
        """Answer for ever."""
        while True:
            link, _ = self._socket.accept()
            with link:
                words = _read_all(link).split("\0")
                if words[0] == "control":
                    self.cluster.advance(float(words[1]))
                    told = self.counts() | ({"runs": self.runs()} if words[2] else {})
                    link.sendall(json.dumps(told).encode())
                else:
                    wait_s, said = self._command(words[0], words[1], words[2], words[3:])
                    link.sendall("\0".join((str(said.code), str(wait_s), said.out, said.err)).encode())

    def _command(self, tool: str, folder: str, bitstr_len: str, argv: list[str]) -> tuple[float, Answer]:
        self.calls[tool] += 1
        said = answer(self.cluster, tool, folder, bitstr_len, argv)
        wait_s = LATENCY_S[tool]
        if tool == "squeue":
            wait_s += SQUEUE_S_PER_TASK * len(self.cluster.known)
        if self._chance.random() < self.cluster.settings.lost_answer_rate:
            self.lost += 1
            said = Answer("", 1, f"{tool}: error: {TIMED_OUT}")
        return wait_s, said

    def counts(self) -> dict[str, object]:
        """The simulated time, what was asked so far, what went wrong, and every job's token."""
        return {
            "now": self.cluster.now,
            "calls": self.calls,
            "lost_answers": self.lost,
            "queued": len(self.cluster.known),
            "jobs": {job.number: job.options.get("comment", "") for job in self.cluster.jobs.values()},
            **self.workers.counts,
        }

    def runs(self) -> dict[str, dict[str, object]]:
        """The truth by run folder: states of its live tasks, the marker it ended with, its attempts."""
        live: dict[str, list[str]] = {}
        for task in self.cluster.known.values():
            if task.is_live and (found := self.workers.run_of(task)):
                live.setdefault(str(found[1].folder.path), []).append(task.state)
        lives = self.workers.lives
        return {
            path: {
                "tasks": live.get(path, []),
                "ended": lives[path].ended if path in lives else None,
                "attempts": lives[path].attempts if path in lives else 0,
            }
            for path in lives.keys() | live.keys()
        }


def _install(folder: Path) -> None:
    """The commands: one script under seven names."""
    folder.mkdir(parents=True, exist_ok=True)
    client = (Path(__file__).parent / "client.py").read_text()
    for tool in LATENCY_S:
        # without site and environment python starts in a third of the time
        (folder / tool).write_text(f"#!{sys.executable} -ISE\n{client}")
        (folder / tool).chmod(0o755)


def _read_all(link: socket.socket) -> str:
    parts = []
    while part := link.recv(1 << 16):
        parts.append(part)
    return b"".join(parts).decode()


if __name__ == "__main__":
    # pretend nodes lose no power: 10,000 cells would spend a minute in fsync
    os.fsync = lambda fd: None
    Server(Path(sys.argv[1]), Settings(**json.loads(sys.argv[2]))).serve()
