"""What `launch.py SPEC` does once the plan is made: check, write the folder, and start what is missing."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentbridge.errors import ConfigError, SchedulerError
from latentbridge.launch import submit
from latentbridge.launch.advance import Advance, advance
from latentbridge.launch.checks.names import known_nodes
from latentbridge.launch.checks.preflight import preflight
from latentbridge.launch.checks.rehearse import can_rehearse, rehearse
from latentbridge.launch.cluster import check_executor
from latentbridge.launch.lease import LEASE_S, await_sign, find_unsure, lease
from latentbridge.launch.orders import find_skipped, select
from latentbridge.launch.plan import Plan, code_hash, find_launch, refresh, sweep_drafts, write_launch
from latentbridge.launch.record import LIMITS, Launch
from latentbridge.launch.slurm.limits import Limits, read_limits
from latentbridge.launch.status import ACTIVE, SILENT, RunStatus, status, wait_for_others
from latentbridge.launch.twins import find_twins
from latentbridge.launch.view import display
from latentbridge.rundir import write_json

EXIT_FAILED, EXIT_BUDGET, EXIT_TRY_AGAIN = 1, 3, 75
# another launcher, or a job that ends, may be submitting right now; a dead one's lock is free by then
PATIENCE_S = LEASE_S + 5


def launch(
    plan: Plan, *, folder: Path | None, is_new: bool, only: list[str], skip: list[str], no_check: list[str]
) -> Launch:
    """The launch folder to work on, checked, made anew or found again, and brought up to date; says which.

    folder: one to go on with;  is_new: make one whatever there is;  only, skip: patterns of run names
    no_check: checks that its rehearsal leaves out
    """
    runs = plan.root / "runs"
    skipped = find_skipped({cell.name: cell.cell for cell in plan.cells}, only, skip)
    is_first = folder is None and (is_new or find_launch(plan, runs) is None)
    plan, limits = _checked(plan, is_first)
    display.console.print(display.plan_table(plan))
    if no_check and not is_first:
        raise ConfigError(
            "--no-check: these runs exist already, and what was checked was settled when they were made; "
            "leave it out, or make them anew with --new"
        )
    rehearsed = _rehearsed(plan, no_check) if is_first else {}
    runs.mkdir(exist_ok=True)
    # two launchers of one plan make one folder
    with lease(runs / f".{plan.id}.lock", f"the plan {plan.spec.name} ({plan.id})", PATIENCE_S):
        made = _named(plan, folder) if folder else None if is_new else find_launch(plan, runs)
        if made is None:
            sweep_drafts(runs, plan.spec.name)
            twins, num_outdated = ({}, 0) if is_new else find_twins(plan, runs)
            made = write_launch(plan, runs, [Path(sys.argv[0]).name, *sys.argv[1:]], limits, twins, rehearsed)
            print(f"made {made.path}")
            display.show_twins(twins, num_outdated)
        else:
            print(f"going on with {made.path}")
            made = _updated(made, plan, limits)
        select(made, skipped)
        return made


def _rehearsed(plan: Plan, no_check: list[str]) -> dict[str, Any]:
    """What the plan's rehearsal showed, by run; PreflightError where it failed."""
    if not can_rehearse(plan):
        return {cell.name: {"checks": {}, "off": no_check} for cell in plan.cells} if no_check else {}
    with display.console.status("rehearsal: starting") as line:
        report = rehearse(
            plan, no_check, lambda done, total, what: line.update(f"rehearsal: {done}/{total}: {what}")
        )
    display.console.print(display.rehearsal_table(report))
    return {cell.name: report.as_record(cell.name) for cell in plan.cells}


def _named(plan: Plan, folder: Path) -> Launch:
    launch = Launch(folder.absolute())
    if launch.plan["id"] != plan.id:
        raise ConfigError(
            f"{folder}: it holds other runs than {plan.spec_path.name} describes; leave --continue out"
        )
    return launch


def _checked(plan: Plan, is_first: bool) -> tuple[Plan, Limits | None]:
    """The plan, held against this machine and its cluster; PreflightError tells all that is in the way."""
    check_executor(plan.cluster_name, plan.cluster)
    limits = read_limits() if plan.cluster.executor == "slurm" else None
    if limits:
        # one name that the cluster does not know would have every submission refused
        known, _ = known_nodes(plan.cluster.exclude, limits)
        cleaned = plan.cluster.model_copy(update={"exclude": known})
    for warning in preflight(plan, plan.root / "runs", limits, _scripts(plan) if limits and is_first else {}):
        print(f"warning: {warning}", file=sys.stderr)
    return (replace(plan, cluster=cleaned) if limits else plan), limits


def _scripts(plan: Plan) -> dict[str, str]:
    """One sbatch script of every kind, for SLURM itself to judge."""
    folder = plan.root / "runs" / "unnamed"
    return {
        f"run '{group[0].name}'": submit.script(plan.cluster, group[0].resources, folder, "TOKEN", 1, 1)
        for group in submit.group_runs(plan.planned(folder))
    }


