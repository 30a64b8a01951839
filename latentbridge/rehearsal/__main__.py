"""python -m latentbridge.rehearsal REQUEST.json REPORT.json: rehearse a plan, on CPU, in one process.

The launcher calls it before anything is queued; it never imports torch itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from latentbridge.errors import LatentbridgeError
from latentbridge.rehearsal.conduct import conduct
from latentbridge.rundir import read_json, write_json


def main() -> None:
    request, report = map(Path, sys.argv[1:])
    # what libraries print is none of the launcher's business
    progress = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(done: int, total: int, what: str) -> None:
        progress.write(f"{done} {total} {what}\n")

    try:
        write_json(report, conduct(read_json(request), request.parent, say))
    except LatentbridgeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
