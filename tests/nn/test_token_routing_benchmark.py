from __future__ import annotations

import importlib.util
import math
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
    mixers = ["both", "softmax", "gdn", "routed, plain"]
    models = ["gdn", "softmax", "baseline", "routed"]

    expected = [[f"| {length}", name] for length in (16, 24) for name in mixers]
    assert rows == expected + [[f"| {length}", name] for name in models for length in (16, 24)]


@pytest.mark.parametrize(("factor", "told"), [(0.99, "1.0e-02"), (math.nan, "nan")])
def test_what_is_wrong_or_fails_is_told_and_not_timed_and_the_rest_is(
    benchmark, monkeypatch, tmp_path, factor, told
):
    """A compiler that refused one way ended them all, and nothing of a lent card's minutes was left."""
    module, run = benchmark
    right = module.RoutedMixer.forward

    def wrong(mixer, x, turns, route):
        return right(mixer, x, turns, route) * (1 if route.takers is None else factor)

    def refuse(*given):
        raise ValueError("one | two")

    monkeypatch.setattr(module.RoutedMixer, "forward", wrong)
    monkeypatch.setattr(module, "wholes", refuse)
    with pytest.raises(
        SystemExit, match=rf"whole: ValueError: one \| two\n16, routed, plain: .* it is off by {told}"
    ):
        run("whole", "mixer")
    (saved,) = tmp_path.iterdir()
    rows = [line.split(" | ")[:3] for line in saved.read_text().splitlines() if line.startswith("| 16")]

    assert [name for _, name, _ in rows] == ["both", "softmax", "gdn", "routed, plain"]
    assert ["failed" in found for *_, found in rows] == [False, False, False, True]


def test_the_reference_read_in_parts_is_the_whole_with_its_gradient(benchmark, monkeypatch):
    """Of 98,304 tokens at once it would have taken more than a card has."""
    module, _ = benchmark
    torch.manual_seed(3)
    gdn = module.GatedDeltaNet(12, 2, 8, 8)
    mixer = module.RoutedMixer(gdn, module.CausalAttention(12, 2, False, 0.0))
    x, above = torch.randn(2, 11, 12), torch.randn(2, 11, 12)
    gates = torch.rand(2, 11, 2)
    whole = module.exactly(mixer, x, gates, above)
    monkeypatch.setattr(module, "PART", 4)
    in_parts = module.exactly(mixer, x, gates, above)

    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, in_parts, strict=True))
    assert whole[1].abs().min() > 0


def test_an_unknown_part_is_refused(benchmark, capsys):
    _, run = benchmark
    with pytest.raises(SystemExit):
        run("decode")

    assert "parts are convolution, mixer, whole, train" in capsys.readouterr().err
