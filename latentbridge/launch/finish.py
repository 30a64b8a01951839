"""After the last run: a summary, an archive, and a word on both.

python -m latentbridge.launch.finish LAUNCH          (a SLURM job runs this; locally the launcher calls it)
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from latentbridge.errors import LatentbridgeError, PreflightError, RunError, SchedulerError
from latentbridge.launch.advance import Advance, advance
from latentbridge.launch.archive import read_record
from latentbridge.launch.keep import Keep
from latentbridge.launch.lease import lease
from latentbridge.launch.node.own_job import requeue, restarts
from latentbridge.launch.notify import tell
from latentbridge.launch.record import Launch
from latentbridge.launch.status import status
from latentbridge.launch.submit import COME_BACK_MIN

# others may be submitting when the last run ends
PATIENCE_S = 300
POLL_S = 3
# after SLURM has said no
REFUSED_PAUSE_S = 30
# a disk that stumbles comes back
DISK_PATIENCE_S = 1800
# clocks of hosts differ, by which a run that left the queue is told from one that is lost
UNKNOWN_PATIENCE_S = 300
# who cannot tell what became of a run looks so often, and then leaves it to people
MOST_RETURNS = 12


def finish(launch: Launch, archives: Path, keep: Keep | None = None) -> Path:
    """Summarise and preserve a launch; returns the archive, which the index beside it has verified.

    keep: what goes into the archive; None: as before, or as the spec says
    """
    from latentbridge.audit.ablations import summarize
    from latentbridge.launch.preserve import preserve, write_index

    with lease(launch.path / "ledger" / "finish.lock", f"preserving {launch.name}", PATIENCE_S):
        summarize(launch.path)
        _report(launch.path)
        ends = {state.name: state for state in status(launch)}
        archive = preserve(launch.path, archives, keep=keep, ends=ends, allow_unfinished=True)
        for pattern in read_record(archive).get("idle", []):
            print(
                f"{archive}: no file matched '{pattern}' of the rules of what is kept, so what it was to "
                "leave out or compress is there in full",
                file=sys.stderr,
            )
        write_index(archives)
        return archive


def conclude(launch: Launch, archives: Path) -> Path:
    """`finish` a launch that has ended; who asked for it is told of the end, though finishing may fail."""
    try:
        return finish(launch, archives)
    finally:
        for complaint in tell(launch):
            print(complaint, file=sys.stderr)


def _report(launch: Path) -> None:
    """Draw and export what can be; what fails leaves its traceback and must not cost the archive.

    What is not installed here is no failure.
    """
    from latentbridge.audit import layer_routing_files, seed_files
    from latentbridge.audit.figures import draw
    from latentbridge.audit.page import write_page

    drawn: list[Path] = []
    writers: tuple[tuple[str, Callable[[Path], object]], ...] = (
        ("figure", lambda folder: drawn.extend(draw(folder))),
        ("export", seed_files.export),
        ("history", layer_routing_files.export),
        ("report", lambda folder: write_page(folder, drawn=drawn)),
    )
    for name, write in writers:
        complaint = launch / f"{name}_failed.txt"
        complaint.unlink(missing_ok=True)
        try:
            write(launch)
        except PreflightError as error:
            print(f"no {name}: {error}", file=sys.stderr)
        except Exception:
            complaint.write_text(traceback.format_exc())
            print(f"not every {name} could be made; see {complaint}", file=sys.stderr)


def go_on(launch: Launch) -> bool:
    """Submit what may start now; True once no run is at work or will be.

    False where runs are queued or at work and another job like this one waits for those, or this one will
    start again. SchedulerError if it cannot, so that nobody goes on.
    """
    damaged_until = time.monotonic() + DISK_PATIENCE_S
    unknown_until = time.monotonic() + UNKNOWN_PATIENCE_S
    while True:
        try:
            step = advance(launch, patience_s=PATIENCE_S)
        except (SchedulerError, RunError, OSError) as error:
            # a controller or a disk that stumbles; nobody else may be left to go on. A controller may be away
            # for a day of maintenance, and ends no job meanwhile
            if not isinstance(error, SchedulerError) and time.monotonic() > damaged_until:
                raise
            print(f"tried again in {POLL_S} s: {error}", file=sys.stderr)
            unknown_until = time.monotonic() + UNKNOWN_PATIENCE_S
        else:
            for complaint in step.complaints:
                print(complaint, file=sys.stderr)
            if step.has_ended:
                return True
            if step.is_followed:
                return False
            # a run that left the queue moments ago needs no other job, only a moment
            if time.monotonic() > unknown_until:
                return _come_back(launch, step)
            if step.complaints or step.is_full:
                time.sleep(REFUSED_PAUSE_S)
        time.sleep(POLL_S)


def _come_back(launch: Launch, step: Advance) -> bool:
    """Have this job start again in some minutes, where the queue has no place for another."""
    unclear = [f"{state.name}: {state.detail}" for state in step.states if state.phase == "unknown"]
    if unclear and not step.left and restarts() >= MOST_RETURNS:
        raise RunError(f"{launch.path}: nobody can tell what became of {'; '.join(unclear)}")
    # SLURM ends what it requeues at once, and there is more to ask
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not requeue(launch, needed=1, delay_min=COME_BACK_MIN):
        raise SchedulerError(
            f"{launch.path}: not all runs have ended, and SLURM takes no job that goes on; run the launch "
            "command again, or leave `latentbridge watch` open"
        )
    return False


def main() -> None:
    """Entry point of the job that comes last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("launch", type=Path)
    parser.add_argument("--archives", type=Path, required=True)
    args = parser.parse_args()
    launch = Launch(args.launch)
    try:
        if go_on(launch):
            print(conclude(launch, args.archives))
    except (LatentbridgeError, OSError) as error:
        raise SystemExit(
            f"{error}. Run `latentbridge preserve {args.launch}` when all runs have ended"
        ) from None


if __name__ == "__main__":
    main()
