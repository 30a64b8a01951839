"""What can be known before anything is queued: requests that SLURM would refuse or leave waiting for ever.

Every problem is found in one pass and told in one line: where it was set, what was asked, the rule, a remedy.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from latentbridge.config import Tree
from latentbridge.errors import PreflightError, SchedulerError
from latentbridge.launch.checks.files import find_missing, find_missing_paths, find_risks, name_runs
from latentbridge.launch.checks.names import find_unknown, known_nodes, near
from latentbridge.launch.checks.sizes import find_misfits, find_waits
from latentbridge.launch.cluster import Resources
from latentbridge.launch.plan import Plan
from latentbridge.launch.slurm import NO_SUCH_NODES, call, call_settled, is_full, is_silence
from latentbridge.launch.slurm.limits import Limits


def preflight(plan: Plan, runs: Path, limits: Limits | None, scripts: Mapping[str, str]) -> list[str]:
    """Look at everything a plan needs, SLURM's own opinion last; returns warnings.

    runs: the folder that launch folders are made in;  limits: None where runs execute on this machine
    scripts: the text of each distinct sbatch script, by what a message may call it
    """
    profile = f"slurm/{plan.cluster_name}.yaml"
    problems = list(find_missing(plan.cluster, profile, runs))
    written = {cell.name: cell.written for cell in plan.cells}
    problems += find_missing_paths(
        {cell.name: Tree(cell.settings, {}).flat() for cell in plan.cells},
        lambda run, key: written[run].origin(tuple(key.split("."))),
    )
    problems += _unset_variables(plan)
    if limits is not None:
        problems += _bad_requests(plan, profile, limits)
    refuse(problems)
    warnings = list(find_risks(plan.cluster, profile, runs))
    if limits is not None:
        complaints = {name: ask_slurm(script, limits) for name, script in scripts.items()}
        refuse(f"{profile}: {name}: SLURM says: {said}" for name, said in complaints.items() if said)
        warnings += _doubts(plan, profile, limits)
    return warnings


def refuse(problems: Iterable[str]) -> None:
    """Raise PreflightError with one line for every problem, if there is one."""
    if lines := list(dict.fromkeys(problems)):
        raise PreflightError("\n".join([*lines, "Nothing was submitted"]))


def _unset_variables(plan: Plan) -> Iterator[str]:
    name = plan.spec.notify.webhook_variable if plan.spec.notify else None
    if name and not os.environ.get(name):
        yield (
            f"{plan.spec_path}: notify.webhook is ${name}, which is not set here; export {name}=https://..., "
            "which jobs take over from whoever submits them, or leave it out"
        )


def _by_request(resources: Mapping[str, Resources]) -> dict[Resources, list[str]]:
    """The runs that ask for the same, which is looked at once."""
    found: dict[Resources, list[str]] = {}
    for run, request in resources.items():
        found.setdefault(request, []).append(run)
    return found


def _bad_requests(plan: Plan, profile: str, limits: Limits) -> Iterator[str]:
    for text in find_unknown(plan.cluster, limits):
        yield f"{profile}: {text}"
    # the spec's own words on resources know their lines; what it leaves out comes from the profile
    origins = {cell.name: cell.resources.origins for cell in plan.cells}
    for request, runs in _by_request(plan.resources).items():
        for key, text in find_misfits(plan.cluster, request, limits):
            yield f"{origins[runs[0]].get((key,), profile)}: {name_runs(runs)}: {text}"


def _doubts(plan: Plan, profile: str, limits: Limits) -> Iterator[str]:
    _, unknown = known_nodes(plan.cluster.exclude, limits)
    if unknown:
        hint = near(unknown[0], [node.name for node in limits.nodes])
        yield f"{profile}: exclude names {', '.join(unknown)}, not nodes of this cluster; left out. {hint}"
    for place in limits.partitions_of(plan.cluster):
        if place.alloc_nodes is not None:
            yield (
                f"{profile}: partition '{place.name}' takes jobs only from {place.alloc_nodes}: what a run "
                "sets free that ends elsewhere is submitted by `latentbridge watch` or the launch command"
            )
    for request, runs in _by_request(plan.resources).items():
        for text in find_waits(plan.cluster, request, limits):
            yield f"{profile}: {name_runs(runs)}: {text}"


def ask_slurm(script: str, limits: Limits) -> str | None:
    """SLURM's own complaint about an sbatch script; None if it would take it, now or when there is room.

    Submits nothing, but uses up a job id. SchedulerError where the controller is too busy to say.
    """
    with tempfile.NamedTemporaryFile("w", prefix="latentbridge_", suffix=".sh") as file:
        file.write(script)
        file.flush()
        # of nodes that are only drained --test-only says so too, and sbatch itself queues for them
        ask = call_settled if all(node.is_usable for node in limits.nodes) else call
        answer = ask("sbatch", "--test-only", file.name)
    said = " ".join(answer.stderr.replace("sbatch: error: ", "").split())
    # a queue that is full for now is no matter of the request
    if answer.returncode == 0 or is_full(said):
        return None
    if is_silence(said):
        raise SchedulerError(f"sbatch --test-only did not answer: {said}; run the same command again later")
    if NO_SUCH_NODES in said and not all(node.is_usable for node in limits.nodes):
        return None
    return said or f"exit code {answer.returncode}"
