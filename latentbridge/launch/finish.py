"""After the last run: a summary, an archive, and a word on both.

python -m latentbridge.launch.finish LAUNCH          (a SLURM job runs this; locally the launcher calls it)
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

from latentbridge.launch.ledger import lease
from latentbridge.launch.record import Launch
from latentbridge.launch.status import status
from latentbridge.launch.worker import requeue

# a requeued run leaves its array for a moment, and SLURM may take that moment for the end
PATIENCE_S = 45 * 60
POLL_S = 15
WORKING = ("pending", "running", "unknown")


def finish(launch: Launch, archives: Path) -> Path:
    """Summarise and preserve a launch; returns the archive, which the index beside it has verified."""
    from latentbridge.audit.ablations import summarize
    from latentbridge.launch.preserve import preserve, write_index

    with lease(launch.path / "finish.lock", f"preserving {launch.name}"):
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


def all_ended(launch: Launch) -> bool:
    """Wait until no run is queued or running; False if that takes longer than this job may last."""
    deadline = time.monotonic() + PATIENCE_S
    while any(state.phase in WORKING for state in status(launch)):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def main() -> None:
    """Entry point of the finish job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("launch", type=Path)
    launch = Launch(parser.parse_args().launch)
    if all_ended(launch):
        print(finish(launch, launch.path.parents[1] / "preserved_data"))
    elif not requeue():
        raise SystemExit(f"runs of {launch.name} are still at work; run this again when they have ended")


if __name__ == "__main__":
    main()
