"""Twins: the same experiment in an earlier launch, whose results are taken over, once it is done, as our own.

So a spec in which one cell was changed computes that cell, and no other a second time. The same means equal
name of the launch, effective config, code and packages, and that all it needs is the same too.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from latentbridge.errors import DamageError
from latentbridge.launch.environment import versions
from latentbridge.launch.plan import Plan, code_hash
from latentbridge.launch.record import PLAN, PlannedRun
from latentbridge.rundir import STATES, RunDir, link_or_copy, read_object, sync_disk

# stays with the launch that computed it, or is written anew
_LEFT = ("attempts", "*.lock", "manifest.json", *STATES, ".*")


def find_twins(plan: Plan, folder: Path) -> tuple[dict[str, list[str]], int]:
    """Where earlier launches have runs of this plan, as LAUNCH/RUN by name; how many are done by other code.

    folder: the one that holds all launches
    """
    files = sorted(folder.glob(f"{plan.spec.name}_*/{PLAN}"))
    earlier = [(file.parent, read_object(file, "name", "runs", "code")) for file in files]
    earlier = [(path, record) for path, record in earlier if record["name"] == plan.spec.name]
    if not earlier:
        return {}, 0
    code, packages = code_hash(plan.root), versions()
    places: dict[str, list[str]] = {}
    outdated = set()
    for path, record in earlier:
        is_same = record["code"]["hash"] == code and record.get("versions") == packages
        for run in record["runs"]:
            if is_same:
                places.setdefault(run["id"], []).append(f"{path.name}/{run['name']}")
            elif RunDir(path / run["name"]).is_done:
                outdated.add(run["id"])
    found = {cell.name: places[cell.id] for cell in plan.cells if cell.id in places}
    # what it read of the runs it needs must be what they are now
    needs = {cell.name: cell.needs for cell in plan.cells}
    while others := [name for name in found if not found.keys() >= {*needs[name]}]:
        for name in others:
            del found[name]
    return found, sum(cell.id in outdated for cell in plan.cells if cell.name not in found)


def take_over(run: PlannedRun) -> bool:
    """Make this run DONE by what an earlier launch has of it, attempts apart; False if none is done there.

    For the holder of the launch's lease. Killed at any point, it is done again.
    """
    source = next((other for other in run.twins if other.is_done and is_sound(other)), None)
    if source is None or run.folder.is_done:
        return False
    draft = run.folder.path / ".taken"
    shutil.rmtree(draft, ignore_errors=True)
    ignored = shutil.ignore_patterns(*_LEFT)
    shutil.copytree(source.path, draft, symlinks=True, ignore=ignored, copy_function=_copy)
    for entry in draft.iterdir():
        target = run.folder.path / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(entry, target)
    draft.rmdir()
    place = f"{source.path.parent.name}/{source.name}"
    own = run.folder.read_manifest()
    kept = {key: own[key] for key in ("name", "cell", "overrides")}
    run.folder.write_manifest(source.read_manifest() | kept | {"taken_from": place})
    # the marker must not reach the disk before what it stands for
    sync_disk(run.folder.path)
    run.folder.mark("DONE", source.read_marker() | {"taken_from": place})
    return True


def is_sound(other: RunDir) -> bool:
    """Whether what tells of a run's results is not damaged."""
    try:
        other.read_manifest()
        other.read_marker()
    except DamageError:
        return False
    return True


def say_damaged(run: PlannedRun) -> list[str]:
    """Which twins of a run that starts now had its results, and why they are computed afresh."""
    damaged = [twin.path for twin in run.twins if twin.is_done and not is_sound(twin)]
    return [f"{run.name} is computed afresh: {path} is damaged" for path in damaged]


def _copy(source: str, target: str) -> None:
    # weights are never written into, so two runs may share them
    if "checkpoints" in Path(source).parts:
        link_or_copy(Path(source), Path(target))
    else:
        shutil.copy2(source, target)
