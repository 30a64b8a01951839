"""How long the login node is busy: python benchmarks/launcher.py   (a laptop, no GPU, 20 s)

CPU seconds of whole processes, median of five, beside what Python and the libraries alone cost.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS = 5


def cpu_seconds(command: list[str], environment: dict[str, str] | None = None) -> float:
    """User and system time of one process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | (environment or {}))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def wide_project(folder: Path, cells: int) -> Path:
    """A project whose one spec has so many cells of the real translator."""
    for name in ("latentbridge", "jobs", "slurm"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "configs").mkdir()
    (folder / "configs" / "translator").symlink_to(ROOT / "configs" / "translator")
    rates = ", ".join(f"{1e-4 + 1e-7 * i:.7f}" for i in range(cells // 5))
    spec = folder / "configs" / "wide.yaml"
    spec.write_text(
        "name: wide\njob: translator\nbase: translator/phase1\ncluster: h100\n"
        f"grid: {{model.soft_tokens: [8, 16, 32, 64, 128], optim.lr: [{rates}]}}\n"
    )
    return folder


def main() -> None:
    """Print the table."""
    launch = [sys.executable, str(ROOT / "launch.py")]
    libraries = "import yaml, pydantic, rich.console, rich.table, rich.progress, submitit.slurm.slurm"
    with tempfile.TemporaryDirectory() as folder:
        wide = {"LATENTBRIDGE_ROOT": str(wide_project(Path(folder), cells=1000))}
        rows = {
            "python alone": lambda: cpu_seconds([sys.executable, "-c", "pass"]),
            "its libraries imported": lambda: cpu_seconds([sys.executable, "-c", libraries]),
            "ablations.yaml --dry-run, 15 runs": lambda: cpu_seconds(
                [*launch, "ablations.yaml", "--dry-run"]
            ),
            "1,000 cells --dry-run": lambda: cpu_seconds([*launch, "wide.yaml", "--dry-run"], wide),
        }
        for name, measure in rows.items():
            seconds = sorted(measure() for _ in range(RUNS))
            print(f"{name:36} {statistics.median(seconds):.2f} s  [{seconds[0]:.2f}, {seconds[-1]:.2f}]")


if __name__ == "__main__":
    main()
