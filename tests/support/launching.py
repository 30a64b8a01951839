"""What tests of whole launches share: find the launch, wait for it, read what it counted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path


def the_launch(root: Path) -> Path:
    """The one launch folder of a project."""
    (folder,) = [path for path in (root / "runs").iterdir() if not path.name.startswith(".")]
    return folder


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Return once `condition` holds; the test fails if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def steps_of(run: Path) -> list[int]:
    """Every step that a run logged, in the order of the log."""
    return [json.loads(line)["step"] for line in (run / "train.jsonl").read_text().splitlines()]
