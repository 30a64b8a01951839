"""A spec and a cluster profile to a plan, and a plan to a launch folder; nothing is submitted here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from latentbridge.config import dump, to_yaml
from latentbridge.errors import ConfigError
from latentbridge.launch.cells.expand import Cell, read_cells
from latentbridge.launch.cluster import Cluster, Resources, load_cluster, resources_for
from latentbridge.launch.environment import packages, versions
from latentbridge.launch.lease import process_space
from latentbridge.launch.ledger import Ledger, Orders
from latentbridge.launch.record import LIMITS, PLAN, Launch, PlannedRun
from latentbridge.launch.slurm.limits import Limits
from latentbridge.launch.spec import Spec, find_spec
from latentbridge.rundir import RunDir, link_or_copy, read_object, sync_disk, sync_folder, write_json
from latentbridge.stamps import stamped

# what a run executes
CODE = ("latentbridge", "jobs")
# above this size a code copy shares the file instead of doubling it; such files are replaced, never edited
HARD_LINK_BYTES = 256 * 1024
# nobody writes a launch folder for so long
DRAFT_LIFE_S = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that would be launched."""

    spec: Spec
    spec_path: Path
    root: Path
    cluster_name: str
    cluster: Cluster
    cells: list[Cell]
    resources: dict[str, Resources]  # by run name

    @property
    def id(self) -> str:
        """Names this set of runs: the same spec asked twice is the same plan."""
        lines = [self.spec.name, self.spec.job, *sorted(f"{cell.name} {cell.id}" for cell in self.cells)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]

    def planned(self, folder: Path) -> list[PlannedRun]:
        """The runs as the launcher and its workers know them, with `folder` as the launch folder."""
        return [
            PlannedRun(
                name=cell.name,
                cell=cell.cell,
                id=cell.id,
                seed=cell.config.seed,
                job=self.spec.job,
                needs=cell.needs,
                resources=self.resources[cell.name],
                folder=RunDir(folder / cell.name),
                best_of=cell.best_of,
                twins=(),
            )
            for cell in self.cells
        ]

    @property
    def total_ranks(self) -> int:
        """Ranks of all runs together."""
        return sum(r.nodes * (r.gpus_per_node or 1) for r in self.resources.values())


def make_plan(argument: str, *, cluster: str | None, settings: list[str], root: Path) -> Plan:
    """Read and check everything that can be checked without touching disk or scheduler."""
    path = find_spec(argument, root)
    spec, cells = read_cells(path, settings, root)
    chosen, profile = load_cluster(cluster or spec.cluster, root)
    if spec.max_parallel is not None:
        profile = profile.model_copy(update={"max_parallel": spec.max_parallel})
    resources = {cell.name: resources_for(profile, cell.resources, f"run '{cell.cell}'") for cell in cells}
    return Plan(
        spec=spec,
        spec_path=path,
        root=root,
        cluster_name=chosen,
        cluster=profile,
        cells=cells,
        resources=resources,
    )


def find_launch(plan: Plan, runs: Path) -> Launch | None:
    """The launch folder made from exactly this plan, if there is one; two would be ambiguous."""
    found = [
        file.parent
        for file in runs.glob(f"{plan.spec.name}_*/{PLAN}")
        if read_object(file, "id")["id"] == plan.id
    ]
    if len(found) > 1:
        names = ", ".join(sorted(folder.name for folder in found))
        raise ConfigError(f"this plan was launched more than once ({names}); say which: --continue runs/NAME")
    return Launch(found[0]) if found else None


def write_launch(
    plan: Plan,
    runs: Path,
    argv: list[str],
    limits: Limits | None,
    twins: Mapping[str, list[str]] = MappingProxyType({}),
    rehearsed: Mapping[str, Any] = MappingProxyType({}),
) -> Launch:
    """Make the launch folder: complete, or not at all.

    twins: by name of a run, the runs of earlier launches that are the same experiment (LAUNCH/RUN)
    rehearsed: by name of a run, what its rehearsal showed
    """
    runs.mkdir(parents=True, exist_ok=True)
    final = _free_name(runs, plan.spec.name)
    draft = runs / f".{final.name}.{_drafter()}.{os.getpid()}"
    draft.mkdir()
    try:
        (draft / "cache").mkdir()
        (draft / "ledger" / "submissions").mkdir(parents=True)
        shutil.copyfile(plan.spec_path, draft / "spec.yaml")
        code = copy_code(plan.root, draft / "code")
        (draft / "packages.txt").write_text("".join(f"{line}\n" for line in packages()))
        shared = {
            "launch": final.name,
            "job": plan.spec.job,
            "code": code,
            "versions": versions(),
            "command": argv,
        }
        for cell in plan.cells:
            _write_run(plan, cell, draft / cell.name, {**shared, "rehearsal": rehearsed.get(cell.name)})
        # from the start: a network disk may go on denying for a while a file that it has denied once
        Ledger(draft).order(Orders())
        if limits:
            write_json(draft / LIMITS, limits.as_record())
        write_json(draft / PLAN, _plan_record(plan, code, argv, versions(), twins))
        # nobody looks into a draft, so its thousands of files reach the disk in one go
        sync_disk(draft)
        os.rename(draft, final)
        sync_folder(runs)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Launch(final)


def _free_name(runs: Path, name: str) -> Path:
    while (final := runs / stamped(name)).exists():
        time.sleep(0.2)  # two launches within one second
    return final


