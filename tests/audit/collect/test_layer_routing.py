"""The layer routing study's files, as its trainer writes them."""

import gzip
import json

import pytest

from latentbridge.audit.collect.table import collect

HOLDS = ("holds the balance loss: no language loss",)
TRAINED = [
    {"step": 5, "loss": 9.75, "aux_loss": 1.5, "lr": 0.002},
    {"step": 10, "loss": 7.25, "aux_loss": 1.0, "lr": 0.0015},
]
VALIDATED = [
    {
        **{"step": 8, "loss": 8.5, "accuracy": 0.125, "perplexity": 90.0},
        **{"layer_1_gdn_pct": 54.0, "layer_1_attn_pct": 46.0},
    }
]


def results(name="dynamic", is_dynamic=True):
    config = {
        "use_dynamic_routing": is_dynamic,
        "routed_layers": [1, 2] if is_dynamic else [],
        "load_balance_alpha": 0.5,
    }
    found = {"total_time": 574.0, "best_val_loss": 4.4263}
    return {"experiment": "exp11", "config_name": name, "config": config, "results": found}


def found_in(folder):
    return {(row.run, row.label, row.metric): row for row in collect(folder).rows}


def test_a_run_is_read_from_all_three_of_its_files(put, tmp_path):
    put("results_dynamic/training_results.json", results())
    put("results_dynamic/train_history.json", TRAINED)
    put("results_dynamic/val_history.json", VALIDATED)

    found = collect(tmp_path)

    values = {(row.label, row.metric): row.value for row in found.rows}
    assert values == {
        ("final", "total_time"): 574.0,
        ("best", "best_val_total_loss"): 4.4263,
        ("5", "train_total_loss"): 9.75,
        ("5", "balance_loss"): 1.5,
        ("5", "lr"): 0.002,
        ("10", "train_total_loss"): 7.25,
        ("10", "balance_loss"): 1.0,
        ("10", "lr"): 0.0015,
        ("8", "val_total_loss"): 8.5,
        ("8", "val_accuracy"): 0.125,
        ("8", "val_perplexity"): None,
        ("8", "layer_1_gdn_pct"): 54.0,
        ("8", "layer_1_attn_pct"): 46.0,
    }
    assert (found.files, found.unreadable, found.unknown) == (3, [], [])
    assert {(row.cell, row.config, row.layout) for row in found.rows} == {
        ("dynamic", found.rows[0].config, "blueberry")
    }
    flagged = {row.metric for row in found.rows if row.flags == HOLDS}
    assert flagged == {"best_val_total_loss", "train_total_loss", "val_total_loss"}
    splits = {row.flags for row in found.rows if row.metric.endswith("_pct")}
    assert splits == {("of tokens trained on since the evaluation before, with the router's noise",)}
    (perplexity,) = (row for row in found.rows if row.metric == "val_perplexity")
    assert perplexity.void == "made of a loss that holds the balance loss: no language loss"


def test_a_dynamic_and_a_static_run_have_no_loss_under_one_name(put, tmp_path):
    """The published 4.43 against 3.83 was half a nat of balance loss: they are 0.09 apart."""
    put("dynamic/training_results.json", results())
    put("dynamic/val_history.json", VALIDATED)
    put("static/training_results.json", results("baseline", is_dynamic=False))
    put("static/val_history.json", VALIDATED)

    losses = {run: set() for run in ("dynamic", "static")}
    for row in collect(tmp_path).rows:
        if "loss" in row.metric:
            losses[row.run].add(row.metric)

    assert losses == {
        "dynamic": {"best_val_total_loss", "val_total_loss"},
        "static": {"best_val_loss", "val_loss"},
    }


@pytest.mark.parametrize(
    ("is_dynamic", "expected"),
    [
        (False, {"val_loss": 4.0625, "val_accuracy": 0.3125, "val_perplexity": 58.0}),
        (True, {"val_total_loss": 4.0625, "val_accuracy": 0.3125, "val_perplexity": None}),
    ],
)
def test_final_metrics_that_stand_in_a_group_are_the_same_metrics(put, tmp_path, is_dynamic, expected):
    content = results(is_dynamic=is_dynamic)
    group = {"loss": 4.0625, "accuracy": 0.3125, "perplexity": 58.0}
    content["results"] = {"final_val_metrics": group, "best_val_metrics": {}}
    put("a/training_results.json", content)

    assert {row.metric: row.value for row in collect(tmp_path).rows if row.label == "final"} == expected


