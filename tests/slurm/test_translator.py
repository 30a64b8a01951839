"""The real translator on real SLURM: preempted, requeued, preserved, and the same numbers as at home."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from launching import the_launch, wait_for

from latentbridge.launch.preserve import verify
from latentbridge.rundir import read_json

REPOSITORY = Path(__file__).parents[2]
RUNS = ("one_rank-s1234", "two_nodes-s1234", "swapped-s1234")


def make_root(folder):
    folder.mkdir()
    for name in ("latentbridge", "jobs", "configs", "slurm"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


def launch(root, monkeypatch, *words):
    monkeypatch.setenv("LATENTBRIDGE_ROOT", str(root))
    command = [sys.executable, str(REPOSITORY / "launch.py"), "demo_smoke", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


def losses(run):
    lines = (run / "train.jsonl").read_text().splitlines()
    return {record["step"]: record["losses"]["lm"] for record in map(json.loads, lines)}


@pytest.mark.timeout(600)
def test_preempted_on_slurm_and_undisturbed_at_home_the_same_cells_have_the_same_losses(
    cluster, tmp_path, monkeypatch
):
    far, home = make_root(tmp_path / "far"), make_root(tmp_path / "home")
    submitted = launch(far, monkeypatch, "--cluster", "test")
    assert submitted.returncode == 0, submitted.stderr
    folder = the_launch(far)
    wait_for(
        lambda: (
            all(len(losses(folder / r)) >= 7 for r in RUNS if (folder / r / "train.jsonl").exists())
            and all((folder / r / "train.jsonl").exists() for r in RUNS)
        )
    )

    pushed = cluster.run(
        "sbatch", "--partition=high", "--exclusive", "--nodes=3", "--output=/dev/null", "--wrap=true"
    )

    assert pushed.returncode == 0, pushed.stderr
    wait_for(lambda: list(far.glob("preserved_data/demo_smoke_*[0-9]/SHA256SUMS")))
    (archive,) = far.glob("preserved_data/demo_smoke_*[0-9]")
    assert verify(archive) == []
    for run in RUNS:
        assert (archive / run / "DONE").exists(), run
        first = read_json(archive / run / "attempts" / "1" / "exit.json")
        assert first["cause"] in ("stopped", "preempted"), run
        assert len(list((archive / run / "attempts").iterdir())) == 2, run

    at_home = launch(home, monkeypatch, "--cluster", "local")
    assert at_home.returncode == 0, at_home.stdout + at_home.stderr
    for run in RUNS:
        here, there = losses(the_launch(home) / run), losses(archive / run)
        assert sorted(here) == sorted(there) == list(range(1, 41))
        assert [there[step] for step in sorted(there)] == pytest.approx(
            [here[s] for s in sorted(here)], rel=1e-4
        )
