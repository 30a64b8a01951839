"""The commands: launch, status, preserve, verify, restore, schema; only this file ends the process."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from latentbridge.errors import ConfigError, LatentbridgeError, PreflightError, SchedulerError
from latentbridge.launch.cluster import check_executor
from latentbridge.launch.ledger import lease
from latentbridge.launch.plan import Plan, code_hash, find_launch, make_plan, refresh, write_launch
from latentbridge.launch.record import Launch

if TYPE_CHECKING:
    from latentbridge.launch.status import RunStatus

INTERRUPTED = 130


def project_root() -> Path:
    """Where configs/, jobs/, slurm/ and runs/ are: LATENTBRIDGE_ROOT, else the checkout of this package."""
    return Path(os.environ.get("LATENTBRIDGE_ROOT") or Path(__file__).parents[2]).absolute()


def launch_main() -> None:
    """`python launch.py SPEC ...`"""
    main(["launch", *sys.argv[1:]])


def main(argv: list[str] | None = None) -> None:
    """`latentbridge COMMAND ...`"""
    # `| head` is no error
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        code = command(args)
    except LatentbridgeError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"{error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; what was saved is safe, and the same command goes on from there", file=sys.stderr)
        code = INTERRUPTED
    raise SystemExit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentbridge", description=__doc__.partition(";")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    launch = add("launch", _launch, "run every cell of a spec; again at any time to go on")
    launch.add_argument("spec", help="a YAML file, by path or by name under configs/")
    launch.add_argument("-n", "--dry-run", action="store_true", help="show plan and commands; write nothing")
    launch.add_argument(
        "--cluster", metavar="NAME", help="a profile of slurm/ (default: the spec's, else found)"
    )
    launch.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override in every cell"
    )
    launch.add_argument(
        "--new", action="store_true", help="start afresh even if this plan was launched before"
    )
    launch.add_argument(
        "--continue", dest="folder", type=Path, metavar="LAUNCH", help="go on with this folder"
    )
    launch.add_argument("--retry-failed", action="store_true", help="run failed cells again as well")
    launch.add_argument("--no-submit", action="store_true", help="write the run folders, start nothing")

    status = add("status", _status, "the state of every run of a launch")
    status.add_argument("launch", type=Path)
    status.add_argument("--json", action="store_true")

    preserve = add("preserve", _preserve, "summarise a launch and copy it into preserved_data/")
    preserve.add_argument("launch", type=Path)

    verify = add("verify", _verify, "compare archives with their checksums, byte by byte")
    verify.add_argument("archive", type=Path, nargs="+")

    restore = add("restore", _restore, "copy a verified archive back to a folder that does not exist yet")
    restore.add_argument("archive", type=Path)
    restore.add_argument("target", type=Path)

    schema = add("schema", _schema, "the JSON Schema of a spec, or of one job's config, for editors")
    schema.add_argument("job", nargs="?")
    return parser


def _launch(args: argparse.Namespace) -> int:
    root = project_root()
    plan = make_plan(args.spec, cluster=args.cluster, settings=args.set, root=root)
    if args.dry_run:
        _show_plan(plan, root)
        return 0
    check_executor(plan.cluster_name, plan.cluster)
    runs = root / "runs"
    runs.mkdir(exist_ok=True)
    with lease(runs / f".{plan.id}.lock", f"the plan {plan.spec.name} ({plan.id})"):
        launch = _open_launch(args, plan, runs)
        if args.no_submit:
            return 0
        if plan.cluster.executor == "slurm":
            return _submit(launch, args.retry_failed, root / "preserved_data")
        return _run_here(launch, args.retry_failed, root / "preserved_data")


def _open_launch(args: argparse.Namespace, plan: Plan, runs: Path) -> Launch:
    """The launch folder to work on, made anew or found again, and brought up to date; says which."""
    from latentbridge.launch import display, status

    if args.folder:
        launch: Launch | None = Launch(args.folder.absolute())
        if launch and launch.plan["id"] != plan.id:
            raise ConfigError(
                f"{args.folder}: it holds other runs than {args.spec} describes; leave --continue out"
            )
    else:
        launch = None if args.new else find_launch(plan, runs)
    display.console.print(display.plan_table(plan))
    if launch is None:
        launch = write_launch(plan, runs, ["launch.py", *sys.argv[1:]])
        print(f"made {launch.path}")
        return launch
    print(f"going on with {launch.path}")
    states = status.status(launch)
    if any(state.phase == "unknown" for state in states):
        raise SchedulerError(
            "SLURM does not say which of its runs are queued or at work, so nothing was done. "
            "Run the same command again when it answers; --new makes a second launch beside this one"
        )
    if changed := refresh(launch, plan, any(state.phase in status.ACTIVE for state in states)):
        print(f"brought up to date: {', '.join(changed)}")
        launch = Launch(launch.path)
    if code_hash(plan.root) != launch.plan["code"]["hash"]:
        print(
            "the code here has changed since; these runs keep the code they were launched with "
            "(--new starts afresh)"
        )
    return launch


def _show_plan(plan: Plan, root: Path) -> None:
    """Print the table and the exact lines, with the parts that only a launch can know in capitals."""
    from latentbridge.launch import display, submit
    from latentbridge.launch.torchrun import torchrun_command

    display.console.print(display.plan_table(plan))
    folder = root / "runs" / f"{plan.spec.name}_STAMP"
    planned = plan.planned(folder)
    if plan.cluster.executor == "slurm":
        for group in submit.group_runs(planned):
            print(f"\n# sbatch, for {', '.join(run.name for run in group)}")
            text = submit.script(plan.cluster, group[0].resources, folder, "TOKEN", len(group))
            print(text)
    print("\n# torchrun, on each node")
    job = folder / "code" / "jobs" / f"{plan.spec.job}.py"
    for run in planned:
        print(shlex.join(torchrun_command(job, run.folder.config, run.resources, head="HEAD")))
    print(f"\nspec: {plan.spec_path}\ncluster: slurm/{plan.cluster_name}.yaml")
    print(f"{len(planned)} runs of {plan.total_ranks} ranks in all, {plan.cluster.max_parallel} at a time")


def _submit(launch: Launch, retry_failed: bool, archives: Path) -> int:
    from latentbridge.launch import display, status, submit

    submit.adopt_lost(launch)
    pending, states = status.to_submit(launch, retry_failed)
    if pending:
        made = submit.submit(launch, pending)
        print(f"submitted {len(pending)} runs as jobs {', '.join(str(s.job_id) for s in made)}")
        states = status.status(launch)
    else:
        print("nothing to submit")
    if any(state.phase == "unknown" for state in states):
        raise SchedulerError("SLURM stopped answering after the submission; run the same command again")
    active = {state.job.split("_")[0] for state in states if state.phase in status.ACTIVE and state.job}
    if not active:
        return _conclude(launch, states, archives)
    try:
        last = submit.submit_finish(launch, active)
    except PreflightError as error:
        print(
            f"warning: the runs are submitted, but not the job that preserves them: {error}", file=sys.stderr
        )
        print(f"when all have ended: latentbridge preserve {shlex.quote(str(launch.path))}", file=sys.stderr)
    else:
        if last:
            print(f"job {last.job_id} will summarise and preserve when all have ended")
    display.console.print(display.status_table(launch.name, states))
    print(f"watch it with: latentbridge status {shlex.quote(str(launch.path))}")
    return 1 if any(state.phase == "failed" for state in states) else 0


def _run_here(launch: Launch, retry_failed: bool, archives: Path) -> int:
    from latentbridge.launch import display, status
    from latentbridge.launch.local import LocalPool

    with display.console.status("waiting for processes that are still at work on these runs"):
        status.wait_for_others(launch)
    pending, states = status.to_submit(launch, retry_failed)
    if pending:
        pool = LocalPool(launch, pending)
        with display.Board(total=len(states), done=len(states) - len(pending)) as board:
            pool.run(board)
        states = status.status(launch)
    else:
        print("nothing to run: every run has ended")
    return _conclude(launch, states, archives)


def _conclude(launch: Launch, states: list[RunStatus], archives: Path) -> int:
    """Summarise and preserve a launch whose runs have all ended, and say how they did."""
    from latentbridge.launch import display
    from latentbridge.launch.finish import finish

    with display.console.status("summarising and preserving"):
        archive = finish(launch, archives)
    print((launch.path / "summary.log").read_text())
    for state in states:
        if state.phase != "done":
            print(
                f"{state.name}: {state.phase}: {state.detail} (see {launch.path / state.name / 'attempts'})"
            )
    for picture in sorted(launch.path.glob("*.png")):
        print(f"picture: {picture}")
    print(f"archive: {archive}")
    return 0 if all(state.phase == "done" for state in states) else 1


def _status(args: argparse.Namespace) -> int:
    from latentbridge.launch import display, status

    launch = Launch(args.launch.absolute())
    states = status.status(launch)
    if args.json:
        print(json.dumps([state.as_record() for state in states], indent=1))
    else:
        display.console.print(display.status_table(launch.name, states))
    if any(state.phase == "unknown" for state in states):
        return SchedulerError.exit_code
    return 1 if any(state.phase in ("failed", "lost") for state in states) else 0


def _preserve(args: argparse.Namespace) -> int:
    from latentbridge.launch.finish import finish
    from latentbridge.launch.status import status

    launch = Launch(args.launch.absolute())
    unfinished = [state.name for state in status(launch) if state.phase not in ("done", "failed")]
    print(finish(launch, project_root() / "preserved_data"))
    if unfinished:
        print(f"{len(unfinished)} runs have not ended; preserve again when they have", file=sys.stderr)
    return 1 if unfinished else 0


def _verify(args: argparse.Namespace) -> int:
    from latentbridge.launch.preserve import verify

    sound = True
    for archive in args.archive:
        problems = verify(archive)
        sound &= not problems
        for problem in problems:
            print(f"{archive}: {problem}")
        if not problems:
            print(f"{archive}: every file is as it was preserved")
    return 0 if sound else 1


def _restore(args: argparse.Namespace) -> int:
    from latentbridge.launch.preserve import restore

    restore(args.archive, args.target)
    print(f"restored {args.target}")
    return 0


def _schema(args: argparse.Namespace) -> int:
    from latentbridge.config import Origin
    from latentbridge.launch.spec import Spec, load_job_config

    model = load_job_config(args.job, project_root(), Origin("schema", 0)) if args.job else Spec
    print(json.dumps(model.model_json_schema(), indent=1))
    return 0


if __name__ == "__main__":
    main()
