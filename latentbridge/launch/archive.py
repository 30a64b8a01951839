"""What an archive is: checksums over every file, how they are verified, and how a launch is restored.

preserved_data/<name>_<YYYYMMDD_HHMMSS>/
  plan.json code/ <run folders> summary.log ...   as in the launch folder, links replaced by what they lead to
  archive.json          when, by which command and rules, which runs and how they ended, what was left out;
                        idle: patterns of the rules that no file matched
  SHA256SUMS                                      every file above; `sha256sum -c SHA256SUMS` reads it too
What a rule says is kept as FILE.gz (archive.json has the sums of FILE), and restored as FILE.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path
from typing import IO, Any

from latentbridge.errors import RunError
from latentbridge.rundir import PACKED, hash_file, hold_lock, read_json, sync_disk, sync_folder

SUMS, RECORD = "SHA256SUMS", "archive.json"
# what a killed preserve or restore may leave beside an archive
PARTIAL, REPLACED = ".partial", ".replaced"
_CHUNK_BYTES = 2**20
_GZIP_LEVEL = 6
# another launch may be preserving its checkpoints
LOCK_PATIENCE_S = 1800
_SUM_LINE = re.compile(rb"([0-9a-f]{64})  ([^\n]+)\n")


@dataclass(frozen=True)
class Problem:
    """One file of an archive, and what is wrong with it."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def verify(archive: Path) -> list[Problem]:
    """Every damaged, missing and extra file of an archive; empty for a whole one."""
    if not archive.is_dir():
        raise RunError(f"{archive}: no such archive")
    if archive.name.endswith(PARTIAL):
        return [Problem(".", "preserving it was interrupted; preserve the launch again")]
    if not (archive / SUMS).is_file():
        return [Problem(SUMS, "missing: nothing here can be verified")]
    sums, problems = read_sums(archive)
    for name, digest in sums.items():
        path = archive / name
        try:
            if not os.path.lexists(path):
                problems.append(Problem(name, "missing"))
            elif path.is_symlink() or not path.is_file():
                problems.append(Problem(name, "not a plain file"))
            elif hash_file(path) != digest:
                problems.append(Problem(name, "damaged: its content is not what was preserved"))
        except OSError as error:
            problems.append(Problem(name, f"cannot be read ({error.strerror})"))
    extra = set(_present(archive)) - {*sums, SUMS}
    problems += [Problem(name, "extra: not in SHA256SUMS") for name in sorted(extra)]
    if RECORD not in sums:
        problems.append(Problem(RECORD, "not in SHA256SUMS"))
    return problems


def restore(archive: Path, target: Path) -> Path:
    """Write a verified archive's launch folder to `target`, which must not exist yet; returns it."""
    if problems := verify(archive):
        shown = "; ".join(str(problem) for problem in problems[:5])
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise RunError(f"{archive}: does not verify, so nothing was restored: {shown}{more}")
    if target.exists():
        raise RunError(f"{target}: already exists; restore to a folder that does not")
    partial = target.with_name(target.name + PARTIAL)
    sums, _ = read_sums(archive)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        content = read_packed(archive)
        for stored, digest in sums.items():
            name = stored.removesuffix(PACKED)
            is_packed = stored != name and name in content
            wanted, target_name = (content[name], name) if is_packed else (digest, stored)
            if stored == RECORD:
                continue
            if copy_file(archive / stored, partial / target_name, unpacks=is_packed) != wanted:
                raise RunError(f"{archive / stored}: changed while it was restored; verify the archive again")
        sync_disk(partial)
        os.rename(partial, target)
        sync_folder(target.parent)
    except OSError as error:
        raise RunError(f"{target}: restoring stopped at {error.filename} ({error.strerror})") from error
    return target


def read_sums(archive: Path) -> tuple[dict[str, str], list[Problem]]:
    """File name -> sha256 of an archive, and the lines that say neither."""
    sums: dict[str, str] = {}
    problems: list[Problem] = []
    with open(archive / SUMS, "rb") as file:
        for number, line in enumerate(file, start=1):
            found = _SUM_LINE.fullmatch(line)
            name = os.fsdecode(found.group(2)) if found else ""
            if found is None or name.startswith("/") or ".." in name.split("/"):
                problems.append(Problem(SUMS, f"damaged: line {number} is not a checksum and a file name"))
            else:
                sums[name] = found.group(1).decode()
    return sums, problems


def list_files(archive: Path) -> dict[str, str]:
    """File name -> sha256 of an archive as far as they can be read; empty where they are missing."""
    return read_sums(archive)[0] if (archive / SUMS).is_file() else {}


def read_record(archive: Path) -> dict[str, Any]:
    """What an archive says of itself; empty where that is missing, or not as it was written."""
    path = archive / RECORD
    is_intact = path.is_file() and list_files(archive).get(RECORD) == hash_file(path)
    return dict(read_json(path)) if is_intact else {}


def read_packed(archive: Path) -> dict[str, str]:
    """Name -> sha256, both without compression, of the files that a whole archive keeps compressed."""
    return dict(read_json(archive / RECORD).get("compressed", {}))


def _present(archive: Path) -> Iterator[str]:
    """Every file and link in an archive, by its name there."""
    for folder, below, names in os.walk(archive):
        links = [name for name in below if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            yield os.path.relpath(os.path.join(folder, name), archive)


def copy_file(source: Path, target: Path, *, packs: bool = False, unpacks: bool = False) -> str:
    """Copy one file; returns the sha256 of its content, uncompressed.

    packs, unpacks: with gzip on the way; equal content makes equal files
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open(source, "rb") as stored, open(target, "xb") as file, ExitStack() as streams:
        reader: IO[bytes] | GzipFile = streams.enter_context(GzipFile(fileobj=stored)) if unpacks else stored
        writer: IO[bytes] | GzipFile = file
        if packs:
            writer = streams.enter_context(GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0))
        while chunk := reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            digest.update(chunk)
    shutil.copystat(source, target)
    return digest.hexdigest()


@contextmanager
def lock_root(archive_root: Path) -> Iterator[None]:
    """One writer at a time in an archive root; the others wait, and the kernel frees a dead one's lock."""
    with hold_lock(archive_root / ".lock", LOCK_PATIENCE_S):
        yield
