"""How long the login node is busy: python benchmarks/launcher.py   (a laptop, no GPU, 30 s)

CPU and wall seconds of whole processes, median of five, beside what Python and the libraries alone cost.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS = 5


def seconds(command: list[str], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """CPU time (user and system, children included) and wall time of one process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | (environment or {}))
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


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
    with tempfile.TemporaryDirectory() as narrow, tempfile.TemporaryDirectory() as wide:
        few = {"LATENTBRIDGE_ROOT": str(wide_project(Path(narrow), cells=10))}
        many = {"LATENTBRIDGE_ROOT": str(wide_project(Path(wide), cells=5000))}
        rows = {
            "python alone": lambda: seconds([sys.executable, "-c", "pass"]),
            "its libraries imported": lambda: seconds([sys.executable, "-c", libraries]),
            "10 cells --dry-run": lambda: seconds([*launch, "wide.yaml", "--dry-run"], few),
            "5,000 cells --dry-run": lambda: seconds([*launch, "wide.yaml", "--dry-run"], many),
        }
        for name, measure in rows.items():
            cpu, wall = zip(*(measure() for _ in range(RUNS)), strict=True)
            print(
                f"{name:24} CPU {statistics.median(cpu):.2f} s [{min(cpu):.2f}, {max(cpu):.2f}]"
                f"   wall {statistics.median(wall):.2f} s [{min(wall):.2f}, {max(wall):.2f}]"
            )


if __name__ == "__main__":
    main()
