"""`latentbridge import`: a folder of somebody else's results to an archive, byte for byte, source untouched.

preserved_data/<folder's name, with a stamp>/ holds every file as it is; archive.json says which layout, which
runs were found and with which numbers, what could not be read, and what was left out (links to nothing).
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from latentbridge.audit.seed_folders import SeedFolder, read_seed_folder
from latentbridge.errors import RunError
from latentbridge.launch.archive import RECORD, SUMS, read_record, verify
from latentbridge.launch.deposit import deposit, is_copy_of, walk, was_made_of, writing
from latentbridge.metric import Metric
from latentbridge.stamps import is_stamped, stamped

log = logging.getLogger(__name__)


def adopt(folder: Path, archive_root: Path) -> Path:
    """Archive a folder of results; one that is there already is left as it is.

    RunError: no such folder, a file that cannot be read, an archive of that name that holds something else
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder")
    left_out: list[str] = []
    files = dict(walk(folder, left_out))
    if not files:
        raise RunError(f"{folder}: holds no file; nothing was imported")
    if taken := sorted({SUMS, RECORD} & files.keys()):
        raise RunError(
            f"{folder}: has a {taken[0]} of its own, so it seems to be an archive already. Verify it, "
            "and copy it as it is"
        )
    archive = archive_root / _archive_name(folder, files)
    with writing(archive):
        if archive.exists():
            if is_copy_of(archive, files, ()):
                log.info("%s is unchanged since it was imported; nothing to do", archive)
                return archive
            _refuse_loss(archive, folder, files)
        deposit(archive, files, _manifest(folder, read_seed_folder(folder), left_out))
    return archive


def _refuse_loss(archive: Path, folder: Path, files: dict[str, Path]) -> None:
    """RunError unless the archive is a damaged one of these very files, which makes it whole again."""
    problems = verify(archive)
    if not problems:
        raise RunError(
            f"{archive}: is whole, and holds other files than {folder}. Move one of them elsewhere"
        )
    is_own = read_record(archive).get("imported_from") == folder.name
    if not (is_own and was_made_of(archive, files)):
        raise RunError(
            f"{archive}: is damaged ({problems[0]}), and was not imported from {folder} as it is now. What "
            "it still holds may be all that is left: move one of them elsewhere"
        )


def _archive_name(folder: Path, files: dict[str, Path]) -> str:
    """The folder's own name; one without a stamp is given that of its newest file, in UTC."""
    if is_stamped(folder.name):
        return folder.name
    newest = max(os.stat(path).st_mtime for path in files.values())
    return stamped(folder.name, time.gmtime(newest))


def _manifest(folder: Path, found: SeedFolder, left_out: list[str]) -> dict[str, Any]:
    return {
        "imported_from": folder.name,
        "why": f"imported; layout: {found.layout}",
        "layout": found.layout,
        "headline": _headline(found),
        "verdict": "none: numbers as they were found, not checked against controls",
        "runs": [
            {
                "name": run.name,
                "layout": run.layout,
                "state": "DONE" if run.is_finished else "unfinished",
                "cause": run.why,
                "metrics": {name: metric.as_record() for name, metric in run.metrics.items()},
            }
            for run in found.runs
        ],
        "unread": found.unread,
        "left_out": left_out,
    }


def _headline(found: SeedFolder) -> str:
    """The numbers of a single run; of several, how many were measured."""
    metrics: list[tuple[str, Metric]] = [item for run in found.runs for item in run.metrics.items()]
    if len(found.runs) == 1:
        return ", ".join(f"{name} {metric}" for name, metric in metrics)
    measured = sum(any(m.value is not None for m in run.metrics.values()) for run in found.runs)
    return f"{measured} of {len(found.runs)} runs have a number" if found.runs else "no run was recognised"
