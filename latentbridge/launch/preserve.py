"""A launch to the archive of the same name, preserved_data/<name>_<YYYYMMDD_HHMMSS>/; layout: archive.py.

Every run goes in, however it ended, with its state and cause; what is kept of it: keep.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from latentbridge.config import dump
from latentbridge.errors import DamageError, RunError
from latentbridge.launch.archive import RECORD, list_files, read_record, restore, verify
from latentbridge.launch.deposit import deposit, is_copy_of, writing
from latentbridge.launch.index import write_index
from latentbridge.launch.keep import Keep, idle_patterns, is_checkpoint, refuse_idle, select, to_compress
from latentbridge.launch.record import Launch, known
from latentbridge.launch.status import ENDED, RunStatus
from latentbridge.rundir import PACKED, RunDir, read_json

__all__ = ["Keep", "preserve", "restore", "verify", "write_index"]

log = logging.getLogger(__name__)

# of the plan, for the manifest
TOLD = ("name", "id", "spec_file", "created", "command", "job")


def preserve(
    launch_folder: Path,
    archive_root: Path,
    *,
    keep: Keep | None = None,
    ends: Mapping[str, RunStatus] | None = None,
    allow_unfinished: bool = False,
) -> Path:
    """Archive a launch under its own name; an unchanged one is left as it is, a changed one replaced.

    keep: what goes in; None: as was asked before of its archive, else as its spec says
    ends: what the queue and the ledger say of runs, for those that left no marker
    allow_unfinished: also archive runs that have not ended; their state is recorded
    RunError: unfinished runs, an archive that knows more than the launch, a full disk
    """
    launch_folder = launch_folder.resolve()
    runs = _describe_runs(launch_folder, ends or {})
    if not allow_unfinished:
        _refuse_unfinished(launch_folder, runs)
    if keep:
        refuse_idle(keep, launch_folder)
    archive = archive_root / launch_folder.name
    with writing(archive):
        plan = Launch(launch_folder).plan
        asked = dump(keep) if keep else _asked_before(archive)
        keep = known(Keep, asked or plan.get("preserve", {}))
        files, left_out = select(launch_folder, keep)
        packed = to_compress(files, keep)
        idle = idle_patterns(keep, launch_folder)
        if archive.exists():
            if is_copy_of(archive, files, packed) and idle == read_record(archive).get("idle", []):
                log.info("%s is unchanged since it was preserved; nothing to do", archive)
                return archive
            _refuse_loss(archive, runs, {*files, *left_out})
        told = {key: plan[key] for key in TOLD if key in plan}
        record = {**told, "preserve": dump(keep), "asked": bool(asked), "runs": runs, "left_out": left_out}
        record["idle"] = idle
        deposit(archive, files, record, packed)
    log.info("%s: preserved %d files of %d runs", archive, len(files), len(runs))
    return archive


def _describe_runs(launch_folder: Path, ends: Mapping[str, RunStatus]) -> list[dict[str, Any]]:
    """Every run of the plan with how it ended."""
    described = []
    for run in Launch(launch_folder).plan["runs"]:
        folder = RunDir(launch_folder / run["name"])
        record = {key: run[key] for key in ("name", "cell", "seed", "id")}
        record |= {"state": folder.state or "unfinished", "attempts": len(folder.list_attempts())}
        try:
            marker = folder.read_marker()
            record["cause"] = marker.get("cause") or marker.get("reason")
        except DamageError as error:  # its name says how the run ended all the same
            record["cause"] = str(error).removeprefix(f"{launch_folder}/")
        end = ends.get(run["name"])
        if end:
            record["gpu_hours"] = round(end.gpu_hours, 4)
            if folder.state not in ("DONE", "FAILED") and end.phase in ENDED:
                record |= {"state": end.phase, "cause": record["cause"] or end.cause or end.detail}
        described.append(record)
    return described


def _refuse_unfinished(launch_folder: Path, runs: list[dict[str, Any]]) -> None:
    if names := [run["name"] for run in runs if run["state"] == "unfinished"]:
        raise RunError(
            f"{launch_folder}: {len(names)} runs neither finished nor failed: {', '.join(names)}. "
            "Wait for them, cancel them, or allow unfinished runs in the archive."
        )


def _asked_before(archive: Path) -> dict[str, Any]:
    """The rules that somebody gave for the archive by hand; empty where its spec's were good enough.

    They hold on, so that a second preserve changes nothing.
    """
    record = read_record(archive)
    return dict(record["preserve"]) if record.get("asked") else {}


def _refuse_loss(archive: Path, runs: list[dict[str, Any]], names: set[str]) -> None:
    """RunError where the archive holds results that the launch no longer has."""
    remedy = "replacing the archive would lose it. Move the archive elsewhere first."
    held = {marker.parent.name for marker in archive.glob("*/DONE")}
    with suppress(DamageError):  # then its markers alone say what it holds
        held |= {run["name"] for run in read_json(archive / RECORD)["runs"] if run["state"] == "DONE"}
    for name in sorted(held - {run["name"] for run in runs if run["state"] == "DONE"}):
        raise RunError(f"{archive}: holds run '{name}' as DONE, which the launch no longer does; {remedy}")
    for name in list_files(archive):
        above = {str(folder) for folder in PurePath(name).parents}
        if is_checkpoint(name) and not {name, name.removesuffix(PACKED), *above} & names:
            raise RunError(f"{archive}: holds {name}, which the launch no longer has; {remedy}")
