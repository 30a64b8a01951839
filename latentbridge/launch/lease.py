"""A lock on a shared disk that outlives no holder: whoever finds it abandoned may take it over."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from latentbridge.errors import LockedError

LEASE_S = 45
RENEW_S = 8
RETRY_S = 0.2
# how long a disk may go on saying that a lock is there which it cannot show
RELEASED_S = 60
UNREADABLE = {"pid": "unknown", "host": "an unknown host"}


@dataclass(frozen=True)
class Lease:
    """A lock held by this process, for as long as it keeps touching it."""

    path: Path
    what: str
    me: dict[str, str | int]

    def check(self) -> None:
        """LockedError if someone took it over, which happens to a holder that was suspended too long."""
        if _holder(self.path) != self.me:
            raise LockedError(
                f"{self.what}: this process was silent for more than {LEASE_S} s and another has taken over; "
                "nothing more was done here"
            )


@contextmanager
def lease(path: Path, what: str, patience_s: float = 0) -> Iterator[Lease]:
    """Hold a lock file while the body runs; LockedError if someone else still holds it after `patience_s`.

    The holder touches the file every 8 s. A lock of another host untouched for 45 s, or one whose
    process on this host is gone, belonged to the dead and is taken over.
    """
    me: dict[str, str | int] = {
        "host": socket.gethostname(),
        "space": process_space(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "token": secrets.token_hex(8),
    }
    held = Lease(path, what, me)
    deadline = time.monotonic() + patience_s
    while not _try_lock(held):
        holder = _holder(path)
        if holder is not None and _is_stale(path, holder):
            _break(path, holder)
            continue
        # one that was released this moment is ours at the next try
        if time.monotonic() >= deadline + (RELEASED_S if holder is None else 0):
            raise LockedError(
                f"{what} is in the hands of {_who(holder or {})} ({path}). "
                f"Wait for it, or end it and try again; of a dead host it is free after {LEASE_S} s"
            )
        time.sleep(RETRY_S)
    over = threading.Event()
    keeper = threading.Thread(target=_renew, args=(held, over), daemon=True)
    keeper.start()
    try:
        yield held
    finally:
        over.set()
        keeper.join()
        if _holder(path) == held.me:
            path.unlink(missing_ok=True)


def find_unsure(path: Path) -> str | None:
    """Who holds a lock on another host, or in another container, and may be dead; None if nobody does."""
    holder = _holder(path)
    if not holder or holder.get("space") == process_space() or _is_stale(path, holder):
        return None
    return _who(holder)


def await_sign(path: Path) -> None:
    """Return once such a holder has renewed its lock or left it, or was silent so long that it is free."""
    seen, deadline = _renewed(path), time.monotonic() + LEASE_S + RENEW_S
    while find_unsure(path) and _renewed(path) == seen and time.monotonic() < deadline:
        time.sleep(RETRY_S)


def _renewed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _who(holder: dict[str, str | int]) -> str:
    return "process {pid} on {host}".format_map(UNREADABLE | holder)


def _try_lock(held: Lease) -> bool:
    draft = _beside(held.path, str(held.me["token"]))
    draft.write_text(json.dumps(held.me))
    try:
        os.link(draft, held.path)  # atomic on network disks too, where O_EXCL was not always
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _holder(path: Path) -> dict[str, str | int] | None:
    """What a lock says of its holder: nothing where it cannot be read; None where there is no lock."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}


def process_space() -> str:
    """Where process ids mean the same: this start of this host, and in it this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> str:
    """When the kernel started this process, which tells it from a later one of the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _is_alive(pid: int, born: str) -> bool:
    if now := _born(pid):
        return now == born
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user, whom /proc may hide
    return True


def _is_stale(path: Path, holder: dict[str, str | int]) -> bool:
    if holder.get("space") == process_space():
        # by pid, not by silence: a process that was merely suspended goes on with what it thinks is its own
        return not _is_alive(int(holder["pid"]), str(holder["born"]))
    try:
        return _disk_time(path) - path.stat().st_mtime > LEASE_S
    except FileNotFoundError:
        return False


def _disk_time(path: Path) -> float:
    """What the clock of the disk that holds `path` shows: hosts may differ by minutes."""
    probe = _beside(path, f"clock-{secrets.token_hex(4)}")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _break(path: Path, holder: dict[str, str | int]) -> None:
    """Take a dead holder's lock away; of several who try, one succeeds."""
    grave = _beside(path, f"dead-{holder.get('token', secrets.token_hex(4))}")
    try:
        os.rename(path, grave)
    except FileNotFoundError:
        return
    if (taken := _holder(grave)) and taken["token"] != holder.get("token"):
        with suppress(FileExistsError):
            os.link(grave, path)  # someone was quicker, and this is their live lock: put it back
    grave.unlink(missing_ok=True)


def _renew(held: Lease, over: threading.Event) -> None:
    while not over.wait(RENEW_S):
        holder = _holder(held.path)
        if holder and holder != held.me:
            return
        # a disk that stumbles may be well again at the next turn
        with suppress(OSError):
            os.utime(held.path)
