"""The run folder is the contract: its file names, and the only ways anything is written into it.

RUN/
  config.yaml manifest.json             every default spelled out; ids, hashes, seeds, versions, command
  attempts/1/ stdout.log stderr.log env.json exit.json progress.json
  attempts/1/beats/rank_0               which process a rank is; touched for as long as it gets on
  attempts/1/stacks/rank_0.txt          where each of its threads stood, every time it was sent SIGQUIT
  train.jsonl metrics.jsonl             one record a log step; one record an evaluation
  eval_samples_step_250.jsonl           one record a question
  inference_per_sample.jsonl inference_aggregate.json   what replies cost, one at a time
  trackers/                             the same for TensorBoard, W&B or MLflow, where the spec asks for it
  checkpoints/{best,last}               links to complete folders, swapped in one step
  DONE | FAILED | STOPPED               one marker: how the run ended, and why
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gzip
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

from latentbridge.errors import DamageError, LockedError, RunError

State = Literal["DONE", "FAILED", "STOPPED"]
STATES: tuple[State, ...] = ("DONE", "FAILED", "STOPPED")
# what archives add to the name of a file that they keep compressed
PACKED = ".gz"
NOT_GZIP = (gzip.BadGzipFile, zlib.error, EOFError)
# a record of train.jsonl takes about 300 bytes
TAIL_BYTES = 4096
STALE_TRIES = 3
# what flock says on a file system that has no locks
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)

log = logging.getLogger(__name__)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: readers see the old content or the new, never a part, whatever dies."""
    # a file's name may hold what is no text, which JSON can write and read in this form
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes 0600, which colleagues could not read
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_disk(folder: Path) -> None:
    """Have all that was written to the disk of `folder` reach it; other disks, which may hang, are let be."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def write_json(path: Path, record: Any) -> None:
    """Write one JSON document atomically; inf and nan are refused, since a reader would choke on them."""
    write_atomic(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON document; DamageError names the file where it is missing or damaged.

    RunError where the disk does not give it.
    """
    try:
        return json.loads(_read_text(path))
    except FileNotFoundError:
        raise DamageError(f"{path}: no such file") from None
    except ValueError as error:
        raise DamageError(f"{path}: cannot be read as JSON ({error})") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error})") from None


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON object that has these keys; DamageError names what it is, or lacks."""
    return as_object(read_json(path), path, keys, "the file was damaged")


def as_object(found: Any, path: Path, keys: Sequence[str], remedy: str) -> dict[str, Any]:
    """What was read from a file, if it is an object that has these keys; DamageError ends in the remedy."""
    if not isinstance(found, dict):
        raise DamageError(f"{path}: a JSON object is needed, not a {type(found).__name__}; {remedy}")
    if lacking := [key for key in keys if key not in found]:
        raise DamageError(f"{path}: the key {', '.join(lacking)} is missing; {remedy}")
    return found


def _read_text(path: Path) -> str:
    """A file's text; on a network disk it may be replaced by another host while it is read here."""
    for _ in range(STALE_TRIES):
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return path.read_text(encoding="utf-8")


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that nobody writes into a second name, or a copy where its disk cannot."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Add one record as one line, in one write: a killed writer leaves at most one torn last line."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    with open(path, "ab") as file:
        file.write(line.encode())


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a file of our own; a torn last line is left out, damage elsewhere is a RunError.

    One line is held at a time. In an archive the file may be there as NAME.gz alone.
    """
    stored = find_stored(path)
    if stored is None:
        return
    # bytes: a line may be torn in the middle of a character
    with open_stored(stored) as file:
        try:
            for number, line in enumerate(file, start=1):
                try:
                    record = json.loads(line)
                except ValueError:
                    if not line.endswith(b"\n"):
                        return
                    record = None
                if not isinstance(record, dict):
                    raise RunError(f"{path}:{number}: not a JSON record; the file was damaged")
                yield record
        except NOT_GZIP as error:
            raise RunError(f"{stored}: damaged within what gzip holds ({error})") from None


def find_stored(path: Path) -> Path | None:
    """Where a run's file is: under its own name or, as archives may keep it, as NAME.gz; None: nowhere."""
    packed = path.with_name(path.name + PACKED)
    return next((place for place in (path, packed) if place.exists()), None)