def sweep_drafts(runs: Path, name: str) -> None:
    """Remove launch folders that a killed launcher had not finished; nothing was submitted of them."""
    for draft in runs.glob(f".{name}_*_*.*.*"):
        drafter, _, pid = draft.name.rpartition(".")
        # only of processes that would be seen here
        is_dead = drafter.endswith(f".{_drafter()}") and not Path(f"/proc/{pid}").exists()
        if draft.is_dir() and (is_dead or time.time() - draft.stat().st_mtime > DRAFT_LIFE_S):
            shutil.rmtree(draft, ignore_errors=True)


def _drafter() -> str:
    return hashlib.sha256(process_space().encode()).hexdigest()[:8]


def _write_run(plan: Plan, cell: Cell, folder: Path, shared: dict[str, Any]) -> None:
    folder.mkdir()
    run = RunDir(folder)
    run.config.write_text(to_yaml(cell.settings))
    manifest = {
        "name": cell.name,
        "cell": cell.cell,
        "seed": cell.config.seed,
        "id": cell.id,
        **shared,
        "overrides": cell.overrides,
        "warm_start": dump(cell.config).get("warm_start"),
        "resources": dump(plan.resources[cell.name]),
        "trackers": plan.spec.trackers,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    run.manifest.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def _plan_record(
    plan: Plan,
    code: dict[str, Any],
    argv: list[str],
    versions: dict[str, str | None],
    twins: Mapping[str, list[str]],
) -> dict[str, Any]:
    return {
        "name": plan.spec.name,
        "id": plan.id,
        "spec_file": os.path.relpath(plan.spec_path, plan.root),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": argv,
        "job": plan.spec.job,
        "archives": str(plan.root / "preserved_data"),
        "cluster_name": plan.cluster_name,
        "cluster": dump(plan.cluster),
        "preserve": dump(plan.spec.preserve),
        "retry": dump(plan.spec.retry),
        "notify": dump(plan.spec.notify) if plan.spec.notify else None,
        "hang_timeout_min": plan.spec.hang_timeout_min,
        "budget_gpu_hours": plan.spec.budget_gpu_hours,
        "compare": [dump(comparison) for comparison in plan.spec.compare],
        "trackers": plan.spec.trackers,
        "code": code,
        "versions": versions,
        "runs": [
            {
                "name": cell.name,
                "cell": cell.cell,
                "seed": cell.config.seed,
                "id": cell.id,
                "needs": list(cell.needs),
                "resources": dump(plan.resources[cell.name]),
                "overrides": cell.overrides,
                "best_of": {key: dump(reference) for key, reference in cell.best_of.items()},
                "folder": cell.name,
                "twins": twins.get(cell.name, []),
            }
            for cell in plan.cells
        ],
    }


def refresh(launch: Launch, plan: Plan, is_active: bool) -> list[str]:
    """Bring a launch's plan.json up to what profile and spec now ask of the cluster; returns what changed.

    What the runs compute cannot differ: that would be another plan, hence another launch.
    """
    old = launch.plan
    twins = {run["name"]: run.get("twins", []) for run in old["runs"]}
    new = _plan_record(plan, old["code"], old["command"], old.get("versions", {}), twins)
    new["created"] = old["created"]
    changed = [key for key in new if new[key] != old.get(key)]
    if is_active:
        # a later version of this package may know more settings; those keep their defaults for now
        changed = [key for key in changed if key in old and _differs(new[key], old[key])]
    if changed and is_active:
        raise ConfigError(
            f"{launch.path}: {', '.join(changed)} changed since it was launched, and its runs are still "
            "queued or at work. Cancel them or let them end, then run the same command again"
        )
    if plan.spec.trackers != old.get("trackers", []):
        # jobs read nothing of a launch but their own folder
        for run in launch.runs.values():
            run.folder.write_manifest(run.folder.read_manifest() | {"trackers": plan.spec.trackers})
    if changed:
        write_json(launch.path / PLAN, new)
    return changed


def _differs(new: Any, old: Any) -> bool:
    """Whether a value of a plan has changed, apart from settings that the old one did not have."""
    if isinstance(new, dict) and isinstance(old, dict):
        return any(new.get(key) != old[key] for key in old)
    return bool(new != old)


def code_files(root: Path) -> list[Path]:
    """What a run may execute, relative to the root."""
    found = [path for top in CODE for path in sorted((root / top).rglob("*"))]
    return [path.relative_to(root) for path in found if path.is_file() and "__pycache__" not in path.parts]


def code_hash(root: Path) -> str:
    """Names the code of a checkout or a copy; weights and data have hashes of their own."""
    digest = hashlib.sha256()
    for relative in code_files(root):
        if (root / relative).stat().st_size <= HARD_LINK_BYTES:
            content = (root / relative).read_bytes()
            digest.update(f"{relative}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def copy_code(root: Path, target: Path) -> dict[str, Any]:
    """Copy package and jobs, so that a queued run executes what was launched; returns the code's identity."""
    for relative in code_files(root):
        source, copy = root / relative, target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_size > HARD_LINK_BYTES:
            link_or_copy(source, copy)
        else:
            shutil.copyfile(source, copy)
    sha, diff = _git(root, "rev-parse", "HEAD"), _git(root, "diff", "HEAD", "--", *CODE)
    # new files are in no diff, but in the copy
    changed = _git(root, "status", "--porcelain", "--", *CODE)
    if diff:
        (target / "uncommitted.diff").write_text(diff)
    return {"sha": sha.strip() or None, "dirty": bool(changed), "hash": code_hash(target)}


def _git(root: Path, *words: str) -> str:
    try:
        answer = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return answer.stdout if answer.returncode == 0 else ""
