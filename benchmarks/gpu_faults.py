"""Real faults on real GPUs: python benchmarks/gpu_faults.py   (one GPU: out of memory; two: a hang in NCCL)

A launch of jobs that run out of device memory until their micro-batch has been halved twice, that hang in a
collective once, and that are told of an error once; each must be recognised and cured without a person.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gpus import describe_and_list

ROOT = Path(__file__).parents[1]

JOB = '''
"""Fills a share of the device per sample; hangs or fails in its first attempt where it is told to."""
import os
import time

from pydantic import Field

from latentbridge import job
from latentbridge.config import JobConfig
from latentbridge.train.config import TrainConfig


class Config(JobConfig):
    train: TrainConfig
    share_per_sample: float = Field(0.0, ge=0)
    hang_rank: int | None = None


def train(config, run):
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    _, micro = config.train.micro_batches(dist.get_world_size(), run.backoff)
    total = torch.cuda.get_device_properties(0).total_memory
    sample = torch.ones(1, device="cuda")
    held = torch.empty(int(micro * config.share_per_sample * total), dtype=torch.uint8, device="cuda")
    for step in range(1, config.train.steps + 1):
        first = len(run.folder.list_attempts()) == 1
        if step == 2 and first and config.hang_rank == dist.get_rank():
            time.sleep(3600)
        dist.all_reduce(sample)
        torch.cuda.synchronize()
        run.log({"step": step, "loss": 1.0, "micro_batch_size": micro, "held_gib": held.numel() / 2**30})
        run.progress("training", step, config.train.steps)
    return {"steps": config.train.steps}


if __name__ == "__main__":
    job.main(Config, train)
'''

SPEC = """
name: faults
job: fault
cluster: local
hang_timeout_min: 1
retry: {oom: 2, hang: 1, error: 1}
runs:
"""


def make_project(folder: Path, gpus: int) -> None:
    """Write jobs, profile and spec: `memory` on one GPU, `hang` on two where there are two."""
    for name in ("jobs", "configs", "slurm"):
        (folder / name).mkdir()
    (folder / "latentbridge").symlink_to(ROOT / "latentbridge")
    (folder / "jobs" / "fault.py").write_text(JOB)
    (folder / "slurm" / "local.yaml").write_text("executor: local\n")
    train = "train: {steps: 6, batch_size: 32}"
    # 32 samples would take two devices, 16 just under one and with the context more than there is
    lines = [f"  memory: {{{train}, share_per_sample: 0.0622, resources: {{gpus_per_node: 1}}}}"]
    if gpus > 1:
        lines.append(f"  hang: {{{train}, hang_rank: 1, resources: {{gpus_per_node: 2}}}}")
    (folder / "configs" / "faults.yaml").write_text(SPEC + "\n".join(lines) + "\n")


def report(launch: Path) -> None:
    """Print every attempt of every run, and the stacks of hung ranks."""
    for run in sorted(path.parent for path in launch.glob("*/config.yaml")):
        manifest = json.loads((run / "manifest.json").read_text())
        print(f"\n{run.name}: {'DONE' if (run / 'DONE').exists() else 'NOT DONE'}")
        for note in manifest.get("changes", []):
            print(f"  {note}")
        for attempt in sorted((run / "attempts").iterdir(), key=lambda path: int(path.name)):
            ending = json.loads((attempt / "exit.json").read_text())
            took = ending["ended"] - ending["began"]
            print(
                f"  attempt {attempt.name}: {ending['cause']} after {took:.0f} s: {ending['message'][:120]}"
            )
            for stack in sorted(attempt.glob("stacks/*.txt")):
                top = [line.strip() for line in stack.read_text().splitlines() if "File" in line][:2]
                print(f"    {stack.name}: {' < '.join(top)}")


def main() -> None:
    """Launch, wait, report; exit code 1 if a run did not get done."""
    gpus = describe_and_list(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_project(folder, len(gpus))
        done = subprocess.run(
            [sys.executable, str(ROOT / "launch.py"), "faults"],
            env=os.environ | {"LATENTBRIDGE_ROOT": str(folder)},
            check=False,
        )
        (launch,) = (folder / "runs").glob("faults_*")
        report(launch)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
