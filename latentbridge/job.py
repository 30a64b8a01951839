"""What every jobs/*.py calls: one complete config file in, one run folder filled.

torchrun --nproc_per_node 4 jobs/translator.py --config RUN/config.yaml
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from latentbridge.config import JobConfig, load
from latentbridge.errors import LatentbridgeError, RunError
from latentbridge.rundir import RunDir, append_jsonl, hold_lock, keep_records, write_json
from latentbridge.trackers import Trackers

JobConfigT = TypeVar("JobConfigT", bound=JobConfig)

# set by our worker; by hand they are absent
ATTEMPT_VARIABLE = "LATENTBRIDGE_ATTEMPT_DIR"
# pid on this host of the worker (for a rank) or launcher (for a worker) without which it must not run
GUARDIAN_VARIABLE = "LATENTBRIDGE_GUARDIAN"
# what `--no-check` calls every check together
ALL_CHECKS = "all"
STOP_REQUEST = "stop_requested"
CHECKPOINTED = "checkpointed.json"
# set by torchrun: which node of the job this rank is on
NODE_VARIABLE = "GROUP_RANK"
# a rank that gets on says so at most this often
BEAT_EVERY_S = 2.0

PR_SET_PDEATHSIG = 1
# a predecessor that was told to stop may still be writing its last checkpoint
LOCK_PATIENCE_S = 120


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when its parent dies, so that nothing trains unwatched.

    The kernel does so from now on only: a guardian that died before is found by its pid.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))
    guardian = os.environ.get(GUARDIAN_VARIABLE)
    if guardian and not Path(f"/proc/{guardian}").exists():
        raise SystemExit(f"process {guardian}, which watched over this one, is gone")


class Run:
    """One rank's hold on its run folder: rank 0 writes; all ranks beat, and may ask whether to stop."""

    def __init__(self, folder: RunDir, attempt: Path | None = None) -> None:
        self.folder = folder
        self.attempt = attempt
        self.rank = int(os.environ.get("RANK", "0"))
        self.is_main = self.rank == 0
        self._signalled = False
        self._last_progress = 0.0
        self._last_beat = 0.0

    @property
    def backoff(self) -> int:
        """How many times the micro-batch is to be halved, because the device ran out of memory before."""
        return int(self.folder.read_manifest().get("backoff", 0))

    def leaves_out(self, check: str) -> bool:
        """Whether somebody asked, at the launch, not to make this check of the rehearsal."""
        rehearsal = self.folder.read_manifest().get("rehearsal") or {}
        return not {check, ALL_CHECKS}.isdisjoint(rehearsal.get("off", []))

    @cached_property
    def _trackers(self) -> Trackers:
        return Trackers(self.folder, self.folder.read_manifest().get("trackers", []))

    def announce(self) -> None:
        """Say in the attempt which process this rank is, and from now on where it stands on SIGQUIT."""
        if self.attempt is None:
            return
        # before the beat: a rank that can be found must survive the signal
        _dump_stacks_on_quit(self.folder.stack_file(self.attempt, self.rank))
        path = self.folder.beat_file(self.attempt, self.rank)
        path.parent.mkdir(exist_ok=True)
        node = int(os.environ.get(NODE_VARIABLE, "0"))
        write_json(path, {"pid": os.getpid(), "node": node, "rank": self.rank})

    def beat(self) -> None:
        """Say that this rank gets on; costs nothing when called often."""
        now = time.monotonic()
        if self.attempt is None or now - self._last_beat < BEAT_EVERY_S:
            return
        self._last_beat = now
        # a disk that stumbles is no reason to end a training
        with suppress(OSError):
            os.utime(self.folder.beat_file(self.attempt, self.rank))

    def log(self, record: dict[str, Any]) -> None:
        """Add one record to train.jsonl (rank 0)."""
        self.beat()
        if self.is_main:
            append_jsonl(self.folder.train_log, record)
            self._trackers.follow(record)

    def log_metrics(self, record: dict[str, Any]) -> None:
        """Add one evaluation's record to metrics.jsonl (rank 0)."""
        if self.is_main:
            append_jsonl(self.folder.metrics_log, record)
            self._trackers.follow(record)

    def sync(self) -> None:
        """Have the records so far outlive a power cut, as the checkpoint does that is about to be written."""
        for path in (self.folder.train_log, self.folder.metrics_log) if self.is_main else ():
            if path.exists():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())

    def forget_after(self, step: int) -> None:
        """Drop records of updates that a resumed run will do again (rank 0)."""
        if self.is_main:
            keep_records(self.folder.train_log, lambda record: record["step"] <= step)
            keep_records(self.folder.metrics_log, lambda record: record["step"] <= step)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is; watchers read it, at most five times a second (rank 0). All ranks beat."""
        self.beat()
        now = time.monotonic()
        if not self.is_main or (done < total and now - self._last_progress < 0.2):
            return
        self._last_progress = now
        if self.attempt is not None:
            said = {"stage": stage, "done": done, "total": total, "at": time.time()}
            # a disk that stumbles is no reason to end a training
            with suppress(OSError):
                write_json(self.folder.progress_file(self.attempt), said)
        elif sys.stderr.isatty():
            print(
                f"\r{stage}: {done}/{total}\033[K",
                end="\n" if done >= total else "",
                file=sys.stderr,
                flush=True,
            )

    def should_stop(self) -> bool:
        """Whether this rank was asked to checkpoint and leave; ranks must agree before acting on it."""
        return self._signalled or (self.attempt is not None and (self.attempt / STOP_REQUEST).exists())

    def stopped_at(self, step: int) -> None:
        """Record that a complete checkpoint of `step` was taken because someone asked to stop (rank 0)."""
        if not self.is_main:
            return
        if self.attempt is not None:
            write_json(self.attempt / CHECKPOINTED, {"step": step})
        else:  # by hand nobody else would say so
            message = f"saved at update {step}; the same command goes on from there"
            self.folder.mark("STOPPED", {"cause": "stopped", "message": message})
            print(f"\n{message}", file=sys.stderr, flush=True)

    def done(self, summary: dict[str, Any]) -> None:
        """Mark the run finished (rank 0); call it last."""
        if self.is_main:
            self.folder.mark("DONE", {"finished_at": time.time(), **summary})

    def close(self) -> None:
        """End what else was told of the records (rank 0)."""
        if self.is_main:
            self._trackers.close()

    def lock(self) -> None:
        """Hold this run for the life of the process, lest two launchers train it twice (rank 0).

        A dying predecessor has two minutes to finish its last checkpoint; then LockedError.
        """
        if self.is_main:
            self._lock = hold_lock(self.folder.rank_lock, LOCK_PATIENCE_S)

    def listen(self) -> None:
        """Turn TERM, USR1, USR2 and a first INT into a request to stop at the next update."""

        def request(number: int, frame: Any) -> None:
            if number == signal.SIGINT and self._signalled:
                raise KeyboardInterrupt
            self._signalled = True

        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, request)


def _dump_stacks_on_quit(path: Path) -> None:
    """On SIGQUIT add the stack of every thread to a file, even while the main one waits in C, and go on."""
    path.parent.mkdir(exist_ok=True)
    # the handler cannot open files, so it is open from the start
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    faulthandler.register(signal.SIGQUIT, file, all_threads=True)
    atexit.register(_remove_if_empty, path)


def _remove_if_empty(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.stat().st_size == 0:
            path.unlink()


def main(
    config_class: type[JobConfigT],
    train: Callable[[JobConfigT, Run], dict[str, Any] | None],
    argv: list[str] | None = None,
) -> None:
    """Run one job on this rank; `train` returns the summary of a finished run, or None if it was stopped."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument(
        "--config", required=True, type=Path, help="config.yaml inside the run folder to fill"
    )
    path: Path = parser.parse_args(argv).config.absolute()
    # without torchrun a job is its own single rank; DeepSpeed would otherwise look for MPI
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        os.environ.setdefault(name, value)
    try:
        if path.name != "config.yaml":
            raise RunError(
                f"{path}: not the config.yaml of a run folder; "
                "`python launch.py SPEC --no-submit` makes run folders"
            )
        config = load(config_class, path)
        attempt = os.environ.get(ATTEMPT_VARIABLE)
        run = Run(RunDir(path.parent), Path(attempt) if attempt else None)
        if run.folder.state == "DONE":
            print(f"{path.parent}: already DONE; nothing to do. Remove the marker to run it again.")
            return
        if attempt:
            die_with_parent()  # torchrun's death must be ours
        run.announce()
        run.listen()
        run.lock()
        if run.is_main and not attempt:
            run.folder.clear_marker()
        try:
            summary = train(config, run)
            if summary is not None:
                run.done(summary)
        finally:
            run.close()
    except LatentbridgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
