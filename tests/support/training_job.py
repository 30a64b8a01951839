"""The toy workload of tests/train as a job: the real loop and engines, and every rank says where it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

TOY = Path(__file__).parents[1] / "train" / "toy.py"
JOB = """

import os
import time

from latentbridge import job
from latentbridge.rundir import write_json

Toy = Config
TOLD = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_PORT", "SLURMD_NODENAME", "SLURM_NODEID"
)


class Config(Toy):
    dropout: float = 0.0
    step_s: float = 0.0


def train(config, run):
    folder = run.folder.path / "ranks"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{run.rank}.json", {name: os.environ.get(name) for name in TOLD})

    def tell(step):
        if run.is_main:
            print(f"update {step}", flush=True)
        time.sleep(config.step_s)

    return fit(Workload(config.dropout, losses=tell), config, run)


if __name__ == "__main__":
    job.main(Config, train)
"""
# by the metric "step" the last weights are the best
BASE = """
optim: {lr: 0.05, weight_decay: 0.1, warmup_steps: 2, clip_norm: 0.5}
train: {zero_stage: 1, steps: 40, batch_size: 8, log_every: 1, eval_every: 20, checkpoint_every: 5}
early_stop: {metric: step, mode: max, patience: null}
"""


def write_training_job(project: Path) -> None:
    """Add jobs/toy.py and its base to a project."""
    (project / "jobs" / "toy.py").write_text(TOY.read_text() + JOB)
    (project / "configs" / "toy.yaml").write_text(BASE)


def losses_of(run: Path) -> list[float]:
    """The loss of every update that a run logged."""
    records = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [sum(record["losses"].values()) for record in records]


def weights_of(run: Path) -> str:
    """The sha256 of a run's final weights."""
    return hashlib.sha256((run / "checkpoints" / "best" / "model.safetensors").read_bytes()).hexdigest()


def updates_of(log: Path) -> list[int]:
    """The updates that rank 0 began, by what it printed."""
    lines = log.read_text().splitlines()
    return [int(line.removeprefix("update ")) for line in lines if line.startswith("update ")]
