"""Which runs had a card together, by when their attempts began and ended."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentbridge.audit.figures import known, render
from latentbridge.audit.records import read_records
from latentbridge.audit.sharing import most_at_once
from latentbridge.rundir import RunDir, append_jsonl, write_json


@pytest.fixture
def attempt(tmp_path: Path):
    def make(
        run: str, cards: str | None, began: float, ended: float, host: str = "a", number: int = 1
    ) -> None:
        folder = tmp_path / run / "attempts" / str(number)
        folder.mkdir(parents=True)
        write_json(folder / "env.json", {"host": host, "cards": cards})
        write_json(folder / "exit.json", {"began": began, "ended": ended})

    return make


def found(folder: Path) -> dict[str, int]:
    return most_at_once(RunDir(path) for path in sorted(folder.iterdir()))


def test_as_many_as_were_on_a_card_at_one_moment_are_counted(attempt, tmp_path):
    """By hand: at 30 a, b and c; d begins as a ends, when c is still there."""
    attempt("a", "0", 0, 50)
    attempt("b", "0", 10, 40)
    attempt("c", "0", 30, 90)
    attempt("d", "0", 50, 80)
    attempt("e", "1", 0, 90)

    assert found(tmp_path) == {"a": 3, "b": 3, "c": 3, "d": 2, "e": 1}


def test_runs_of_several_cards_share_one_and_those_of_other_hosts_none(attempt, tmp_path):
    attempt("a", "0,1", 0, 50)
    attempt("b", "1", 10, 20)
    attempt("c", "1", 10, 20, host="b")

    assert found(tmp_path) == {"a": 2, "b": 2, "c": 1}


def test_without_cards_the_machine_is_what_is_shared(attempt, tmp_path):
    attempt("a", "", 0, 50)
    attempt("b", "", 10, 20)
    attempt("c", "", 60, 70)

    assert found(tmp_path) == {"a": 2, "b": 2, "c": 1}


def test_a_run_does_not_share_with_its_own_attempts(attempt, tmp_path):
    attempt("a", "0", 0, 50)
    attempt("a", "0", 40, 90, number=2)

    assert found(tmp_path) == {"a": 1}


def test_what_tells_no_card_is_left_out(attempt, tmp_path):
    attempt("slurm", None, 0, 50)
    attempt("a", "0", 10, 20)
    attempt("going_on", "0", 0, 50)
    (tmp_path / "going_on/attempts/1/exit.json").unlink()
    attempt("damaged", "0", 0, 50)
    (tmp_path / "damaged/attempts/1/env.json").write_text("[")

    assert found(tmp_path) == {"a": 1}


def test_a_figure_of_rates_says_that_cards_were_shared(launch, metric):
    for seed in (1, 2):
        folder = launch.run("small", seed, {"test_nll": metric(2.0)}, config={"text": {}})
        for step in (1, 2):
            record = {"step": step, "losses": {"lm": 2.0}, "lr": 0.1, "tokens_per_s": 4096.0}
            append_jsonl(folder.train_log, record | {"grad_norm": 1.0, "elapsed_s": 9.0 * step})
        attempt_folder = folder.new_attempt()
        write_json(attempt_folder / "env.json", {"host": "a", "cards": "3"})
        write_json(attempt_folder / "exit.json", {"began": 10.0 * seed, "ended": 50.0})
    drawn = render(known("training_curve"), read_records(launch.path), ("svg",))["svg"]

    said = " ".join(re.findall(r">([^<>]+)</text>", drawn.decode()))
    assert "Up to 2 runs had a card together: tokens per second compare with nothing." in " ".join(
        said.split()
    )
