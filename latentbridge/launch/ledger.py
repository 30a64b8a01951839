"""Who submitted what: intents written before sbatch is called, and a lock that outlives no launcher.

Plain files only, so that a shared disk is all a cluster needs. LAUNCH/ledger/<token>.json holds one
submission: the runs of one array (or one local pool), and the job id once SLURM has given it.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from latentbridge.errors import LockedError
from latentbridge.rundir import read_json, write_json

LEASE_S = 60
RENEW_S = 10


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One sbatch call: asked for, then answered."""

    token: str
    runs: tuple[str, ...]  # array task i executes runs[i]
    created: float
    job_id: str | None = None  # None: sbatch was about to be called, or its answer was lost
    refused: str | None = None

    def task_id(self, run: str) -> str | None:
        """The SLURM id of one run's task; a single job has no index."""
        if self.job_id is None:
            return None
        return self.job_id if len(self.runs) == 1 else f"{self.job_id}_{self.runs.index(run)}"


class Ledger:
    """The submissions of one launch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def intend(self, runs: list[str]) -> Submission:
        """Write down what is about to be submitted, under a new token."""
        submission = Submission(token=secrets.token_hex(8), runs=tuple(runs), created=time.time())
        self._write(submission)
        return submission

    def accepted(self, submission: Submission, job_id: str) -> Submission:
        """Write down the scheduler's answer."""
        answered = replace(submission, job_id=job_id)
        self._write(answered)
        return answered

    def refused(self, submission: Submission, reason: str) -> None:
        """Write down that nothing was submitted, and why."""
        self._write(replace(submission, refused=reason))

    def read(self, token: str) -> Submission:
        """One submission."""
        record = read_json(self.folder / f"{token}.json")
        return Submission(**{**record, "runs": tuple(record["runs"])})

    def __iter__(self) -> Iterator[Submission]:
        found = [self.read(path.stem) for path in self.folder.glob("*.json")]
        return iter(sorted(found, key=lambda submission: submission.created))

    def latest(self) -> dict[str, Submission]:
        """The last submission of every run that was ever submitted."""
        return {run: submission for submission in self for run in submission.runs if not submission.refused}

    def _write(self, submission: Submission) -> None:
        write_json(self.folder / f"{submission.token}.json", asdict(submission))


@contextmanager
def lease(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file while the body runs; LockedError if someone else holds it.

    The holder touches the file every 10 s. A lock of another host untouched for 60 s, or one whose
    process on this host is gone, belonged to the dead and is taken over.
    """
    me: dict[str, str | int] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "token": secrets.token_hex(8),
    }
    while not _try_lock(path, me):
        holder = _holder(path)
        if holder is None:
            continue  # released this moment
        if not _is_stale(path, holder):
            raise LockedError(
                f"{what} is in the hands of process {holder['pid']} on {holder['host']} ({path}). "
                "Wait for it, or end it and try again"
            )
        _break(path, holder)
    over = threading.Event()
    keeper = threading.Thread(target=_renew, args=(path, me, over), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
        if _holder(path) == me:
            path.unlink(missing_ok=True)


def _try_lock(path: Path, me: dict[str, str | int]) -> bool:
    draft = path.with_name(f".{path.name}.{me['token']}")
    draft.write_text(json.dumps(me))
    try:
        os.link(draft, path)  # atomic on network disks too, where O_EXCL was not always
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def _holder(path: Path) -> dict[str, str | int] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def _is_stale(path: Path, holder: dict[str, str | int]) -> bool:
    if holder["host"] == socket.gethostname():
        # a process that was merely suspended goes on with what it thinks is its own
        return not Path(f"/proc/{holder['pid']}").exists()
    try:
        return time.time() - path.stat().st_mtime > LEASE_S
    except FileNotFoundError:
        return False


def _break(path: Path, holder: dict[str, str | int]) -> None:
    """Take a dead holder's lock away; of several who try, one succeeds."""
    grave = path.with_name(f".{path.name}.dead-{holder['token']}")
    try:
        os.rename(path, grave)
    except FileNotFoundError:
        return
    if (taken := _holder(grave)) and taken["token"] != holder["token"]:
        with suppress(FileExistsError):
            os.link(grave, path)  # someone was quicker, and this is their live lock: put it back
    grave.unlink(missing_ok=True)


def _renew(path: Path, me: dict[str, str | int], over: threading.Event) -> None:
    while not over.wait(RENEW_S) and _holder(path) == me:
        with suppress(FileNotFoundError):
            os.utime(path)
