"""The systems that are compared, each set up as its own documentation recommends."""

from __future__ import annotations

import json
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cluster import ROOT

if TYPE_CHECKING:
    from scene import Scene

NO_RETRY = "does not retry a job that fails"
NO_NEEDS = "has no dependencies between jobs"
PROFILE = """executor: slurm
max_parallel: 12
partition: low
resources: {gpus_per_node: 1, cpus_per_gpu: 1, mem_gb: 4, timeout_min: 20}
"""


class System(ABC):
    """A launcher under test."""

    name: ClassVar[str]
    # how it was set up, for the reader of the table
    setup: ClassVar[str]
    # checks it cannot enter, and why
    cannot: ClassVar[dict[str, str]] = {}

    def __init__(self, python: Path) -> None:
        """python: an interpreter that has it."""
        self.python = str(python)

    def prepare(self, scene: Scene) -> None:  # noqa: B027 - most need nothing
        """Write what a user would have written beside the files of work/."""

    @abstractmethod
    def command(self, scene: Scene) -> list[str]:
        """What a user types, the first time and every other time."""

    def unlock(self, scene: Scene) -> list[str]:
        """What it says is to be typed after its command was killed; empty: nothing."""
        return []

    @abstractmethod
    def states(self, scene: Scene) -> dict[str, str]:
        """Every cell's state in the system's own opinion: done, failed, or another word."""


class Submitit(System):
    """The library in a script of its user."""

    name = "submitit"
    setup = (
        "a script with `AutoExecutor`, `%j` in its folder, `map_array` of a callable with `checkpoint()`; "
        "dependencies by `slurm_additional_parameters`: `afterok`, and in its favour "
        "`kill-on-invalid-dep=yes`, without which eval pends for ever; the script asks `done()` and "
        "`exception()` every second"
    )
    cannot: ClassVar[dict[str, str]] = {"attempts": NO_RETRY, "late_success": NO_RETRY}

    def command(self, scene: Scene) -> list[str]:
        """Run the script."""
        return [self.python, "submitit_sweep.py", str(scene.folder)]

    def states(self, scene: Scene) -> dict[str, str]:
        """What its jobs' `done()` and `exception()` said last."""
        file = scene.folder / "states.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}


class Hydra(System):
    """A Hydra application with the submitit launcher."""

    name = "Hydra + submitit launcher"
    setup = (
        "`override hydra/launcher: submitit_slurm`, `--multirun`, the default sweep folder (by date and "
        "time); its opinion is how the command ends"
    )
    cannot: ClassVar[dict[str, str]] = {
        "attempts": NO_RETRY,
        "failed_parent": NO_NEEDS,
        "late_success": NO_NEEDS,
    }

    def command(self, scene: Scene) -> list[str]:
        """Sweep over all cells."""
        cells = ",".join(scene.cells)
        return [self.python, "hydra_app.py", "--multirun", f"scene={scene.folder}", f"cell={cells}"]

    def states(self, scene: Scene) -> dict[str, str]:
        """Running until the command ends; then a cell that did not get to its end counts as failed."""
        code = scene.launchers[-1].poll()
        if code is None:
            return dict.fromkeys(scene.cells, "running")
        bad = "failed" if code else "done"
        return {cell: "done" if scene.lines("ended", cell) else bad for cell in scene.cells}


class Snakemake(System):
    """Snakemake with its SLURM executor plugin."""

    name = "Snakemake + SLURM plugin"
    setup = (
        "`--executor slurm --jobs unlimited --keep-going --rerun-incomplete --slurm-requeue`, `--retries 1` "
        "where the check has a retry; after a killed command what its refusal says, `--unlock`; status "
        "checks begin after 1 s (the least allowed; 40 by default), by `squeue` where there is no accounting"
    )

    def command(self, scene: Scene) -> list[str]:
        """Bring every cell up to date."""
        # an account is looked up with sacctmgr
        account = ["slurm_account=lab"] if scene.cluster.has_accounting else []
        status = "sacct" if scene.cluster.has_accounting else "squeue"
        retries = str(max(cell.get("retries", 0) for cell in scene.cells.values()))
        return [
            *(self.python, "-m", "snakemake", "--executor", "slurm", "--jobs", "unlimited", "--keep-going"),
            *("--rerun-incomplete", "--retries", retries, "--slurm-requeue", "--latency-wait", "5"),
            *("--slurm-init-seconds-before-status-checks", "1", "--slurm-status-command", status),
            *("--default-resources", "slurm_partition=low", "runtime=20", "mem_mb=1000", *account),
        ]

    def unlock(self, scene: Scene) -> list[str]:
        """Its refusal names this."""
        return [self.python, "-m", "snakemake", "--unlock"]

    def states(self, scene: Scene) -> dict[str, str]:
        """Done where the output is; failed once the command has ended without it."""
        bad = "running" if scene.launchers[-1].poll() is None else "failed"
        return {c: "done" if (scene.folder / "done" / c).exists() else bad for c in scene.cells}


class Latentbridge(System):
    """This project, by its command."""

    name = "latentbridge"
    setup = (
        "`python launch.py sweep`; `retry: {error: 0, killed: 0}` where the check has no retry, else the "
        "default; its opinion is `latentbridge status --json`"
    )

    def prepare(self, scene: Scene) -> None:
        """A job, a spec and a cluster profile."""
        files = {
            "slurm/bench.yaml": PROFILE,
            "configs/sweep.yaml": self._spec(scene),
            "jobs/count.py": (scene.folder / "latentbridge_job.py").read_text(),
        }
        for name, text in files.items():
            (scene.folder / name).parent.mkdir()
            (scene.folder / name).write_text(text)
        (scene.folder / "latentbridge").symlink_to(ROOT / "latentbridge")

    def _spec(self, scene: Scene) -> str:
        has_retries = any("retries" in cell for cell in scene.cells.values())
        spec = {
            "name": "sweep",
            "job": "count",
            "cluster": "bench",
            "runs": {cell: {"cell": cell, "scene": str(scene.folder)} for cell in scene.cells},
            "needs": {cell: wanted["needs"] for cell, wanted in scene.cells.items() if "needs" in wanted},
            "retry": {} if has_retries else {"error": 0, "killed": 0},
        }
        return json.dumps(spec)  # which is YAML too

    def command(self, scene: Scene) -> list[str]:
        """Launch the spec."""
        return [self.python, str(ROOT / "launch.py"), "sweep"]

    def states(self, scene: Scene) -> dict[str, str]:
        """What `status` says."""
        found = sorted((scene.folder / "runs").glob("sweep_*"))
        if not found:
            return {}
        command = [self.python, "-m", "latentbridge.launch.cli", "status", "--json", str(found[-1])]
        environ = scene.environ | {"PYTHONPATH": str(ROOT)}
        answer = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if not answer.stdout:
            return {}
        return {run["name"]: run["phase"] for run in json.loads(answer.stdout)["runs"]}