def open_stored(path: Path) -> IO[bytes]:
    """A file's content, uncompressed as it is read; NOT_GZIP is what a damaged NAME.gz raises."""
    return cast(IO[bytes], gzip.open(path)) if path.suffix == PACKED else open(path, "rb")


def walk_folders(
    root: Path, onerror: Callable[[OSError], object]
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As os.walk, by name, each folder once; through links too, unless to what is below or above root."""
    top = Path(os.path.realpath(root))
    seen = {top}
    for name, below, names in os.walk(root, onerror=onerror, followlinks=True):
        fresh = []
        for part in sorted(below):
            path = Path(name, part)
            place = Path(os.path.realpath(path))
            leads_here = path.is_symlink() and (top in place.parents or place in top.parents)
            if not leads_here and place not in seen:
                seen.add(place)
                fresh.append(part)
        below[:] = fresh
        yield Path(name), below, names


def hash_file(path: Path) -> str:
    """The sha256 of a file as it lies on the disk, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_stored(path: Path) -> str:
    """The same of its content, so that NAME and NAME.gz are one; FileNotFoundError where there is neither."""
    with open_stored(find_stored(path) or path) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def last_record(path: Path) -> dict[str, Any] | None:
    """The last record of a file of our own that can be read, whatever is torn or damaged behind it, if any.

    At a cost that does not grow with the file.
    """
    if not path.exists():
        return None
    with open(path, "rb") as file:
        end, length = file.seek(0, os.SEEK_END), TAIL_BYTES
        while True:
            start = max(0, end - length)
            file.seek(start)
            pieces = file.read(end - start).split(b"\n")
            # what follows the last line break is torn, or empty; what precedes the first may be cut by us
            for line in reversed(pieces[0 if start == 0 else 1 : -1]):
                with suppress(ValueError):
                    if isinstance(record := json.loads(line), dict):
                        return record
            if start == 0:
                return None
            length *= 8


def keep_records(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a JSONL file atomically with only the records that `keep` accepts.

    What a power cut left unreadable is dropped with a warning: the run is to go on.
    """
    if not path.exists():
        return
    kept, damaged = [], 0
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError:
            damaged += 1
            continue
        if record is not None and keep(record):
            kept.append(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    if damaged:
        log.warning("%s: %d lines could not be read and were left out", path, damaged)
    write_atomic(path, "".join(kept))


def hold_lock(path: Path, patience_s: float) -> IO[bytes]:
    """Lock a file for as long as the returned handle is open; the kernel releases it when its holder dies.

    LockedError if someone else still holds it after `patience_s`, or it cannot be locked for now. On a file
    system without locks nobody is kept out: there the ledger alone guards against doubles.
    """
    file = open(path, "ab")  # noqa: SIM115 - the handle is the lock
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return file
            if time.monotonic() >= deadline:
                file.close()
                is_held = isinstance(error, BlockingIOError)
                why = "another process works here" if is_held else f"it cannot be locked ({error.strerror})"
                raise LockedError(f"{path}: {why}") from None
            time.sleep(0.2)
            continue
        return file


class Beat(NamedTuple):
    """A rank's sign of life: its process, the node of its job (0, 1, ...), and the age of the sign."""

    rank: int
    pid: int
    node: int
    age_s: float


@dataclass(frozen=True)
class RunDir:
    """One run's folder; nothing else knows its file names."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def first_minute(self) -> Path:
        """What was tried out before the first update: seconds and peak memory of every phase."""
        return self.path / "first_minute.json"

    def read_manifest(self) -> dict[str, Any]:
        """What manifest.json holds; empty where there is none, as in a folder made by hand."""
        return dict(read_json(self.manifest)) if self.manifest.exists() else {}

    def write_manifest(self, record: dict[str, Any]) -> None:
        """Replace manifest.json."""
        write_json(self.manifest, record)

    @property
    def train_log(self) -> Path:
        return self.path / "train.jsonl"

    @property
    def metrics_log(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def trackers(self) -> Path:
        """What TensorBoard and its like are told of the two logs; each attempt writes it anew."""
        return self.path / "trackers"

    def last_step(self) -> int:
        """The last update that train.jsonl tells of; 0 before the first."""
        record = last_record(self.train_log)
        return int(record.get("step", 0)) if record else 0

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def rank_lock(self) -> Path:
        """Held by rank 0 while it trains."""
        return self.path / "rank.lock"

    @property
    def worker_lock(self) -> Path:
        """Held by the head node's worker from before an attempt until its end is written down."""
        return self.path / "worker.lock"

    def is_locked(self) -> bool:
        """Whether a worker or a rank on a host that shares this disk is at work here now."""
        for path in (self.worker_lock, self.rank_lock):
            try:
                with open(path, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: many may ask at once
            except BlockingIOError:
                return True
            except OSError:
                continue  # never locked, not ours to read, or a file system without locks
        return False

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    def eval_samples(self, label: int | str) -> Path:
        """The answers of one evaluation; label: an update count, or "final"."""
        return self.path / f"eval_samples_step_{label}.jsonl"

    @property
    def inference_samples(self) -> Path:
        """What each reply cost, measured one problem at a time."""
        return self.path / "inference_per_sample.jsonl"

    @property
    def inference_aggregate(self) -> Path:
        """The same over all problems, by method."""
        return self.path / "inference_aggregate.json"

    def list_attempts(self) -> list[Path]:
        """Attempt folders, oldest first."""
        if not self.attempts.is_dir():
            return []
        return sorted((p for p in self.attempts.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))

    def new_attempt(self) -> Path:
        """Make and return the next attempt's folder; two callers never get the same one."""
        self.attempts.mkdir(exist_ok=True)
        number = 1 + max((int(p.name) for p in self.list_attempts()), default=0)
        while True:
            folder = self.attempts / str(number)
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
                continue
            return folder

    @staticmethod
    def progress_file(attempt: Path) -> Path:
        """What rank 0 last said it was doing: stage, done, total, at."""
        return attempt / "progress.json"

    def read_progress(self) -> dict[str, Any]:
        """What the latest attempt last said it was doing; empty where it has said nothing yet."""
        attempts = self.list_attempts()
        if not attempts or not self.progress_file(attempts[-1]).exists():
            return {}
        return dict(read_json(self.progress_file(attempts[-1])))

    @staticmethod
    def beat_file(attempt: Path, rank: int) -> Path:
        """Touched by a rank for as long as it gets on."""
        return attempt / "beats" / f"rank_{rank}"

    @staticmethod
    def stack_file(attempt: Path, rank: int) -> Path:
        """Where a rank's threads stood, every time that it was sent SIGQUIT."""
        return attempt / "stacks" / f"rank_{rank}.txt"

    def beats(self, attempt: Path) -> list[Beat]:
        """Every rank that has started, in rank order."""
        now, found = time.time(), []
        for path in self.beat_file(attempt, 0).parent.glob("rank_*"):
            record = read_json(path)
            age_s = max(0.0, now - path.stat().st_mtime)
            found.append(Beat(record["rank"], record["pid"], record["node"], age_s))
        return sorted(found)

    def newest_beat(self, attempt: Path) -> float | None:
        """When any rank last got on, by the clock of the disk; None before the first has started.

        That clock may differ from this host's: whether the time has changed says more than how old it is.
        """
        beats = self.beat_file(attempt, 0).parent.glob("rank_*")
        return max((path.stat().st_mtime for path in beats), default=None)

    @property
    def state(self) -> State | None:
        """How the run ended, or None while no marker says so."""
        # the whole folder is asked for: a network disk may go on denying a single name for half a minute
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return None
        return next((state for state in STATES if state in names), None)

    @property
    def is_done(self) -> bool:
        """Whether the run finished."""
        return self.state == "DONE"

    def read_marker(self) -> dict[str, Any]:
        """What the marker holds; empty where there is none."""
        state = self.state
        return dict(read_json(self.path / state)) if state else {}

    def mark(self, state: State, record: dict[str, Any]) -> None:
        """Write one marker; DONE is final, the others give way to what comes later."""
        if state != "DONE" and (self.path / "DONE").exists():
            return
        write_json(self.path / state, record)
        for other in STATES:
            # one may have become DONE this moment
            if other not in (state, "DONE"):
                (self.path / other).unlink(missing_ok=True)

    def clear_marker(self) -> None:
        """Forget FAILED or STOPPED before another attempt; DONE stays."""
        for state in ("FAILED", "STOPPED"):
            (self.path / state).unlink(missing_ok=True)