def _updated(launch: Launch, plan: Plan, limits: Limits | None) -> Launch:
    """An earlier launch of the same plan, with what profile and spec ask of the cluster now."""
    states = status(launch)
    if any(state.phase == "unknown" and state.detail == SILENT for state in states):
        raise SchedulerError(
            "SLURM does not say which of its runs are queued or at work, so nothing was done. "
            "Run the same command again when it answers; --new makes a second launch beside this one"
        )
    if changed := refresh(launch, plan, any(state.phase in ACTIVE for state in states)):
        print(f"brought up to date: {', '.join(changed)}")
    if limits:
        write_json(launch.path / LIMITS, limits.as_record())
    if code_hash(plan.root) != launch.plan["code"]["hash"]:
        print(
            "the code here has changed since; these runs keep the code they were launched with "
            "(--new starts afresh)"
        )
    return Launch(launch.path)


def dry_run(plan: Plan) -> None:
    """Print the table and the exact lines, with the parts that only a launch can know in capitals."""
    from latentbridge.launch.node.torchrun import torchrun_command

    display.console.print(display.plan_table(plan))
    folder = plan.root / "runs" / f"{plan.spec.name}_STAMP"
    planned = plan.planned(folder)
    if plan.cluster.executor == "slurm":
        for group in submit.group_runs(planned):
            print(f"\n# sbatch, for {', '.join(run.name for run in group)}")
            parallel = min(plan.cluster.max_parallel, len(group))
            print(submit.script(plan.cluster, group[0].resources, folder, "TOKEN", len(group), parallel))
    print("\n# torchrun, on each node")
    job = folder / "code" / "jobs" / f"{plan.spec.job}.py"
    for run in planned:
        print(shlex.join(torchrun_command(job, run.folder.config, run.resources, head="HEAD")))
    print(f"\nspec: {plan.spec_path}\ncluster: slurm/{plan.cluster_name}.yaml")
    print(f"{len(planned)} runs of {plan.total_ranks} ranks in all, {plan.cluster.max_parallel} at a time")


def go_on(launch: Launch) -> int:
    """Start what nobody is working on: as jobs, and return; without SLURM here, until all have ended."""
    return _submit(launch) if launch.is_slurm else _run_here(launch)


def _submit(launch: Launch) -> int:
    step = advance(launch, by_user=True, patience_s=PATIENCE_S)
    jobs = ", ".join(str(submission.job_id) for submission in step.submitted)
    print(f"submitted {step.num_submitted} runs as jobs {jobs}" if jobs else "nothing to submit")
    if step.left and not step.over_budget and step.is_followed:
        print(f"{step.left} more runs start as the limits of site and spec let them")
    if step.refusals:
        raise step.refusals[0]
    for warning in step.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not (step.has_ended or step.is_followed):
        print(_by_hand(launch, step), file=sys.stderr)
        return EXIT_TRY_AGAIN
    if step.over_budget:
        print(f"nothing more is submitted: the budget of {launch.budget_gpu_hours} GPU-hours is used up")
    if step.has_ended:
        return max(conclude(launch, step.states), _code(step))
    display.show_status(launch, step.states)
    print(f"watch it with: latentbridge watch {shlex.quote(str(launch.path))}")
    return _code(step)


def _code(step: Advance) -> int:
    if step.over_budget:
        return EXIT_BUDGET
    return EXIT_FAILED if any(state.phase == "failed" for state in step.states) else 0


def _by_hand(launch: Launch, step: Advance) -> str:
    left = f"{step.left} runs are not queued, and " if step.left else ""
    return (
        f"{left}no job is there to go on: run the same command again later, or leave open\n"
        f"  latentbridge watch {shlex.quote(str(launch.path))}"
    )


def _run_here(launch: Launch) -> int:
    lock = launch.path / "ledger" / "pool.lock"
    if holder := find_unsure(lock):
        print(f"waiting up to {LEASE_S} s for a sign of life of {holder}, which was running this", flush=True)
        await_sign(lock)
    with lease(lock, f"running {launch.name}"):
        return _run_pool(launch)


def _run_pool(launch: Launch) -> int:
    from latentbridge.launch.local import LocalPool

    for line in wait_for_others(launch):
        print(line, flush=True)
    states = status(launch)
    pending = [launch.run(s.name) for s in states if s.phase in ("planned", "stopped", "waiting", "lost")]
    if pending:
        pool = LocalPool(launch, pending)
        with display.Board(total=len(states), done=len(states) - len(pending)) as board:
            pool.run(board)
        for refusal in pool.refusals:
            print(refusal, file=sys.stderr)
        states = status(launch)
    else:
        print("nothing to run: every run has ended")
    return conclude(launch, states)


def conclude(launch: Launch, states: list[RunStatus]) -> int:
    """Summarise and preserve a launch whose runs have all ended, and say how they did."""
    from latentbridge.launch import finish

    with display.console.status("summarising and preserving"):
        archive = finish.conclude(launch, Path(launch.plan["archives"]))
    print((launch.path / "summary.log").read_text())
    wanted = [state for state in states if state.phase != "held"]
    for state in wanted:
        if state.phase != "done":
            print(f"{state.name}: {state.phase}: {state.detail}")
            print(f"  latentbridge explain {shlex.quote(str(launch.path / state.name))}")
    for picture in sorted(launch.path.glob("*.png")):
        print(f"picture: {picture}")
    if len(wanted) < len(states):
        left_out = len(states) - len(wanted)
        print(f"{left_out} runs are left out; the same command without --only or --skip runs them")
    print(f"archive: {archive}")
    if any(state.cause == "budget" for state in states):
        return EXIT_BUDGET
    return 0 if all(state.phase == "done" for state in wanted) else EXIT_FAILED
