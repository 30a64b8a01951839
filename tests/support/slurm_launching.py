"""What tests of launches on real SLURM share: start the command, look at the queue, prove exactly once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from launching import steps_of, the_launch, wait_for

from latentbridge.launch.ledger import Ledger
from latentbridge.launch.slurm.squeue import COMMENT
from latentbridge.rundir import read_json

REPOSITORY = Path(__file__).parents[2]
PROFILE = (REPOSITORY / "slurm" / "test.yaml").read_text()
# one rank on one node, without the seconds that importing torch takes: torchrun's place is not tested here
STAND_IN = """
import os, sys

words = sys.argv[1:]
assert {"--nproc-per-node=1"} <= set(words), words
start = next(index for index, word in enumerate(words) if not word.startswith("--"))
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", GROUP_RANK="0")
os.execv(sys.executable, [sys.executable, *words[start:]])
"""


def start(*words: str, first: str = "", path: Path | None = None) -> subprocess.Popen[str]:
    """The command `latentbridge WORDS...` in a process of its own.

    first: Python that it executes before;  path: a folder whose commands go before others
    """
    environ = os.environ | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    script = f"{first}\nimport sys\nfrom latentbridge.launch.cli import main\nmain(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", script, *words],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """The process once it has ended by itself."""
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def latentbridge(*words: str | Path, first: str = "", path: Path | None = None):
    """`latentbridge WORDS...` to its end."""
    return ended(start(*map(str, words), first=first, path=path))


def launch(*words: str, first: str = "", path: Path | None = None):
    """`launch.py WORDS... --cluster test` to its end."""
    return latentbridge("launch", *words, "--cluster", "test", first=first, path=path)


def archives(project: Path) -> list[Path]:
    """What was preserved."""
    return [path for path in (project / "preserved_data").glob("s_*[0-9]") if path.is_dir()]


def run_folders(folder: Path) -> list[Path]:
    """The folders of a launch's runs, in the order of the plan."""
    return [folder / run["name"] for run in read_json(folder / "plan.json")["runs"]]


def are_done(folder: Path) -> bool:
    """Whether every run of a launch is."""
    return all((run / "DONE").exists() for run in run_folders(folder))


def attempts_of(run: Path) -> list[dict]:
    """How each attempt of a run ended, oldest first."""
    found = sorted((run / "attempts").glob("*/exit.json"), key=lambda file: int(file.parent.name))
    return [read_json(file) for file in found]


def tasks(cluster, folder: Path, states: str = "all") -> list[tuple[str, int, str]]:
    """Token, index and state of every task of a launch that SLURM took and remembers."""
    words = ["--noheader", "--array", f"--states={states}", f"--name=lb-{folder.name}"]
    lines = cluster.run("squeue", *words, "--format=%K|%T|%r|%k").stdout.splitlines()
    return [
        (comment.removeprefix(COMMENT), 0 if index == "N/A" else int(index), state)
        for index, state, reason, comment in (line.split("|") for line in lines)
        if (state, reason) != ("FAILED", "BadConstraints")
    ]


def is_empty(cluster, folder: Path) -> bool:
    """Whether nothing of a launch is queued or at work."""
    return not tasks(cluster, folder, states="PD,CF,R,CG,RQ")


def submitted_times(cluster, folder: Path) -> Counter[str]:
    """How many tasks SLURM ever had of each run; a task that the ledger does not know is an error."""
    known = {submission.token: submission for submission in Ledger(folder)}
    return Counter(known[token].runs[index] for token, index, _ in tasks(cluster, folder))


def assert_each_finished_once(project: Path, cluster, steps: int) -> None:
    """Wait for the end, then: every run done, every step once, one task of SLURM a run, none unknown."""
    folder = the_launch(project)
    wait_for(lambda: are_done(folder) and archives(project), seconds=180)
    times = submitted_times(cluster, folder)
    for run in run_folders(folder):
        assert steps_of(run) == list(range(1, steps + 1)), run.name
        assert len(attempts_of(run)) == 1, run.name
        assert times[run.name] == 1, f"{run.name} was submitted {times[run.name]} times"
