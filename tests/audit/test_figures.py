import csv
import re
import sys

import pytest

from latentbridge.audit.figures import draw
from latentbridge.metric import Metric


def config(tokens, source="gpt", target="llama", info_nce=0.05):
    return {
        "source": {"model": f"bundled:{source}"},
        "target": {"model": f"hub/{target}"},
        "model": {"soft_tokens": tokens},
        "losses": {"info_nce": {"weight": info_nce}},
    }


@pytest.fixture
def filled(launch, metric):
    """Three cells of two seeds: 16 and 48 tokens, and 48 the other way round without the fixes."""
    settings = {
        "few": config(16),
        "many": config(48),
        "swap": config(48, source="llama", target="gpt", info_nce=0.0),
    }
    for position, (cell, own) in enumerate(settings.items()):
        for seed in (1, 2):
            value = metric(0.2 + position / 10 + seed / 100)
            names = ("bridged_accuracy", "context_recovered", "target_alone_accuracy", "no_source_accuracy")
            launch.run(cell, seed, {name: value for name in names}, config=own)
    return launch


def read_csv(launch):
    with open(launch.path / "figures" / "soft_tokens.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_number_of_the_figure_is_in_its_csv_with_run_ids(filled):
    pytest.importorskip("matplotlib")

    written = draw(filled.path)

    assert [path.name for path in written] == [
        f"soft_tokens.{suffix}" for suffix in ("csv", "pdf", "png", "svg")
    ]
    rows = read_csv(filled)
    assert len(rows) == 3 * 4
    (swap,) = [row for row in rows if row["cell"] == "swap" and row["metric"] == "bridged_accuracy"]
    assert (swap["direction"], swap["fixes"], swap["soft_tokens"]) == ("llama → gpt", "off", "48")
    assert float(swap["value"]) == pytest.approx(0.415)
    # two seeds 0.01 apart: t(1, 0.975) = 12.7062 times 0.005
    assert float(swap["high"]) == pytest.approx(0.415 + 0.0635, abs=1e-4)
    assert (swap["n"], swap["interval_over"]) == ("2", "seeds")
    assert swap["run_ids"] == "000000000004 000000000005"


def test_the_figure_names_what_it_leaves_out(filled, metric):
    pytest.importorskip("matplotlib")
    filled.run("late", 1, {"bridged_accuracy": metric(0.4)}, state="FAILED", cause="oom", config=config(32))

    draw(filled.path)

    drawn = (filled.path / "figures" / "soft_tokens.svg").read_text(encoding="utf-8")
    words = " ".join(re.sub(r"<[^>]+>", " ", drawn).split())
    assert "Left out: late (seed 1 FAILED (oom))." in words
    assert not any(row["cell"] == "late" for row in read_csv(filled))


def test_equal_results_give_equal_bytes(filled):
    pytest.importorskip("matplotlib")
    first = [path.read_bytes() for path in draw(filled.path)]

    assert [path.read_bytes() for path in draw(filled.path)] == first


def test_one_seed_without_an_interval_can_be_drawn(launch):
    pytest.importorskip("matplotlib")
    launch.run("a", 1, {"context_recovered": Metric(value=0.3, n=1)}, config=config(8))

    assert len(draw(launch.path)) == 4


def test_nothing_measured_is_no_figure_and_no_error(launch, metric):
    launch.run("a", 1, {"val_loss": metric(3.0)})
    launch.run("b", 1, state="FAILED", cause="oom", config=config(8))

    assert draw(launch.path) == []
    assert not list(launch.path.glob("figures"))


def test_without_matplotlib_there_is_still_the_data(filled, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    written = draw(filled.path)

    assert [path.name for path in written] == ["soft_tokens.csv"]
    assert "latentbridge[report]" in caplog.text


def test_that_matplotlib_is_missing_is_said_once_a_launch(launch, monkeypatch, caplog):
    """It was said once a figure, in every launch of the base install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    launch.mixture("softk", 1)

    assert len(draw(launch.path)) > 3
    assert len(caplog.records) == 1
