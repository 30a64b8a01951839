"""Where runs happen: cluster profiles (slurm/*.yaml), what a run asks of them, how many GPUs there are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from latentbridge.config import Config, Origin, Tree, build, read_yaml
from latentbridge.errors import ConfigError, PreflightError


class Resources(Config):
    """What one run asks for."""

    nodes: int = Field(1, ge=1)
    # ranks per node; None: NUM_GPUS, else what the machine has
    gpus_per_node: int | None = Field(None, ge=1)
    cpus_per_gpu: int = Field(1, ge=1)
    mem_gb: int | None = Field(None, ge=1)
    timeout_min: int = Field(720, ge=1)


class Cluster(Config):
    """One profile: an executor and what it needs; names follow sbatch's own."""

    executor: Literal["slurm", "local"]
    resources: Resources = Resources()
    # runs at the same time: array throttle on SLURM, worker processes locally
    max_parallel: int = Field(1, ge=1)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    # how long a node that failed a run or its health check is avoided
    exclude_hours: float = Field(24, ge=0)
    # shell lines that every node must pass before an attempt begins
    health_check: list[str] = []
    # interpreter on the nodes; None: the one that launches
    python: str | None = None
    # jobs and array tasks of this user in the queue at once; None: what accounting says
    submit_limit: int | None = Field(None, ge=2)
    # seconds before the time limit at which a run saves and requeues itself
    signal_delay_s: int = Field(120, ge=15)
    environment: dict[str, str] = {}
    setup: list[str] = []
    additional_parameters: dict[str, str | int | bool] = {}


def load_cluster(name: str | None, root: Path) -> tuple[str, Cluster]:
    """The named profile of slurm/; without a name, SLURM's default profile if sbatch is here, else local."""
    chosen = name or ("h100" if shutil.which("sbatch") else "local")
    path = root / "slurm" / f"{chosen}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ConfigError(f"cluster '{chosen}': there is no slurm/{chosen}.yaml; profiles: {known}")
    return chosen, build(Cluster, read_yaml(path, f"slurm/{path.name}"), f"cluster '{chosen}'")


def resources_for(cluster: Cluster, wanted: Tree, where: str) -> Resources:
    """The profile's resources with a run's own on top; GPU counts resolved to numbers."""
    # count_gpus puts NUM_GPUS before the profile
    defaults: dict[str, Any] = cluster.resources.model_dump(exclude={"gpus_per_node"})
    base = Tree(defaults, {(): wanted.origins.get((), Origin("slurm profile", 1))})
    resources = build(Resources, base.override(wanted), where)
    if resources.gpus_per_node is None:
        resources = resources.model_copy(update={"gpus_per_node": count_gpus(cluster)})
    return resources


def count_gpus(cluster: Cluster) -> int:
    """GPUs per node: NUM_GPUS, else the profile, else nvidia-smi, else torch (in its own process), else 1."""
    asked = os.environ.get("NUM_GPUS")
    if asked is not None:
        if not asked.isdigit() or int(asked) < 1:
            raise ConfigError(f"NUM_GPUS is '{asked}'; it must be a whole number from 1 on")
        return int(asked)
    if cluster.resources.gpus_per_node is not None:
        return cluster.resources.gpus_per_node
    return max(1, len(local_gpus()))


def local_gpus() -> list[str]:
    """This machine's GPUs as CUDA_VISIBLE_DEVICES writes them: those the user chose, or all there are."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    for command in (
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
        [sys.executable, "-c", "import torch\nfor _ in range(torch.cuda.device_count()): print('gpu')"],
    ):
        if command[0] == sys.executable and not Path("/dev/nvidiactl").exists():
            break  # without a driver torch has nothing to add, and takes seconds to say so
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if answer.returncode == 0 and answer.stdout.strip():
            return [str(index) for index in range(len(answer.stdout.strip().splitlines()))]
    return []


def check_executor(name: str, cluster: Cluster) -> None:
    """Refuse a SLURM profile where SLURM's commands are missing."""
    missing = [tool for tool in ("sbatch", "squeue", "scontrol") if not shutil.which(tool)]
    if cluster.executor == "slurm" and missing:
        raise PreflightError(
            f"cluster '{name}' needs {', '.join(missing)}, not on PATH here. "
            "Run on a login node, or use --cluster local"
        )
