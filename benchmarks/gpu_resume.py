"""Are weights after interruptions those of an undisturbed run? python benchmarks/gpu_resume.py   (1 GPU or 2)

The bundled translator in bf16 under ZeRO, launched undisturbed, then stopped by Ctrl-C, by SIGKILL of a rank
and by SIGKILL of the launcher, each at a random update, and gone on with by the same command; undisturbed
once more, last, which tells what is to be expected of the hardware.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from gpus import describe_and_list

from latentbridge.rundir import RunDir, read_jsonl

ROOT = Path(__file__).parents[1]
STEPS, CHECKPOINT_EVERY = 130, 20
SPEC = """
name: {name}
job: translator
base: translator/demo_gpu
cluster: local
seeds: [1234]
retry: {{killed: 9, no_progress: null}}
runs:
  a: {{train.zero_stage: {zero}, train.batch_size: 256, resources.gpus_per_node: {gpus}}}
"""
SETTINGS = [
    f"train.steps={STEPS}",
    f"train.checkpoint_every={CHECKPOINT_EVERY}",
    f"train.eval_every={STEPS}",
    "train.log_every=1",
    "problems.train_examples=4096",
    "problems.eval_examples=64",
]


def make_project(folder: Path, gpus: int) -> None:
    """The checkout, with runs of its own and a spec for each launch."""
    for name in ("latentbridge", "jobs", "slurm"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "configs").mkdir()
    (folder / "configs" / "translator").symlink_to(ROOT / "configs" / "translator")
    for name in ("peace", "again", "interrupted"):
        text = SPEC.format(name=name, gpus=gpus, zero=min(2, gpus))
        (folder / "configs" / f"{name}.yaml").write_text(text)


def launch(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """The launch command."""
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    log = open(folder / f"{name}.log", "ab")  # noqa: SIM115
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), name, *words],
        env=os.environ | {"LATENTBRIDGE_ROOT": str(folder)},
        stdout=log,
        stderr=log,
    )


def run_of(folder: Path, name: str) -> RunDir | None:
    """The run of a launch, once its folder is there."""
    found = list(folder.glob(f"runs/{name}_*/a-s1234"))
    return RunDir(found[0]) if found else None


def live_rank(run: RunDir) -> int | None:
    """The process that is rank 0 of the run now."""
    attempts = run.list_attempts()
    for beat in run.beats(attempts[-1])[:1] if attempts else ():
        with suppress(FileNotFoundError):
            # a zombie has no command line
            return beat.pid if Path(f"/proc/{beat.pid}/cmdline").read_bytes() else None
    return None


def interrupt(folder: Path, rng: random.Random) -> None:
    """Launch, and strike the run three times on its way."""
    process = launch(folder, "interrupted")
    while (run := run_of(folder, "interrupted")) is None:
        time.sleep(0.2)
    for how in ("Ctrl-C", "SIGKILL of a rank", "SIGKILL of the launcher"):
        at = run.last_step() + rng.randint(3, 30)
        while run.last_step() < at or not (rank := live_rank(run)):
            if process.poll() is not None:
                process = launch(folder, "interrupted")
            time.sleep(0.05)
        print(f"{how} after update {run.last_step()}", flush=True)
        if how == "Ctrl-C":
            process.send_signal(signal.SIGINT)
            process.wait(timeout=120)
        elif how == "SIGKILL of a rank":
            os.kill(rank, signal.SIGKILL)
        else:
            process.kill()
            process.wait()
        while rank == live_rank(run):
            time.sleep(0.05)
    if process.poll() is not None:
        process = launch(folder, "interrupted")
    process.wait(timeout=400)


def losses(run: RunDir) -> dict[int, dict[str, float]]:
    """Every update's losses."""
    found = {record["step"]: record["losses"] for record in read_jsonl(run.train_log)}
    assert sorted(found) == list(range(1, STEPS + 1)), "an update is missing"
    return found


def weights(run: RunDir) -> str:
    """The sha256 of the best weights, which are the last: there is one evaluation."""
    return hashlib.sha256((run.checkpoints / "best" / "model.safetensors").read_bytes()).hexdigest()


EQUAL = "weights and all losses equal to the last bit"


def compare(one: RunDir, other: RunDir) -> str:
    """Weights and losses of two runs of one config, in words."""
    a, b = losses(one), losses(other)
    first = next((step for step in a if a[step] != b[step]), None)
    if first is None:
        return EQUAL if weights(one) == weights(other) else "all losses equal, and yet the weights differ"
    apart = max(abs(a[s][k] - b[s][k]) / max(abs(a[s][k]), 1e-9) for s in a for k in a[s])
    return f"losses differ from update {first} on, by at most {apart:.2e} of their value"


def main() -> None:
    """Launch three times, compare, report; exit code 1 where interruptions change more than chance does."""
    gpus = describe_and_list(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_project(folder, len(gpus))
        found = {}
        for launched in ("peace", "interrupted", "again"):
            began = time.monotonic()
            if launched == "interrupted":
                interrupt(folder, random.Random(7))
            else:
                launch(folder, launched).wait(timeout=300)
            run = run_of(folder, launched)
            causes = [json.loads((a / "exit.json").read_text())["cause"] for a in run.list_attempts()]
            print(f"{launched}: {', '.join(causes)} in {time.monotonic() - began:.0f} s", flush=True)
            if not run.is_done:
                raise SystemExit((folder / f"{launched}.log").read_text()[-3000:])
            if launched != "peace":
                found[launched] = compare(run_of(folder, "peace"), run)
                print(f"{launched} beside peace: {found[launched]}", flush=True)
    raise SystemExit(found["interrupted"] != EQUAL and found["again"] == EQUAL)


if __name__ == "__main__":
    main()
