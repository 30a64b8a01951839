"""Four cells of adapters, one of which was not measured: who is where, and in which order."""

from latentbridge.audit.ablations import read_launch
from latentbridge.audit.figures import FOLDER, draw
from latentbridge.audit.figures.adapters import FIGURES
from latentbridge.audit.records import read_records
from latentbridge.audit.table import render
from latentbridge.metric import Metric

CELLS = {
    "embedded": ("embedded", 16, 2_048.0, 4.0, 0.5),
    "shared": ("shared", 32, 512.0, 1.0, 0.75),
    "routed": ("routed", 16, 1_024.0, 2.0, 0.875),
}


def fill(launch, metric):
    for cell, (variant, rank, activated, percent, nll) in CELLS.items():
        for seed in (3, 4):
            metrics = {
                "test_nll": metric(nll),
                "test_base_nll": metric(2.25),
                "trained_parameters": Metric(value=4 * activated, n=1),
                "activated_parameters": Metric(value=activated, n=1),
                "activated_percent": Metric(value=percent, n=1),
            }
            if variant == "routed":
                metrics["test_demand_cv"] = metric(0.125)
            launch.run(cell, seed, metrics, config={"adapters": {"variant": variant, "rank": rank}})
    launch.run("late", 3, None, state=None, config={"adapters": {"variant": "shared", "rank": 8}})
    return read_launch(launch.path)


def test_the_frontier_stands_by_what_a_token_activates_and_names_what_was_not_measured(launch, metric):
    fill(launch, metric)
    sheet = FIGURES[0].read(read_records(launch.path))
    rows = [
        (row["cell"], row["variant"], row["rank"], row["activated_percent"], row["test_nll"])
        for row in sheet.rows
    ]

    assert rows == [
        ("shared", "shared", 32, 1.0, 0.75),
        ("routed", "routed", 16, 2.0, 0.875),
        ("embedded", "embedded", 16, 4.0, 0.5),
    ]
    assert set(sheet.left_out) == {"late"}


def test_the_frontier_is_drawn(launch, metric, monkeypatch):
    monkeypatch.setattr("latentbridge.audit.figures.DPI", 30)
    fill(launch, metric)
    draw(launch.path)

    drawn = {path.name for path in (launch.path / FOLDER).iterdir()}
    assert {"perft_frontier.png", "perft_frontier.svg", "perft_frontier.csv"} <= drawn


def test_adapters_have_a_table_by_what_they_activate_with_whole_numbers(launch, metric):
    text = render(fill(launch, metric))
    rows = text.split("\n\nAdapters:")[1].split("\n\n")[0].splitlines()[3:]

    assert [row.split()[0] for row in rows] == ["shared", "routed", "embedded", "late"]
    assert rows[1].split()[-5:] == ["2.250", "4,096", "1,024", "2.000", "0.125"]
    assert rows[2].split()[-1] == "-"
    assert "trained_parameters" not in text
