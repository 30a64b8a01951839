"""Who submitted what, and what people asked about single runs: plain files, written before deeds.

LAUNCH/ledger/submissions/<token>.json holds one sbatch call: the runs of one array, and the job id once
SLURM has given it. LAUNCH/ledger/orders.json holds what people want of single runs.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from latentbridge.errors import RunError
from latentbridge.rundir import read_json, write_json

# why a run is held that was not chosen; it may start again as soon as it is
SKIPPED = "left out by --only or --skip"
# why a submission without an answer counts no more
NO_ANSWER = "sbatch gave no answer, and SLURM shows no such job"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One sbatch call: asked for, then answered."""

    token: str
    runs: tuple[str, ...]  # array task i executes runs[i]
    created: float  # seconds since the epoch; later submissions have later times
    parallel: int = 1  # how many of its tasks SLURM may run at a time
    job_id: str | None = None  # None: sbatch was about to be called, or its answer was lost
    refused: str | None = None  # why there is no such job, or must not be one any more

    @property
    def is_open(self) -> bool:
        """Whether nobody knows yet if SLURM has it."""
        return self.job_id is None and self.refused is None

    @property
    def is_denied(self) -> bool:
        """Whether SLURM said no, so that no job of it can turn up."""
        return self.refused not in (None, NO_ANSWER)


@dataclass(frozen=True)
class Place:
    """Where a run is in what was submitted."""

    submission: Submission
    index: int

    @property
    def task(self) -> str | None:
        """SLURM's id of the run's task; a single job has no index."""
        submission = self.submission
        if submission.job_id is None or len(submission.runs) == 1:
            return submission.job_id
        return f"{submission.job_id}_{self.index}"


@dataclass(frozen=True)
class Orders:
    """What people asked about single runs; it holds until they ask otherwise."""

    # run: why nobody is to start it
    held: dict[str, str] = field(default_factory=dict)
    # run: its attempts up to this number no longer count against the retry rules
    forgiven: dict[str, int] = field(default_factory=dict)


class Ledger:
    """The submissions and orders of one launch; a file is read again only when it has changed."""

    def __init__(self, launch: Path) -> None:
        self.folder = launch / "ledger" / "submissions"
        self._orders = launch / "ledger" / "orders.json"
        # by token, with the time of the file that was read
        self._known: dict[str, tuple[int, Submission]] = {}
        self._latest: tuple[list[Submission], dict[str, Place]] = ([], {})

    def intend(self, runs: list[str], parallel: int = 1) -> Submission:
        """Write down what is about to be submitted, under a new token."""
        # hosts take turns at submitting, and the clock of one may be behind another's
        after = max((submission.created for submission in self), default=0.0)
        created = max(time.time(), after + 0.001)
        submission = Submission(
            token=secrets.token_hex(8), runs=tuple(runs), created=created, parallel=parallel
        )
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

    def forget_denied(self, submission: Submission) -> list[str]:
        """Drop what SLURM denied earlier of the same runs, or it would pile up; returns the tokens."""
        others = [s for s in self if s.is_denied and s.token != submission.token]
        tokens = [other.token for other in others if {*other.runs} <= {*submission.runs}]
        for token in tokens:
            (self.folder / f"{token}.json").unlink(missing_ok=True)
            self._known.pop(token, None)
        return tokens

    def throttled(self, submission: Submission, parallel: int) -> None:
        """Write down how many tasks of an array may run at a time from now on."""
        self._write(replace(submission, parallel=parallel))

    def read(self, token: str) -> Submission:
        """One submission."""
        file = self.folder / f"{token}.json"
        known, changed = self._known.get(token), file.stat().st_mtime_ns if file.exists() else 0
        if known and known[0] == changed:
            return known[1]
        record = _known(Submission, read_json(file))
        submission = Submission(**{**record, "runs": tuple(record["runs"])})
        self._known[token] = changed, submission
        return submission

    def has(self, token: str) -> bool:
        """Whether this launch made the submission; other launches of this user are in the queue as well."""
        return (self.folder / f"{token}.json").exists()

    def __iter__(self) -> Iterator[Submission]:
        found = [self._read_if_there(path.stem) for path in self.folder.glob("[0-9a-f]*.json")]
        return iter(sorted(filter(None, found), key=lambda submission: submission.created))

    def _read_if_there(self, token: str) -> Submission | None:
        try:
            return self.read(token)
        except (RunError, FileNotFoundError):
            if self.has(token):
                raise
            return None  # somebody forgot it this moment

    def latest(self) -> dict[str, Place]:
        """The last submission of every run that was ever submitted."""
        submissions = list(self)
        if submissions != self._latest[0]:
            places = {
                run: Place(submission, index)
                for submission in submissions
                if not submission.refused
                for index, run in enumerate(submission.runs)
            }
            self._latest = submissions, places
        return self._latest[1]

    def is_current(self, token: str, run: str) -> bool:
        """Whether a job with this token is the one that should work on the run.

        Not so if its submission was given up for lost, and its run submitted once more, before it turned up.
        """
        place = self.latest().get(run)
        return place is not None and place.submission.token == token

    @property
    def orders(self) -> Orders:
        """What people asked, as of now."""
        return Orders(**_known(Orders, read_json(self._orders))) if self._orders.exists() else Orders()

    def order(self, orders: Orders) -> None:
        """Write down what people ask from now on; for the holder of the launch's lease."""
        write_json(self._orders, asdict(orders))

    def _write(self, submission: Submission) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{submission.token}.json", asdict(submission))


def _known(kind: type[Any], record: dict[str, Any]) -> dict[str, Any]:
    """A record less what a later version has added: nodes run the code of the launch, whoever writes here."""
    return {field.name: record[field.name] for field in fields(kind) if field.name in record}
