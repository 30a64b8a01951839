from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "token_routing.py"
LENGTHS = ("--lengths", "16", "24", "--small")


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("token_routing_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*parts: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *parts, *LENGTHS, "--results", str(tmp_path)])
        module.main()
        (saved,) = tmp_path.iterdir()
        return saved.read_text().splitlines()

    return module, run


def test_every_mixer_and_model_is_measured_at_every_length_and_saved(benchmark):
    _, run = benchmark
    rows = [line.split(" | ")[:2] for line in run("mixer", "whole") if line.startswith(("| 16", "| 24"))]
    mixers = ["both", "softmax", "gdn", "routed"]
    models = ["gdn", "softmax", "baseline", "routed"]

    expected = [[f"| {length}", name] for length in (16, 24) for name in mixers]
    assert rows == expected + [[f"| {length}", name] for name in models for length in (16, 24)]


def test_nothing_that_is_wrong_is_timed(benchmark, monkeypatch):
    module, run = benchmark
    monkeypatch.setattr(module.RoutedMixer, "forward", lambda mixer, x, turns, route: x * torch.rand(()))

    with pytest.raises(SystemExit, match="nothing was timed"):
        run("mixer")


def test_an_unknown_part_is_refused(benchmark, capsys):
    _, run = benchmark
    with pytest.raises(SystemExit):
        run("decode")

    assert "parts are mixer, whole, train" in capsys.readouterr().err
