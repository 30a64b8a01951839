"""The capacity bench: what it measures is arithmetic where it can be, and what was measured stays."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from latentbridge.capacity import bench as bench_module
from latentbridge.capacity.bench import ROWS, Bench, Round, measure, routed
from latentbridge.capacity.config import CapacityConfig
from latentbridge.capacity.rehearsal import CapacityRehearsal, drops
from latentbridge.errors import ConfigError
from latentbridge.job import Run
from latentbridge.metric import Metric
from latentbridge.rehearsal import checks
from latentbridge.rehearsal.contract import Caught, Stage
from latentbridge.rundir import RunDir, append_jsonl, read_jsonl

MINE = CapacityRehearsal()
TINY: dict[str, Any] = {
    "num_tokens": 2048,
    "width": 3,
    "dtype": "fp32",
    "num_experts": 8,
    "top_k": 2,
    "capacity_factors": [0.9, 1.0, 1.25],
    "iterations": 5,
    "warmup": 2,
}


class Asked(Run):
    """A run that is asked to stop after so many questions; None: never."""

    def __init__(self, folder: Path, questions: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(RunDir(folder), attempt=folder)
        self.numbers, self.questions = count(1), questions

    def should_stop(self) -> bool:
        return self.questions is not None and next(self.numbers) > self.questions


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    number = count()

    def make(**changes: Any) -> Stage:
        config = CapacityConfig.model_validate(TINY | changes)
        return Stage(MINE, MINE.shrink(config, tmp_path), tmp_path / f"stage{next(number)}", [config])

    return make


def rows_of(run: Run) -> list[dict[str, Any]]:
    return list(read_jsonl(run.folder.path / ROWS))


def test_the_k_best_are_chosen_and_weighted_among_themselves():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 3.5]])
    routing = routed(logits, 2)

    # pair k·N + n is the k-th choice of token n
    assert routing.experts.tolist() == [1, 2, 2, 0]
    assert routing.tokens.tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(
        routing.gates, torch.tensor([0.7311, 0.6225, 0.2689, 0.3775]), rtol=0, atol=1e-4
    )


def test_what_is_packed_are_the_tokens_that_have_a_seat_expert_after_expert(monkeypatch):
    config = CapacityConfig.model_validate(TINY | {"num_tokens": 5, "num_experts": 2, "top_k": 1})
    made = Bench(config)
    seen: list[torch.Tensor] = []
    plain = torch.Tensor.index_select

    def spied(tensor: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
        if tensor is made.tokens:
            seen.append(index)
        return plain(tensor, dim, index)

    monkeypatch.setattr(torch.Tensor, "index_select", spied)
    monkeypatch.setattr(bench_module, "routed", lambda *args: routed(torch.tensor(LOGITS), 1))
    # ceil(0.8 · 5 / 2) slots
    assert made.round(0.8, 0).dropped == pytest.approx(1 / 5)
    assert [index.tolist() for index in seen] == [[0, 1, 3, 4]]


# experts 0, 0, 0, 1, 1: the third token finds no seat
LOGITS = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]


def test_rates_are_quantiles_over_the_rounds_and_drops_a_mean():
    made = Bench(CapacityConfig.model_validate(TINY))
    # 2,048 tokens in 1, 2, 4, 8, 16 s
    row = made.row(1.0, [Round(2.0**n, 0.01 * n) for n in range(5)])

    assert row["tokens_per_s"] == 512
    assert row["tokens_per_s_p10"] == pytest.approx(128 + 0.4 * 128)
    assert row["tokens_per_s_p90"] == pytest.approx(1024 + 0.6 * 1024)
    assert row["drop_rate"] == pytest.approx(0.02)
    assert row["slots"] == 512
    assert row["iterations"] == 5


def test_every_factor_is_tried_on_the_same_tokens(ranks, tmp_path):
    """So that less is dropped as room grows, without luck."""
    run = Asked(tmp_path / "run")
    (summary,) = ranks(measure, CapacityConfig.model_validate(TINY), run, world_size=1)
    rows = rows_of(run)

    assert [row["capacity_factor"] for row in rows] == TINY["capacity_factors"]
    for row, near in zip(rows, (0.005, 0.005, 0.001), strict=True):
        assert row["drop_rate"] == pytest.approx(row["closed_form"], abs=near)
    assert rows[0]["drop_rate"] > rows[1]["drop_rate"] > rows[2]["drop_rate"] >= 0
    (record,) = read_jsonl(run.folder.metrics_log)
    assert record["metrics"] == summary["final"]
    assert set(summary["final"]) == set(CapacityConfig.model_validate(TINY).metric_names())


def test_a_stopped_bench_goes_on_and_measures_nothing_twice(ranks, tmp_path):
    config = CapacityConfig.model_validate(TINY)
    # 7 rounds a factor: in the second row's
    stopped = Asked(tmp_path / "run", questions=10)
    assert ranks(measure, config, stopped, world_size=1) == [None]
    first = rows_of(stopped)
    assert len(first) == 1
    with open(stopped.folder.path / ROWS, "a") as file:
        file.write('{"torn')

    (summary,) = ranks(measure, config, Asked(tmp_path / "run"), world_size=1)

    found = rows_of(stopped)
    assert [row["capacity_factor"] for row in found] == TINY["capacity_factors"]
    # seconds too, which no second measurement would give again
    assert found[0] == first[0]
    assert summary["steps"] == 3


def test_a_bench_that_is_all_measured_reads_its_rows(ranks, tmp_path):
    config = CapacityConfig.model_validate(TINY | {"capacity_factors": [1.5]})
    run = Asked(tmp_path / "run")
    row = {"capacity_factor": 1.5, "iterations": 4, "drop_rate": 0.25, "tokens_per_s": 8.0}
    append_jsonl(run.folder.path / ROWS, row | {"drop_rate_low": 0.125, "drop_rate_high": 0.5})
    (summary,) = ranks(measure, config, run, world_size=1)

    assert summary["final"] == {
        "c1.5_drop_rate": {"value": 0.25, "n": 4, "low": 0.125, "high": 0.5},
        "c1.5_tokens_per_s": {"value": 8.0, "n": 4},
    }


def test_two_ranks_are_refused(ranks, tmp_path):
    def refused(run: Run) -> str:
        with pytest.raises(ConfigError) as error:
            measure(CapacityConfig.model_validate(TINY), run)
        return str(error.value)

    assert "gpus_per_node: 1" in ranks(refused, Asked(tmp_path / "run"), world_size=2)[0]


@pytest.mark.parametrize("changes", [{}, {"top_k": 1}, {"preference": 0.5}], ids=str)
def test_the_bench_passes_every_check(stage, changes: dict[str, Any]):
    assert len([check.prove(stage(**changes)) for check in (*checks.CHECKS, *MINE.checks)]) == 6


def test_drops_that_arithmetic_does_not_know_are_caught(stage, monkeypatch):
    """Counted over tokens instead of pairs, as it were: half of them."""
    plain = Bench.round
    halved = lambda self, *args: Round(1.0, plain(self, *args).dropped / 2)  # noqa: E731
    monkeypatch.setattr(Bench, "round", halved)

    with pytest.raises(Caught, match=r"dropped at factor 0\.9"):
        drops(stage())


def test_preferring_routers_drop_more_than_arithmetic_says(stage):
    even, uneven = (stage(num_experts=64, preference=p).evaluated["c1.25_drop_rate"] for p in (0.0, 0.5))

    assert isinstance(uneven, Metric)
    assert even.value < 0.01
    assert uneven.value > 0.1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"top_k": 9}, "there are 8 experts"),
        ({"capacity_factors": [1.0, 1.0]}, "each above the last"),
        ({"capacity_factors": [0.0, 1.0]}, "above 0"),
        ({"capacity_factors": []}, "at least 1 item"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], complaint: str):
    with pytest.raises(ValueError, match=complaint):
        CapacityConfig.model_validate(TINY | changes)
