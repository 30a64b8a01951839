"""A launch to the archive of the same name, preserved_data/<name>_<YYYYMMDD_HHMMSS>/; layout: archive.py.

It is written aside, its checksums last, and renamed into place: whatever dies, no half archive has an
archive's name. Left out are cache/, locks, drafts, and every checkpoint but the best weights.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from latentbridge.errors import RunError
from latentbridge.launch.archive import (
    PARTIAL,
    RECORD,
    REPLACED,
    SUMS,
    copy_file,
    hash_file,
    lock_root,
    read_sums,
    restore,
    sync_tree,
    verify,
    write_index,
)
from latentbridge.launch.record import Launch
from latentbridge.rundir import RunDir, read_json, sync_folder, write_atomic, write_json

__all__ = ["preserve", "restore", "verify", "write_index"]

log = logging.getLogger(__name__)

LOCKS = ("lock", "pool.lock", "finish.lock", "worker.lock", "rank.lock")
# best weights above this, over all runs, are left out unless asked for: archives are meant for git
MAX_CHECKPOINT_BYTES = 64 * 2**20


def preserve(
    launch_folder: Path,
    archive_root: Path,
    *,
    keep_checkpoints: bool | None = None,
    leave_out: Sequence[str] = (),
    allow_unfinished: bool = False,
) -> Path:
    """Archive a launch under its own name; an unchanged one is left as it is, a changed one replaced.

    keep_checkpoints: best weights go in (True), stay out (False), or go in below 64 MB in total (None)
    leave_out: shell patterns of files that stay out, and are named in archive.json
    allow_unfinished: also archive runs that neither finished nor failed; their state is recorded
    RunError: unfinished runs, an archive that knows more than the launch, a full disk
    """
    launch_folder = launch_folder.resolve()
    runs = _describe_runs(launch_folder)
    unfinished = [run["name"] for run in runs if run["state"] == "unfinished"]
    if unfinished and not allow_unfinished:
        raise RunError(
            f"{launch_folder}: {len(unfinished)} runs neither finished nor failed: {', '.join(unfinished)}. "
            "Wait for them, cancel them, or allow unfinished runs in the archive."
        )
    archive_root.mkdir(parents=True, exist_ok=True)
    archive = archive_root / launch_folder.name
    with lock_root(archive_root):
        try:
            _clean_up(archive)
            files, left_out = _select(launch_folder, keep_checkpoints, leave_out)
            if archive.exists():
                if _is_copy_of(archive, files):
                    log.info("%s is unchanged since it was preserved; nothing to do", archive)
                    return archive
                _refuse_loss(archive, runs)
            _write(archive.with_name(archive.name + PARTIAL), files, runs, left_out)
        except OSError as error:
            raise RunError(
                f"{archive}: preserving stopped at {error.filename} ({error.strerror}). "
                "No archive was changed; preserve again once that is put right."
            ) from error
        _rename_into_place(archive)
    log.info("%s: preserved %d files of %d runs", archive, len(files), len(runs))
    return archive


def _describe_runs(launch_folder: Path) -> list[dict[str, Any]]:
    """Every run of the plan with how it ended."""
    described = []
    for run in Launch(launch_folder).plan["runs"]:
        folder = RunDir(launch_folder / run["name"])
        marker = folder.read_marker()
        described.append(
            {
                **{key: run[key] for key in ("name", "cell", "seed", "id")},
                "state": folder.state or "unfinished",
                "cause": marker.get("cause") or marker.get("reason"),
            }
        )
    return described


def _select(
    launch_folder: Path, keep_checkpoints: bool | None, patterns: Sequence[str]
) -> tuple[dict[str, Path], list[str]]:
    """What goes into the archive, by its name there, and what stays out, in words."""
    left_out: list[str] = []
    files = dict(_walk(launch_folder, "", (), left_out))
    unwanted: list[str] = []
    for pattern in patterns:
        matching = [name for name in files if fnmatchcase(name, pattern)]
        if not matching:
            raise RunError(
                f"{launch_folder}: no file matches '{pattern}', which is to stay out; nothing was archived. "
                "Patterns are of paths below the launch, such as '*-s1235/eval_samples*'"
            )
        unwanted += matching
    weights = [name for name in files if name.split("/")[1:2] == ["checkpoints"]]
    if keep_checkpoints is None:
        keep_checkpoints = sum(files[name].stat().st_size for name in weights) < MAX_CHECKPOINT_BYTES
    if not keep_checkpoints:
        unwanted += weights
    for name in dict.fromkeys(unwanted):
        left_out.append(name)
        del files[name]
    return files, left_out


def _walk(
    folder: Path, prefix: str, above: tuple[str, ...], left_out: list[str]
) -> Iterator[tuple[str, Path]]:
    """Files of a launch folder under the names of an archive; follows links, except in circles."""
    above = (*above, os.path.realpath(folder))
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = prefix + entry.name
        if not _belongs(name):
            left_out.append(name)
        elif entry.is_dir() and os.path.realpath(entry) in above:
            left_out.append(f"{name}: a link in a circle")
        elif entry.is_dir():
            yield from _walk(Path(entry), name + "/", above, left_out)
        elif entry.is_file() and "\n" not in name:
            yield name, Path(entry)
        else:
            left_out.append(f"{name!r}: a link to nothing, a device, or a name with a line break")


def _belongs(name: str) -> bool:
    """Whether a launch folder's file or folder is a result; caches, locks and drafts are not."""
    parts = name.split("/")
    if parts[0] == "code":
        return "assets" not in parts  # data and weights of the package itself; every clone has them
    if parts[1:2] == ["checkpoints"] and parts[2:]:
        return parts[2] == "best"
    return name not in ("cache", SUMS, RECORD) and not parts[-1].startswith(".") and parts[-1] not in LOCKS


