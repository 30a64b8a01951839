"""latentbridge beside its peers on a real SLURM: python benchmarks/peers/run.py   (root, 2 cores, 15 min)

Makes a virtual environment for the peers and test clusters, with and without accounting, in one folder;
does the same to every system, three times; prints a markdown table.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from checks import CHECKS, Check
from cluster import Cluster
from judges import Outcome
from plays import each
from scene import Scene
from systems import Hydra, Latentbridge, Snakemake, Submitit, System

PEERS = [
    "submitit==1.5.4",
    "hydra-core==1.3.8",
    "hydra-submitit-launcher==1.2.0",
    "snakemake==9.27.1",
    "snakemake-executor-plugin-slurm==2.8.0",
]
Results = dict[str, dict[str, list[Outcome]]]


def peers_python(folder: Path) -> Path:
    """The interpreter of an environment that has the peers; made where there is none yet."""
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEERS]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the peers could not be installed: {done.stderr}")
    return python


def play(
    check: Check, systems: list[System], cluster: Cluster, folder: Path, repeats: int
) -> dict[str, list[Outcome]]:
    """One check on all systems that can enter it, all scenes at once."""
    scenes = [
        Scene(system, cluster, folder / f"{check.key}_{number}_{index}", check.cells)
        for index, system in enumerate(systems)
        if check.key not in system.cannot
        for number in range(repeats)
    ]
    found: dict[str, list[Outcome]] = {system.name: [] for system in systems}
    try:
        each(scenes, Scene.prepare)
        check.play(scenes, cluster)
        for scene in scenes:
            outcome = Outcome(False, scene.trouble) if scene.trouble else check.judge(scene)
            found[scene.system.name].append(outcome)
    finally:
        for scene in scenes:
            scene.clear()
    return found


def table(checks: list[Check], systems: list[System], results: Results) -> str:
    """Markdown: one row a check, one column a system."""
    lines = [["what is done, and what must come of it", *(system.name for system in systems)]]
    lines += [["---"] * len(lines[0])]
    for check in checks:
        cells = [_cell(check, system, results[check.key][system.name]) for system in systems]
        lines.append([f"{check.title}: *{check.claim}*", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(check: Check, system: System, outcomes: list[Outcome]) -> str:
    if check.key in system.cannot:
        return f"n/a: {system.cannot[check.key]}"
    passed = sum(outcome.passed for outcome in outcomes)
    verdict = "pass" if passed == len(outcomes) else "**fail**"
    seen = [
        f"{text} ({n}x)" if n < len(outcomes) else text
        for text, n in Counter(o.seen for o in outcomes).items()
    ]
    times = [outcome.seconds for outcome in outcomes if outcome.seconds is not None]
    seen += [f"{statistics.median(times):.0f} s"] if times else []
    return f"{verdict} {passed}/{len(outcomes)}: {'; '.join(seen)}"


def main() -> None:
    """Print the table, and how each system was set up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checks", nargs="+", choices=[check.key for check in CHECKS])
    parser.add_argument("--systems", nargs="+", help="the beginnings of their names")
    default = Path(tempfile.gettempdir()) / "latentbridge-peers"
    parser.add_argument("--folder", type=Path, default=default, help="of everything; kept for reading")
    args = parser.parse_args()
    began = time.monotonic()
    python = peers_python(args.folder)
    systems: list[System] = [
        Submitit(python),
        Hydra(python),
        Snakemake(python),
        Latentbridge(Path(sys.executable)),
    ]
    if args.systems:
        systems = [s for s in systems if s.name.lower().startswith(tuple(args.systems))]
    checks = [check for check in CHECKS if not args.checks or check.key in args.checks]
    scenes = args.folder / "scenes"
    shutil.rmtree(scenes, ignore_errors=True)
    results: Results = {}
    for site in {tuple(check.site.items()): check.site for check in checks}.values():
        with Cluster(args.folder / "slurm", SLURM_TEST_GPUS="8", **site) as cluster:
            version = cluster.run("sbatch", "--version").strip()
            for check in (check for check in checks if check.site == site):
                results[check.key] = play(check, systems, cluster, scenes, args.repeats)
                print(f"{check.key} after {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(table(checks, systems, results))
    print(f"\n{version}; {', '.join(PEERS)}\n")
    for system in systems:
        print(f"- {system.name}: {system.setup}")


if __name__ == "__main__":
    main()
