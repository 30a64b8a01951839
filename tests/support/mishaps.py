"""A job that counts, and on the way meets with whatever a test asks for; and a lab to launch it in."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from launching import the_launch, wait_for
from slurm_launching import PROFILE

from latentbridge.rundir import RunDir, read_json, write_json

# `advance`, for a launch whose plan was changed by hand
ADVANCE = """
import sys
from pathlib import Path
from latentbridge.launch.advance import advance
from latentbridge.launch.record import Launch
advance(Launch(Path(sys.argv[1])), by_user=True)
"""
MISHAP_JOB = '''
"""Counts to config.steps, saving each step; at `at` meets with `mishap`, in its first `times` attempts."""
import os
import time

from latentbridge import job
from latentbridge.config import Config as Settings, JobConfig
from latentbridge.rundir import read_json, write_json
from latentbridge.train.config import backed_off

RANK = int(os.environ.get("RANK", "0"))


class OutOfMemoryError(RuntimeError):
    __module__ = "torch"


class Train(Settings):
    batch_size: int = 8


class Config(JobConfig):
    steps: int = 3
    step_s: float = 0.0
    mishap: str | None = None
    at: int = 2
    rank: int = 0  # whose mishap it is
    times: int = 1
    fits: int | None = None  # samples per forward that the device has room for
    train: Train | None = None


def hang_by_myself():
    time.sleep(3600)


def wait_for_the_other_rank():
    time.sleep(3600)


def meet(mishap):
    if mishap == "error":
        raise ValueError("told to fail")
    if mishap == "import":
        import a_package_that_nobody_has
    if mishap == "exit":
        raise SystemExit(3)
    if mishap == "lost peer":
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")
    if mishap == "memory":
        b"x" * 1536 * 2**20
    if mishap == "hang":
        hang_by_myself()
    if mishap == "leave a child behind":
        if os.fork() == 0:
            os.setsid()
            time.sleep(3600)
        raise ValueError("told to fail")
    if mishap == "silence":
        time.sleep(6)


def train(config, run):
    if config.fits is not None:
        world_size = int(os.environ["WORLD_SIZE"])
        per_rank = (config.train.batch_size if config.train else 8) // world_size
        if backed_off(per_rank, per_rank, run.backoff) > config.fits:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    saved = run.folder.path / "count.json"
    done = read_json(saved)["done"] if saved.exists() else 0
    while done < config.steps:
        if run.should_stop():
            run.stopped_at(done)
            return None
        if done == config.at and config.mishap and len(run.folder.list_attempts()) <= config.times:
            if RANK == config.rank:
                meet(config.mishap)
            elif config.mishap == "hang":
                wait_for_the_other_rank()
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


class Lab:
    """What tests do to launches of that job, and to the cluster below them."""

    def __init__(self, cluster: Any, project: Path) -> None:
        self.cluster, self.project = cluster, project
        self.dead: set[str] = set()
        (project / "jobs" / "mishap.py").write_text(MISHAP_JOB)

    def command(self, *words: object):
        """`latentbridge WORDS...` on this cluster, to its end."""
        return self.cluster.run(sys.executable, "-m", "latentbridge.launch.cli", *map(str, words))

    def launch(self, runs: str, hang_s: float | None = None, profile: str = "", **rules: object) -> Path:
        """Launch these runs; returns the launch folder.

        hang_s: instead of the spec's whole minutes;  profile: further lines of it;  rules: of retry
        """
        added = {line.split(":")[0] for line in profile.splitlines()}
        kept = [line for line in PROFILE.splitlines() if line.split(":")[0] not in added]
        (self.project / "slurm" / "test.yaml").write_text("\n".join([*kept, profile]))
        spec = f"name: s\njob: mishap\ncluster: test\nretry: {json.dumps(rules)}\nruns: {{{runs}}}\n"
        (self.project / "configs" / "s.yaml").write_text(spec)
        made = self.command("launch", "s", "--no-submit")
        assert made.returncode == 0, made.stderr
        folder = the_launch(self.project)
        if hang_s is not None:
            record = read_json(folder / "plan.json")
            write_json(folder / "plan.json", record | {"hang_timeout_min": hang_s / 60})
        done = self.cluster.run(sys.executable, "-c", ADVANCE, folder)
        assert done.returncode == 0, done.stderr
        return folder

    def states(self, folder: Path) -> dict[str, dict[str, Any]]:
        """What `latentbridge status --json` says of each run."""
        answer = self.command("status", folder, "--json")
        return {run["name"]: run for run in json.loads(answer.stdout)["runs"]}

    def state(self, run: Path) -> dict[str, Any]:
        """What it says of one run."""
        return self.states(run.parent)[run.name]

    def job(self, run: Path) -> dict[str, str]:
        """The fields of a run's job as SLURM shows them; empty once it has forgotten it."""
        shown = self.cluster.run("scontrol", "show", "job", self.state(run)["job"], "--oneliner").stdout
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def crash(self, *nodes: str) -> None:
        """Take these nodes away, as a power cut would."""
        for node in nodes:
            self.dead.add(node)
            self.cluster.crash(node)

    def is_down(self, node: str) -> bool:
        """Whether SLURM has noticed."""
        state = self.cluster.run("sinfo", "--noheader", "--partition=low", f"--nodes={node}", "--format=%T")
        return state.stdout.startswith("down")

    def restore(self) -> None:
        """Bring all nodes back."""
        while self.dead:
            self.cluster.restore(self.dead.pop())

    def forbid_requeue(self, run: Path) -> None:
        """Have SLURM refuse to start the run's job again, as some sites do."""
        done = self.cluster.run("scontrol", "update", f"JobId={self.state(run)['job']}", "Requeue=0")
        assert done.returncode == 0, done.stderr

    def tidy_up(self) -> None:
        """Leave all nodes alive and none busy; none may be lost over processes that could not be killed."""
        self.restore()
        self.cluster.run("scancel", "--user=root")
        wait_for(lambda: not self.cluster.run("squeue", "--noheader").stdout.strip())
        drained = self.cluster.run("sinfo", "--list-reasons").stdout
        assert "Kill task failed" not in drained, self.cluster.said_of("kill|unkillable|signal|terminat")


def causes(run: Path) -> list[str]:
    """Of every attempt that has ended."""
    attempts = RunDir(run).list_attempts()
    return [read_json(a / "exit.json")["cause"] for a in attempts if (a / "exit.json").exists()]


def is_done(run: Path) -> bool:
    """Whether the run is, and its last attempt's end is written down."""
    return causes(run)[-1:] == ["done"]


def counted(run: Path) -> int:
    """How far the run has saved."""
    return read_json(run / "count.json")["done"] if (run / "count.json").exists() else 0


def processes_of(attempt: Path) -> list[int]:
    """Pids of an attempt's ranks and of whatever they started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"ATTEMPT_DIR={attempt}\0".encode() in environ:
                found.append(int(entry.name))
    return found