def _is_copy_of(archive: Path, files: dict[str, Path]) -> bool:
    """Whether an archive is whole and holds exactly these files."""
    if verify(archive):
        return False
    sums, _ = read_sums(archive)
    return sums.keys() - {RECORD} == files.keys() and all(
        hash_file(path) == sums[name] for name, path in files.items()
    )


def _refuse_loss(archive: Path, runs: list[dict[str, Any]]) -> None:
    done = {run["name"] for run in runs if run["state"] == "DONE"}
    for run in read_json(archive / RECORD).get("runs", []):
        if run.get("state") == "DONE" and run.get("name") not in done:
            raise RunError(
                f"{archive}: holds run '{run.get('name')}' as DONE, which the launch no longer does; "
                "replacing the archive would lose it. Move the archive elsewhere first."
            )


def _write(partial: Path, files: dict[str, Path], runs: list[dict[str, Any]], left_out: list[str]) -> None:
    """Fill `partial`, checksums last, so that it verifies only once everything is on disk."""
    partial.mkdir()
    sums = {name: copy_file(path, partial / name) for name, path in files.items()}
    record = {
        "preserved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": runs,
        "left_out": left_out,
    }
    write_json(partial / RECORD, record)
    sums[RECORD] = hash_file(partial / RECORD)
    sync_tree(partial)
    lines = [sums[name].encode() + b"  " + os.fsencode(name) + b"\n" for name in sorted(sums)]
    write_atomic(partial / SUMS, b"".join(lines))


def _rename_into_place(archive: Path) -> None:
    """Give the finished partial the archive's name; an older archive stays whole until then."""
    old = archive.with_name(archive.name + REPLACED)
    if archive.exists():
        os.rename(archive, old)
    os.rename(archive.with_name(archive.name + PARTIAL), archive)
    sync_folder(archive.parent)
    shutil.rmtree(old, ignore_errors=True)


def _clean_up(archive: Path) -> None:
    """Undo what a killed preserve left beside an archive."""
    old = archive.with_name(archive.name + REPLACED)
    if old.exists() and not archive.exists():
        os.rename(old, archive)
    for left in (old, archive.with_name(archive.name + PARTIAL)):
        if left.exists():
            shutil.rmtree(left)
