"""After the last run: a summary, an archive, and a word on both.

python -m latentbridge.launch.finish LAUNCH          (a SLURM job runs this; locally the launcher calls it)
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

from latentbridge.errors import LockedError, RunError, SchedulerError
from latentbridge.launch.advance import advance
from latentbridge.launch.lease import lease
from latentbridge.launch.record import Launch
from latentbridge.launch.status import ACTIVE

# others may be submitting when the last run ends
PATIENCE_S = 300
POLL_S = 3
# a controller that is down comes back
SILENCE_PATIENCE_S = 1800
# clocks of hosts differ, by which a run that left the queue is told from one that is lost
UNKNOWN_PATIENCE_S = 300


def finish(launch: Launch, archives: Path) -> Path:
    """Summarise and preserve a launch; returns the archive, which the index beside it has verified."""
    from latentbridge.audit.ablations import summarize
    from latentbridge.launch.preserve import preserve, write_index

    with lease(launch.path / "ledger" / "finish.lock", f"preserving {launch.name}", PATIENCE_S):
        summarize(launch.path)
        _draw(launch.path)
        archive = preserve(launch.path, archives, allow_unfinished=True)
        write_index(archives)
        return archive


def _draw(launch: Path) -> None:
    """Draw what can be drawn; a figure that fails leaves its traceback and must not cost the archive."""
    from latentbridge.audit.figures import draw

    complaint = launch / "figure_failed.txt"
    complaint.unlink(missing_ok=True)
    try:
        draw(launch)
    except Exception:
        complaint.write_text(traceback.format_exc())
        print(f"a figure could not be drawn; see {complaint}", file=sys.stderr)


def go_on(launch: Launch) -> bool:
    """Submit what may start now; True once no run is at work or will be.

    False where runs are queued or at work: another job like this one waits for those.
    """
    silent_until = time.monotonic() + SILENCE_PATIENCE_S
    unknown_until = time.monotonic() + UNKNOWN_PATIENCE_S
    while True:
        try:
            step = advance(launch, patience_s=PATIENCE_S)
        except (SchedulerError, RunError, OSError) as error:
            # a controller or a disk that stumbles; nobody else may be left to go on
            if time.monotonic() > silent_until:
                raise
            print(f"tried again in {POLL_S} s: {error}", file=sys.stderr)
            unknown_until = time.monotonic() + UNKNOWN_PATIENCE_S
        else:
            for complaint in step.complaints:
                print(complaint, file=sys.stderr)
            if step.has_ended:
                return True
            waits = any(state.phase in ACTIVE or state.twin for state in step.states)
            # a run that left the queue moments ago needs no other job, only a moment
            if waits or time.monotonic() > unknown_until:
                return False
        time.sleep(POLL_S)


def main() -> None:
    """Entry point of the job that comes last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("launch", type=Path)
    parser.add_argument("--archives", type=Path, required=True)
    args = parser.parse_args()
    launch = Launch(args.launch)
    try:
        if go_on(launch):
            print(finish(launch, args.archives))
    except (LockedError, SchedulerError) as error:
        raise SystemExit(
            f"{error}. Run `latentbridge preserve {args.launch}` when all runs have ended"
        ) from None


if __name__ == "__main__":
    main()
