"""One run once more, from the code that it ran: the exact commands, and whether its numbers come out."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import Any

from latentbridge.launch.environment import packages
from latentbridge.launch.node.attempt import ranks_of
from latentbridge.launch.node.torchrun import child_environment, torchrun_command
from latentbridge.launch.plan import code_hash
from latentbridge.launch.record import Launch, PlannedRun
from latentbridge.launch.view.overview import shortened
from latentbridge.metric import is_seconds
from latentbridge.rundir import RunDir, last_record, read_jsonl
from latentbridge.stamps import stamped

FOLDER = "reproduced"
EXIT_DIFFERS = 1


def reproduce(launch: Launch, run_name: str, execute: bool) -> int:
    """Print the commands that repeat a run in a fresh folder, and what is no longer as it was.

    execute: run them here, and compare the numbers with the original's
    Returns 0, or 1 if the repetition failed or came out differently.
    """
    run = launch.run(run_name)
    copy = RunDir(launch.path.parent / FOLDER / stamped(run.name))
    for line in provenance(launch):
        _say(line)
    command = _command(launch, run, copy)
    environment = child_environment(launch.cluster, launch.code, _threads(launch, run))
    _say("\n".join(_as_shell(launch, run, copy, command, environment)))
    if not execute:
        return 0
    _make(run, copy)
    answer = subprocess.run(command, env=environment, check=False)
    if answer.returncode or not copy.is_done:
        _say(
            f"the repetition ended with exit code {answer.returncode}; {copy.path} holds what there is of it"
        )
        original = f"{run.folder.state or 'not finished'} {run.folder.read_marker().get('message', '')}"
        _say(f"the original is {original.strip()}")
        return EXIT_DIFFERS
    is_equal, lines = compare(run.folder, copy)
    for line in lines:
        _say(line)
    return 0 if is_equal else EXIT_DIFFERS


def provenance(launch: Launch) -> list[str]:
    """Which code and packages a launch ran, and a warning for each that is no longer the same."""
    code = launch.plan["code"]
    dirty = ", with uncommitted changes (code/uncommitted.diff)" if code["dirty"] else ""
    lines = [f"# code: {launch.code}, commit {code['sha'] or 'unknown'}{dirty}"]
    if code_hash(launch.code) != code["hash"]:
        lines.append(
            "# WARNING: this copy was edited after the launch; its numbers may differ for that alone"
        )
    there = set((launch.path / "packages.txt").read_text().split())
    here = set(packages())
    if there != here:
        gone, new = _versions(there - here), _versions(here - there)
        changes = [
            f"{name} {gone.get(name, 'absent')} -> {new.get(name, 'absent')}" for name in sorted(gone | new)
        ]
        lines.append(
            f"# WARNING: {len(changes)} packages differ from those of the launch: {shortened(changes)}"
        )
    return lines


def _versions(pins: set[str]) -> dict[str, str]:
    return {name: version for name, _, version in (pin.partition("==") for pin in pins)}


def _command(launch: Launch, run: PlannedRun, copy: RunDir) -> list[str]:
    # all ranks side by side on this machine, as many as the run had
    resources = run.resources.model_copy(update={"nodes": 1, "gpus_per_node": ranks_of(run)})
    return torchrun_command(launch.code / "jobs" / f"{run.job}.py", copy.config, resources)


def _threads(launch: Launch, run: PlannedRun) -> int:
    """How many threads a rank had; sums in another order round differently."""
    if launch.is_slurm:
        return run.resources.cpus_per_gpu
    parallel = min(launch.cluster.max_parallel, len(launch.run_names))
    return max(1, (os.cpu_count() or 1) // (parallel * ranks_of(run)))


def _as_shell(
    launch: Launch, run: PlannedRun, copy: RunDir, command: list[str], environment: dict[str, str]
) -> list[str]:
    ours = (
        "PYTHONPATH",
        "PYTHONSAFEPATH",
        "OMP_NUM_THREADS",
        "TOKENIZERS_PARALLELISM",
        *launch.cluster.environment,
    )
    settings = [f"{name}={shlex.quote(environment[name])}" for name in ours]
    nodes = run.resources.nodes
    return [
        *([f"# its ranks were on {nodes} nodes; here they share one machine"] if nodes > 1 else []),
        *launch.cluster.setup,
        f"mkdir -p {shlex.quote(str(copy.path))}",
        shlex.join(["cp", str(run.folder.config), str(run.folder.manifest), f"{copy.path}/"]),
        f"env {' '.join(settings)} \\\n  {shlex.join(command)}",
    ]


def _make(run: PlannedRun, copy: RunDir) -> None:
    copy.path.mkdir(parents=True)
    copy.config.write_bytes(run.folder.config.read_bytes())
    # the manifest says how often the micro-batch was halved
    copy.write_manifest(run.folder.read_manifest())


def compare(original: RunDir, copy: RunDir) -> tuple[bool, list[str]]:
    """Whether final metrics and last losses came out the same, and a line for each that did not."""
    before, after = _numbers(original), _numbers(copy)
    if not original.is_done or not before:
        return False, [
            f"{original.path} is not done or logged no number, so there is nothing to compare with"
        ]
    differing = [name for name in sorted(before | after) if before.get(name) != after.get(name)]
    if not differing:
        return True, [f"equal to the last digit: {', '.join(before)}"]
    return False, [f"{name}: {_difference(before.get(name), after.get(name))}" for name in differing]


def _numbers(run: RunDir) -> dict[str, float | None]:
    """Last losses and final metrics by name, except times; None: the metric was void."""
    found: dict[str, float | None] = {}
    last = last_record(run.train_log) or {}
    losses = {"loss": last.get("loss"), **(last.get("losses") or {})}
    found |= {f"{name} at update {last['step']}": loss for name, loss in losses.items() if loss is not None}
    for record in read_jsonl(run.metrics_log):
        if str(record["label"]) == "final":
            metrics: dict[str, Any] = record["metrics"]
            found |= {
                f"final {name}": metric.get("value")
                for name, metric in metrics.items()
                if not is_seconds(name)
            }
    return found


def _difference(before: float | None, after: float | None) -> str:
    change = "" if before is None or after is None else f", differs by {after - before:.3g}"
    return f"{before} in the original, {after} now{change}"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
