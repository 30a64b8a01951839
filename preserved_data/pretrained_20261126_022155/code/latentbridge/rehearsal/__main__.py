"""python -m latentbridge.rehearsal REQUEST.json REPORT.json: rehearse a plan, on CPU, in one process.

The launcher calls it before anything is queued; it never imports torch itself.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from latentbridge.errors import LatentbridgeError
from latentbridge.rehearsal.conduct import conduct
from latentbridge.rundir import read_json, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("request", type=Path)
    parser.add_argument("report", type=Path)
    args = parser.parse_args()
    # what libraries print is none of the launcher's business
    progress = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(done: int, total: int, what: str) -> None:
        progress.write(f"{done} {total} {what}\n")

    try:
        found = conduct(read_json(args.request), args.request.parent, say)
    except LatentbridgeError as error:
        found = {"error": str(error)}
    write_json(args.report, found)


if __name__ == "__main__":
    main()
