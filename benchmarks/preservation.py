"""How long does it take to keep a GiB? python benchmarks/preservation.py   (no GPU, 2 minutes, 4 GiB of disk)

A launch of 8 runs is made up: weights that nothing compresses, evaluations with prompts that repeat, many
small files, 1 GiB in all. Timed are preserve, a second preserve, verify, index and restore, then the same
with evaluations compressed. `--gib 0.1` for a quick look; `--where` for another disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentbridge.launch.archive import restore, verify
from latentbridge.launch.index import write_index
from latentbridge.launch.preserve import Keep, preserve
from latentbridge.rundir import RunDir, write_json

GIB = 2**30
RUNS = 8
SMALL_FILES = 100  # of a run: attempts, heartbeats, figures
SMALL_BYTES = 2000
# of a run's bytes; the rest are weights
SHARE_OF_ANSWERS = 0.25
RECORD_BYTES = 11_600  # of an answer, of which the repeated prompt is about 80 %


def main() -> None:
    """Print one Markdown table for each way to keep the launch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--where", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory(dir=args.where) as folder:
        launch = make_launch(Path(folder) / "runs" / "bench_20261126_000000", round(args.gib * GIB))
        measure(launch, Path(folder), "plain", Keep(checkpoints="best"))
        measure(launch, Path(folder), "answers compressed", Keep(checkpoints="best", compress=["*/eval_*"]))


def make_launch(folder: Path, num_bytes: int) -> Path:
    """A launch whose runs have ended, of about so many bytes."""
    noise, names = random.Random(17), [f"a-s{seed}" for seed in range(RUNS)]
    folder.mkdir(parents=True)
    plan = [{"name": n, "cell": "a", "seed": int(n[3:]), "id": n, "folder": n} for n in names]
    write_json(folder / "plan.json", {"name": "bench", "runs": plan, "compare": []})
    of_answers = int(num_bytes / RUNS * SHARE_OF_ANSWERS)
    of_weights = num_bytes // RUNS - of_answers - SMALL_FILES * SMALL_BYTES
    prompt = "".join(noise.choices("abcdefgh ", k=RECORD_BYTES * 4 // 5))
    for name in names:
        run = RunDir(folder / name)
        run.path.mkdir()
        attempt = run.new_attempt()
        for number in range(SMALL_FILES):
            (attempt / f"note_{number}.txt").write_bytes(noise.randbytes(SMALL_BYTES))
        with open(run.path / "eval_samples_step_final.jsonl", "w") as file:
            while file.tell() < of_answers:
                answer = "".join(noise.choices("abcdefgh ", k=RECORD_BYTES // 5))
                file.write(json.dumps({"question": prompt, "bridged_full": answer}) + "\n")
        best = run.checkpoints / "best"
        best.mkdir(parents=True)
        (best / "model.safetensors").write_bytes(noise.randbytes(of_weights))
        run.mark("DONE", {})
    return folder


def measure(launch: Path, folder: Path, title: str, keep: Keep) -> None:
    """Time every command on a launch, and see that each has done its work."""
    root, back = folder / "preserved_data", folder / "back"
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = call()
        seconds[name] = time.perf_counter() - started
        return found

    archive = timed("preserve", lambda: preserve(launch, root, keep=keep))
    made = (archive / "SHA256SUMS").stat().st_ino
    timed("preserve again, nothing to do", lambda: preserve(launch, root))
    assert (archive / "SHA256SUMS").stat().st_ino == made
    assert timed("verify", lambda: verify(archive)) == []
    timed("index", lambda: write_index(root))
    timed("restore", lambda: restore(archive, back))
    print(f"\n{title}: {_size(launch)}; archive: {_size(archive)}\n\n| command | s |\n| --- | --- |")
    for name, taken in seconds.items():
        print(f"| {name} | {taken:.1f} |")
    shutil.rmtree(root)
    shutil.rmtree(back)


def _size(folder: Path) -> str:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return f"{sum(sizes) / GIB:.2f} GiB in {len(sizes)} files"


if __name__ == "__main__":
    main()
