"""How anything becomes an archive: written aside, its checksums last, and renamed into place.

Whatever dies, no half archive has an archive's name, and none that verifies lacks a file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latentbridge.errors import RunError
from latentbridge.launch.archive import (
    PARTIAL,
    RECORD,
    REPLACED,
    SUMS,
    copy_file,
    lock_root,
    read_packed,
    read_sums,
    verify,
)
from latentbridge.rundir import PACKED, hash_file, sync_disk, sync_folder, write_atomic, write_json


def walk(
    folder: Path, left_out: list[str], belongs: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Path]]:
    """Files of a folder under the names of an archive; follows links, except in circles."""
    yield from _walk(folder, "", (), left_out, belongs)


def _walk(
    folder: Path, prefix: str, above: tuple[str, ...], left_out: list[str], belongs: Callable[[str], bool]
) -> Iterator[tuple[str, Path]]:
    above = (*above, os.path.realpath(folder))
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = prefix + entry.name
        if not belongs(name):
            left_out.append(name)
        elif entry.is_dir() and os.path.realpath(entry) in above:
            left_out.append(f"{name}: a link in a circle")
        elif entry.is_dir():
            yield from _walk(Path(entry), name + "/", above, left_out, belongs)
        elif entry.is_file() and "\n" not in name:
            yield name, Path(entry)
        else:
            left_out.append(f"{name!r}: a link to nothing, a device, or a name with a line break")


@contextmanager
def writing(archive: Path) -> Iterator[None]:
    """Be the one that writes beside and at `archive`; RunError where the disk says no."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with lock_root(archive.parent):
        try:
            _clean_up(archive)
            yield
        except OSError as error:
            raise RunError(
                f"{archive}: preserving stopped at {error.filename} ({error.strerror}). "
                "No archive was changed; preserve again once that is put right."
            ) from error


def is_copy_of(archive: Path, files: dict[str, Path], packed: Collection[str]) -> bool:
    """Whether an archive is whole and holds exactly these files, and exactly `packed` compressed."""
    return not verify(archive) and was_made_of(archive, files, packed)


def was_made_of(archive: Path, files: dict[str, Path], packed: Collection[str] = ()) -> bool:
    """Whether the sums of an archive, whose own files may be damaged, are those of exactly these files."""
    content = read_packed(archive)
    stored = {RECORD, *(name + PACKED for name in content)}
    held = {name: digest for name, digest in read_sums(archive)[0].items() if name not in stored} | content
    return (
        content.keys() == _packable(files, packed)
        and held.keys() == files.keys()
        and all(hash_file(path) == held[name] for name, path in files.items())
    )


def deposit(
    archive: Path, files: dict[str, Path], record: dict[str, Any], packed: Collection[str] = ()
) -> None:
    """Make `archive` of these files, in place of an older one; inside `writing`.

    files: by their names in the archive;  packed: those of them that are kept as NAME.gz
    """
    partial = archive.with_name(archive.name + PARTIAL)
    partial.mkdir()
    sums: dict[str, str] = {}
    content: dict[str, str] = {}
    packable = _packable(files, packed)
    for name, path in files.items():
        if name in packable:
            content[name] = copy_file(path, partial / (name + PACKED), packs=True)
            sums[name + PACKED] = hash_file(partial / (name + PACKED))
        else:
            sums[name] = copy_file(path, partial / name)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(partial / RECORD, {"preserved_at": when, **record, "compressed": content})
    sums[RECORD] = hash_file(partial / RECORD)
    # one call for all files: to wait for each takes 5 ms of a disk
    sync_disk(partial)
    lines = [sums[name].encode() + b"  " + os.fsencode(name) + b"\n" for name in sorted(sums)]
    write_atomic(partial / SUMS, b"".join(lines))
    _rename_into_place(archive)


def _packable(files: dict[str, Path], packed: Collection[str]) -> set[str]:
    """Those of `packed` whose compressed name is free."""
    return {name for name in packed if name in files and name + PACKED not in files}


def _rename_into_place(archive: Path) -> None:
    """Give the finished partial the archive's name; an older archive stays whole until then."""
    old = archive.with_name(archive.name + REPLACED)
    if archive.exists():
        os.rename(archive, old)
    os.rename(archive.with_name(archive.name + PARTIAL), archive)
    sync_folder(archive.parent)
    shutil.rmtree(old, ignore_errors=True)


def _clean_up(archive: Path) -> None:
    """Undo what a killed writer left beside an archive."""
    old = archive.with_name(archive.name + REPLACED)
    if old.exists() and not archive.exists():
        os.rename(old, archive)
    for left in (old, archive.with_name(archive.name + PARTIAL)):
        if left.exists():
            shutil.rmtree(left)
