"""The commands; only this file ends the process."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from latentbridge.errors import LatentbridgeError, RunError, SchedulerError
from latentbridge.launch import launcher
from latentbridge.launch.completion import SHELLS, script
from latentbridge.launch.plan import make_plan
from latentbridge.launch.record import Launch, find_target

EXIT_FAILED, EXIT_BUDGET, EXIT_INTERRUPTED = 1, 3, 130


def project_root() -> Path:
    """Where configs/, jobs/, slurm/ and runs/ are: LATENTBRIDGE_ROOT, else the checkout of this package."""
    return Path(os.environ.get("LATENTBRIDGE_ROOT") or Path(__file__).parents[2]).absolute()


def launch_main() -> None:
    """`python launch.py SPEC ...`"""
    main(["launch", *sys.argv[1:]])


def main(argv: list[str] | None = None) -> None:
    """`latentbridge COMMAND ...`"""
    # ten thousand cells are all kept: looking for garbage among them takes half the time
    gc.set_threshold(100_000)
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
        code = EXIT_INTERRUPTED
    raise SystemExit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentbridge", description="One YAML file of ablations to runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    launch = add("launch", _launch, "run every cell of a spec; again at any time to go on")
    launch.add_argument("spec", help="a YAML file, by path or by name under configs/")
    launch.add_argument("-n", "--dry-run", action="store_true", help="show plan and commands; write nothing")
    launch.add_argument("--cluster", metavar="NAME", help="a profile of slurm/ (default: the spec's)")
    for flag, metavar, text in (
        ("--set", "KEY=VALUE", "override in every cell"),
        ("--only", "PATTERN", "start these runs or cells only; later, without it, the rest"),
        ("--skip", "PATTERN", "start all runs or cells but these"),
    ):
        launch.add_argument(flag, metavar=metavar, action="append", default=[], help=text)
    launch.add_argument(
        "--no-check",
        metavar="NAME",
        action="append",
        default=[],
        help="leave a check out of the rehearsal; `all` leaves out all. The manifest says so",
    )
    launch.add_argument("--new", action="store_true", help="start afresh beside an earlier launch of it")
    launch.add_argument("--continue", dest="folder", type=Path, metavar="LAUNCH", help="go on with it")
    launch.add_argument("--no-submit", action="store_true", help="write the run folders, start nothing")

    status = add("status", _status, "the state of every run of a launch")
    status.add_argument("launch", type=Path)
    status.add_argument("--json", action="store_true")

    watch = add("watch", _watch, "the same, live; starts what a lost job could not")
    watch.add_argument("launch", type=Path)
    watch.add_argument(
        "--serve", type=int, metavar="PORT", help="its report too, at an address that holds a secret"
    )

    logs = add("logs", _logs, "what a run printed")
    logs.add_argument("run", type=Path, help="runs/LAUNCH/RUN")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    logs.add_argument("--attempt", type=int, help="which attempt (default: the last)")

    explain = add("explain", _explain, "why a run waits, why it failed, and what happens next")
    explain.add_argument("run", type=Path, help="runs/LAUNCH/RUN")

    for name, command, text in (
        ("cancel", _cancel, "stop runs, saving what they have, until `retry`"),
        ("retry", _retry, "start failed, cancelled or held runs again, earlier attempts forgiven"),
    ):
        add(name, command, text).add_argument(
            "target", type=Path, nargs="+", help="launches, or runs in them"
        )

    reproduce = add("reproduce", _reproduce, "the exact command that repeats a run elsewhere")
    reproduce.add_argument("run", type=Path, help="runs/LAUNCH/RUN")
    reproduce.add_argument("--run", dest="execute", action="store_true", help="run it, and compare results")

    preserve = add("preserve", _preserve, "summarise a launch and copy it into preserved_data/")
    preserve.add_argument("launch", type=Path)
    for flag, metavar, text in (
        ("--leave-out", "PATTERN", "files that stay out of the archive, such as '*-s1235/eval_samples*'"),
        ("--compress", "PATTERN", "files that are kept as FILE.gz; `restore` gives them back as they were"),
    ):
        preserve.add_argument(flag, metavar=metavar, action="append", default=[], help=text)
    preserve.add_argument(
        "--checkpoints",
        choices=("best", "all", "none"),
        help="of each run (default: best, below 64 MB)",
    )

    paper = add("paper", _paper, "fill a paper from results; every number is traced to run, file and hash")
    paper.add_argument("template", type=Path, help="Markdown with placeholders, such as those of papers/")
    paper.add_argument(
        "--results", type=Path, action="append", required=True, metavar="DIR", help="a launch or archive"
    )
    paper.add_argument("--out", type=Path, help="folder to write (default: papers/TEMPLATE)")
    paper.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="baseline=CELL dynamic=CELL split=test",
    )
    paper.add_argument("--trace", metavar="ID", help="write nothing; tell where a number comes from")

    report = add("report", _report, "a launch as one HTML page: verdicts, tables, figures, logs, provenance")
    report.add_argument("launch", type=Path, help="a launch or archive")
    report.add_argument("--out", type=Path, metavar="FILE", help="(default: LAUNCH/report.html)")

    figures = add("figures", _figures, "figures of a launch as it stands, each with the data it shows")
    figures.add_argument("launch", type=Path, help="a launch or archive")
    figures.add_argument("--only", metavar="NAME", action="append", default=[], help="these alone")
    figures.add_argument(
        "--out", type=Path, metavar="DIR", help="(default: LAUNCH/figures; of an archive, NAME)"
    )
    figures.add_argument("--format", nargs="+", choices=("pdf", "png", "svg"), help="(default: all three)")
    figures.add_argument(
        "--width",
        choices=("text", "column"),
        default="text",
        help="where they are to stand: a page, or 3.3 in",
    )

    imported = add("import", _import, "adopt folders of the published systems' results into preserved_data/")
    imported.add_argument("folder", type=Path, nargs="+")

    verify = add("verify", _verify, "compare archives with their checksums, byte by byte")
    verify.add_argument("archive", type=Path, nargs="+")

    restore = add("restore", _restore, "copy a verified archive back to a folder that does not exist yet")
    restore.add_argument("archive", type=Path)
    restore.add_argument("target", type=Path)

    compare = add(
        "compare", _compare, "what seeds and shared questions tell of two cells, and what they cannot"
    )
    compare.add_argument(
        "baseline",
        help="a launch, a run or an archive of ours; a folder of a published system; one cell of either, as "
        "FOLDER:CELL; a file of answers, eval_samples_step_*.jsonl or .jsonl.gz",
    )
    compare.add_argument("side", nargs="+", help="what is compared with it, as one of these too")
    compare.add_argument(
        "--metric",
        metavar="PATTERN",
        action="append",
        default=[],
        help="compare by these (default: what the baseline's launch was made for; of published systems, "
        "accuracy, loss and perplexity)",
    )
    compare.add_argument("--json", action="store_true")

    collect = add("collect", _collect, "one tidy table of runs, ours and the published systems'")
    collect.add_argument("folder", type=Path, metavar="DIR")
    collect.add_argument("--csv", type=Path, metavar="FILE", help="write the table here")
    collect.add_argument("--json", type=Path, metavar="FILE", help="the same as a list of records")

    add("doctor", _doctor, "what this machine and its cluster allow, and what is in the way")

    schema = add("schema", _schema, "the JSON Schema of a spec, or of one job's config, for editors")
    schema.add_argument("job", nargs="?")

    completion = add(
        "completion", _completion, 'for your shell\'s start-up file: eval "$(... completion bash)"'
    )
    completion.add_argument("shell", choices=SHELLS)
    return parser


def _launch(args: argparse.Namespace) -> int:
    root = project_root()
    plan = make_plan(args.spec, cluster=args.cluster, settings=args.set, root=root)
    if args.dry_run:
        launcher.dry_run(plan)
        return 0
    launch = launcher.launch(
        plan,
        folder=args.folder,
        is_new=args.new,
        only=args.only,
        skip=args.skip,
        no_check=args.no_check,
    )
    return 0 if args.no_submit else launcher.go_on(launch)


def _status(args: argparse.Namespace) -> int:
    from latentbridge.launch import status
    from latentbridge.launch.view import display

    launch = Launch(args.launch.absolute())
    states = status.status(launch)
    if args.json:
        print(json.dumps(status.as_record(launch, states), indent=1))
    else:
        display.show_status(launch, states)
    if any(state.phase == "unknown" for state in states):
        return SchedulerError.exit_code
    return EXIT_FAILED if any(state.phase in ("failed", "lost", "blocked") for state in states) else 0


def _watch(args: argparse.Namespace) -> int:
    from latentbridge.launch.view.serve import serving
    from latentbridge.launch.view.watch import watch

    launch = Launch(args.launch.absolute())
    if args.serve is None:
        return watch(launch)
    with serving(launch.path, args.serve) as address:
        print(address)
        return watch(launch)


def _logs(args: argparse.Namespace) -> int:
    from latentbridge.launch.view.logs import show

    launch, run = _one_run(args.run)
    return show(launch, run, args.attempt, args.follow)


def _explain(args: argparse.Namespace) -> int:
    from latentbridge.launch.view.explain import explain

    print("\n".join(explain(*_one_run(args.run))))
    return 0


def _reproduce(args: argparse.Namespace) -> int:
    from latentbridge.launch.view.reproduce import reproduce

    launch, run = _one_run(args.run)
    return reproduce(launch, run, args.execute)


def _one_run(path: Path) -> tuple[Launch, str]:
    launch, names = find_target(path)
    if len(names) != 1:
        raise LatentbridgeError(f"{path} holds {len(names)} runs; name one: {path}/{names[0]}")
    return launch, names[0]


def _targets(paths: list[Path]) -> dict[Path, tuple[Launch, list[str]]]:
    """The named runs, by launch."""
    found: dict[Path, tuple[Launch, list[str]]] = {}
    for path in paths:
        launch, names = find_target(path)
        found.setdefault(launch.path, (launch, []))[1].extend(names)
    return found


def _cancel(args: argparse.Namespace) -> int:
    from latentbridge.launch.orders import cancel

    code = 0
    for launch, names in _targets(args.target).values():
        try:
            cancelled = cancel(launch, names)
        except (RunError, SchedulerError) as error:  # the others are cancelled all the same
            print(f"{launch.name}: {error}", file=sys.stderr)
            code = max(code, error.exit_code)
        else:
            print(f"{launch.name}: cancelled {', '.join(cancelled) or 'nothing: every run had ended'}")
    return code


def _retry(args: argparse.Namespace) -> int:
    from latentbridge.launch.orders import bring_back

    code = 0
    for launch, names in _targets(args.target).values():
        back = bring_back(launch, names)
        print(f"{launch.name}: {', '.join(back) or 'nothing failed, cancelled or held'}")
        code = max(code, launcher.go_on(launch) if back else 0)
    return code


def _preserve(args: argparse.Namespace) -> int:
    from latentbridge.launch.finish import finish
    from latentbridge.launch.keep import Keep
    from latentbridge.launch.status import ENDED, status

    launch = Launch(args.launch.absolute())
    rules = {"leave_out": args.leave_out, "compress": args.compress, "checkpoints": args.checkpoints}
    # without rules of its own a preserve keeps what the one before it kept
    keep = Keep.model_validate(rules) if any(rules.values()) else None
    unfinished = [state.name for state in status(launch) if state.phase not in ENDED]
    print(finish(launch, project_root() / "preserved_data", keep))
    if unfinished:
        print(f"{len(unfinished)} runs have not ended; preserve again when they have", file=sys.stderr)
    return EXIT_FAILED if unfinished else 0


def _paper(args: argparse.Namespace) -> int:
    from latentbridge.paper.results import Results
    from latentbridge.paper.template import fill
    from latentbridge.paper.write import tables, write

    settings = dict(setting.partition("=")[::2] for setting in args.set)
    filled = fill(args.template, Results(args.results), settings)
    if args.trace:
        tables(filled)  # their numbers are traced too
        print(filled.quote.trace.find(args.trace).explain())
        return 0
    for path in write(filled, args.out or Path("papers") / args.template.stem):
        print(path)
    return 0


def _report(args: argparse.Namespace) -> int:
    from latentbridge.audit.page import write_page

    print(write_page(find_target(args.launch)[0].path, args.out))
    return 0


def _figures(args: argparse.Namespace) -> int:
    from latentbridge.audit import figures
    from latentbridge.audit.figures.style import NARROW_IN, PAGE_IN
    from latentbridge.audit.records import read_records
    from latentbridge.launch.archive import SUMS

    launch, _ = find_target(args.launch)
    # an archive stays as it is
    out = args.out or (Path(launch.name) if (launch.path / SUMS).exists() else launch.path / figures.FOLDER)
    widest_in = NARROW_IN if args.width == "column" else PAGE_IN
    formats = args.format or figures.SUFFIXES
    written = figures.draw(launch.path, out, args.only, formats, widest_in)
    print(*written, sep="\n")
    names = {path.stem for path in written}
    lacking = [name for name in args.only if name not in names]
    for name in lacking:
        print(figures.known(name).nothing(read_records(launch.path)), file=sys.stderr)
    if not names and not args.only:
        print(f"{launch.name} has no results for any figure", file=sys.stderr)
    return 0 if names.issuperset(args.only) and names else EXIT_FAILED


def _import(args: argparse.Namespace) -> int:
    from latentbridge.launch.adopt import adopt
    from latentbridge.launch.archive import read_record
    from latentbridge.launch.index import write_index

    root, code = project_root() / "preserved_data", 0
    for folder in args.folder:
        try:
            archive = adopt(folder, root)
            print(archive)
            for reason in read_record(archive)["unread"]:
                print(f"{archive.name}: kept, but not read: {reason}", file=sys.stderr)
        except RunError as error:  # the others are imported all the same
            print(error, file=sys.stderr)
            code = error.exit_code
    write_index(root)
    return code


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
    return 0 if sound else EXIT_FAILED


def _restore(args: argparse.Namespace) -> int:
    from latentbridge.launch.preserve import restore

    restore(args.archive, args.target)
    print(f"restored {args.target}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from latentbridge.audit.comparison import report, text

    found = report.compare([args.baseline, *args.side], args.metric)
    print(json.dumps(found.as_record(), indent=1) if args.json else text.render(found), end="")
    return 0


def _collect(args: argparse.Namespace) -> int:
    from latentbridge.audit.collect.table import collect
    from latentbridge.rundir import write_atomic

    found = collect(args.folder)
    for target in filter(None, (args.csv, args.json)):
        target.parent.mkdir(parents=True, exist_ok=True)
    if args.csv:
        write_atomic(args.csv, found.frame().to_csv(index=False))
    if args.json:
        write_atomic(args.json, found.frame().to_json(orient="records", indent=1, force_ascii=False) + "\n")
    print(*found.lines(), sep="\n")
    for reason in found.unreadable:
        print(reason, file=sys.stderr)
    if not found.files and not found.unreadable:
        print(f"{args.folder}: no file of a known kind", file=sys.stderr)
    return EXIT_FAILED if found.unreadable or not found.files else 0


def _doctor(args: argparse.Namespace) -> int:
    from latentbridge.launch.checks.doctor import doctor

    return doctor(project_root())


def _schema(args: argparse.Namespace) -> int:
    from latentbridge.config import Origin
    from latentbridge.launch.spec import Spec, load_job_config

    model = load_job_config(args.job, project_root(), Origin("schema", 0)) if args.job else Spec
    print(json.dumps(model.model_json_schema(), indent=1))
    return 0


def _completion(args: argparse.Namespace) -> int:
    print(script(_parser(), args.shell))
    return 0


if __name__ == "__main__":
    main()
