"""The same run without the launcher: torchrun on a run folder's config, as the README shows it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FEWER = ["--set", "train.steps=6", "--set", "problems.train_examples=16", "--set", "problems.eval_examples=4"]


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """runs/.../one_rank-s1234 of the smoke spec, made and not started."""
    for name in ("latentbridge", "jobs", "configs", "slurm"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("LATENTBRIDGE_ROOT", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [
        sys.executable,
        str(ROOT / "launch.py"),
        "demo_smoke",
        "--no-submit",
        "--cluster",
        "local",
        *FEWER,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (folder,) = tmp_path.glob("runs/demo_smoke_*/one_rank-s1234")
    return folder


def torchrun(folder: Path, ranks: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [str(ROOT / "jobs" / "translator.py"), "--config", str(folder / "config.yaml")]
    with open(folder / "by_hand.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def test_torchrun_by_hand_fills_the_run_folder_and_a_second_time_does_nothing(run_folder):
    first = torchrun(run_folder, ranks=2)
    assert first.wait(timeout=120) == 0, (run_folder / "by_hand.log").read_text()
    done = (run_folder / "DONE").read_text()
    answers = (run_folder / "eval_samples_step_final.jsonl").read_text().splitlines()

    assert torchrun(run_folder, ranks=2).wait(timeout=120) == 0

    assert (run_folder / "DONE").read_text() == done
    assert [json.loads(line)["index"] for line in answers] == [0, 1, 2, 3]
    assert list(json.loads(answers[0]))[:3] == ["eval_step", "index", "question"]


def test_ctrl_c_by_hand_saves_and_the_same_command_goes_on(run_folder):
    config = run_folder / "config.yaml"
    config.write_text(config.read_text().replace("  steps: 6\n", "  steps: 400\n"))
    child = torchrun(run_folder, ranks=1)
    log = run_folder / "train.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size):
        assert time.monotonic() < deadline and child.poll() is None, (run_folder / "by_hand.log").read_text()
        time.sleep(0.1)

    child.send_signal(signal.SIGINT)
    child.wait(timeout=60)

    saved = json.loads((run_folder / "checkpoints" / "last" / "state.json").read_text())["step"]
    assert 0 < saved < 400
    assert not (run_folder / "DONE").exists()
    assert f"saved at update {saved}" in (run_folder / "STOPPED").read_text()
    assert f"saved at update {saved}" in (run_folder / "by_hand.log").read_text()
    config.write_text(config.read_text().replace("  steps: 400\n", f"  steps: {saved + 3}\n"))
    assert torchrun(run_folder, ranks=1).wait(timeout=120) == 0
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, saved + 4))
