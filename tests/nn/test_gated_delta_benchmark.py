from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gated_delta.py"
SMALL = (
    "--batches 2 1 --heads 3 --tokens 80 --key-widths 4 5 --value-widths 6 7 --chunks 8 16 --oracle-length 5"
)


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("gated_delta_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(
        sys,
        "argv",
        [str(SCRIPT), *SMALL.split(), "--rounds", "1", "--device", "cpu", "--results", str(tmp_path)],
    )
    return module


def test_the_benchmark_checks_and_then_times_every_way_at_every_width(benchmark, capsys, tmp_path):
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()

    assert [line.split(":")[0] for line in lines if line.startswith("K=")] == ["K=4 V=6", "K=5 V=7"]
    assert sum("worst gradient" in line for line in lines) == 4
    rows = [line.split(" | ")[0] for line in lines if line.startswith(("| rec", "| chunks"))]
    assert rows == ["| recurrence, at T=5, scaled", "| chunks of 8", "| chunks of 16"] * 4
    (saved,) = tmp_path.iterdir()
    assert saved.read_text().splitlines() == lines


def test_the_benchmark_times_nothing_that_is_wrong(benchmark, monkeypatch, capsys):
    right = benchmark.gated_delta_rule
    monkeypatch.setattr(
        benchmark,
        "gated_delta_rule",
        lambda *given, chunk, by_triton: right(*given[:4], given[4] * 0.99, chunk=chunk),
    )
    with pytest.raises(
        SystemExit, match=r"K=5 V=7: ArithmeticError: chunks of 8 is wrong; nothing was timed"
    ):
        benchmark.main()
    assert "x recurrence" not in capsys.readouterr().out


def test_a_way_that_fails_leaves_the_others_timed(benchmark, monkeypatch, capsys):
    right = benchmark.gated_delta_rule

    def rule(q, *given, chunk, by_triton):
        # of those that are timed, 80 and 40 tokens each
        if chunk == 8 and q.shape[1] == 80:
            raise RuntimeError("no such luck")
        return right(q, *given, chunk=chunk)

    monkeypatch.setattr(benchmark, "gated_delta_rule", rule)
    with pytest.raises(SystemExit, match="chunks of 8: RuntimeError: no such luck"):
        benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| chunks")]

    assert ["failed" in row for row in rows] == [False, False, True, False] * 2


def test_unpaired_widths_are_refused(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--key-widths", "4", "--value-widths", "4", "5"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "give as many of one as of the other" in capsys.readouterr().err