def test_losses_of_a_static_run_are_language_losses_and_it_has_no_balance_loss(put, tmp_path):
    put("static/training_results.json", results("baseline", is_dynamic=False))
    put("static/train_history.json", [{"step": 5, "loss": 6.5, "aux_loss": None, "lr": 0.001}])
    put("static/val_history.json", [{"step": 8, "loss": 6.25, "accuracy": 0.25, "perplexity": 518.0}])

    rows = collect(tmp_path).rows

    assert {row.flags for row in rows} == {()}
    assert "balance_loss" not in {row.metric for row in rows} and len(rows) == 2 + 2 + 3


def test_a_history_alone_is_read_and_says_what_nobody_told(put, tmp_path):
    """It was passed over without a word where training_results.json was missing."""
    put("died/train_history.json", TRAINED)

    rows = found_in(tmp_path)

    untold = ("no training_results.json beside it says whether it holds the balance loss",)
    assert (rows["died", "5", "train_loss"].value, rows["died", "5", "train_loss"].flags) == (9.75, untold)
    assert rows["died", "10", "lr"].flags == ()
    assert rows["died", "10", "lr"].cell is None


def test_a_history_of_two_runs_gives_no_number_and_an_empty_one_says_so(put, tmp_path):
    put("twice/train_history.json", [*TRAINED, TRAINED[0]])
    put("none/val_history.json", [])

    rows = collect(tmp_path).rows

    twice = [row for row in rows if row.run == "twice"]
    assert len(twice) == 9 and all("history is of several runs" in row.void for row in twice)
    (none,) = (row for row in rows if row.run == "none")
    assert (none.metric, none.value, none.void) == ("val_loss", None, "the history holds no record")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"step": 5}, "a list of records is needed, not a dict"),
        ([{"loss": 2.5}], "a record without a step"),
        ([3], "a record without a step"),
        ([{"step": 5, "loss": "low"}], "train_loss is 'low'; a number is needed"),
    ],
)
def test_a_history_that_is_none_is_refused_by_name(put, tmp_path, content, said):
    put("odd/train_history.json", content)

    (reason,) = collect(tmp_path).unreadable

    assert reason.startswith(str(tmp_path / "odd/train_history.json")) and said in reason


def test_a_compressed_history_with_steps_as_text_is_read_like_a_plain_one(put, tmp_path):
    put("plain/training_results.json", results())
    put("plain/val_history.json", VALIDATED)
    put("packed/training_results.json", results())
    text = json.dumps([VALIDATED[0] | {"step": "8"}])
    (tmp_path / "packed" / "val_history.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))

    rows = found_in(tmp_path)

    plain = {key[1:]: row.value for key, row in rows.items() if key[0] == "plain"}
    assert plain["8", "val_total_loss"] == 8.5
    assert {key[1:]: row.value for key, row in rows.items() if key[0] == "packed"} == plain


def test_results_without_a_config_are_named_with_what_is_needed(put, tmp_path):
    put("training_results.json", results() | {"config": None})

    (reason,) = collect(tmp_path).unreadable

    assert "training_results.json: config and results must be objects of names and values; copy" in reason


@pytest.mark.parametrize(("steps", "is_twin"), [((29, 200), False), ((200, 200), True)])
def test_runs_of_one_config_and_different_length_are_no_twins(put, tmp_path, steps, is_twin):
    for name, last in zip("ab", steps, strict=True):
        put(f"{name}/training_results.json", results(name))
        put(f"{name}/val_history.json", [{**VALIDATED[0], "step": last, "loss": 5.0 + last + ord(name)}])

    flags = {flag for row in collect(tmp_path).rows for flag in row.flags if "identical config" in flag}

    assert flags == ({"identical config to a"} if is_twin else set())
