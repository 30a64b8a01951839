"""The static hybrids' summaries, as their scripts write them."""

import pytest

from latentbridge.audit.collect.hybrids import OWN_SEED, WITH_ALL
from latentbridge.audit.collect.table import collect

CONFIG = {"training_steps": 300, "hidden_size": 768, "batch_size": 48}
FIELDS = (
    *("rank", "architecture", "attention_percentage", "learning_rate", "best_val_loss", "final_val_loss"),
    *("final_val_accuracy", "final_val_perplexity", "training_time_minutes", "tokens_processed"),
    "throughput_tokens_per_sec",
)


def architecture(*values):
    return dict(zip(FIELDS, values, strict=True))


SPARSE = architecture(1, "Hybrid Sparse 17%", 16.7, 0.002, 4.0, 4.125, 0.25, 57.5, 2.0, 14745600, 122880.0)
MOSTLY = architecture(2, "Hybrid 83%", 8.3, 0.002, 4.5, 4.5, None, 4.9e8, 1.0, 14745600, 245760.0)
COMPARED = {
    "config": CONFIG,
    "architectures_tested": 2,
    "results": [SPARSE, MOSTLY],
    "winner": {"architecture": "Hybrid Sparse 17%", "best_val_loss": 4.0},
    "insights": {"best_efficiency": "Hybrid 83%"},
}
NAME = "architecture_comparison_summary.json"


def found_in(folder):
    return {(row.run, row.label, row.metric): row for row in collect(folder).rows}


def test_each_architecture_is_a_run_and_what_is_made_of_them_is_none(put, tmp_path):
    put(f"exp7/{NAME}", COMPARED)

    rows = found_in(tmp_path)
    run = "exp7/Hybrid Sparse 17%"

    assert {key[1:]: row.value for key, row in rows.items() if key[0] == run} == {
        ("best", "val_loss"): 4.0,
        ("final", "val_loss"): 4.125,
        ("final", "val_accuracy"): 0.25,
        ("final", "val_perplexity"): 57.5,
        ("final", "elapsed_min"): 2.0,
        ("final", "tokens"): 14745600,
        ("final", "tokens_per_s"): 122880.0,
        ("final", "attention_percent"): 16.7,
    }
    assert {key[0] for key in rows} == {run, "exp7/Hybrid 83%"}
    assert rows[run, "best", "val_loss"].flags == (OWN_SEED,)
    assert rows[run, "final", "tokens_per_s"].flags == (WITH_ALL,)


def test_a_percentage_that_was_found_in_another_is_void_as_are_a_missing_and_a_capped_metric(put, tmp_path):
    """The summary lists the hybrid of 83 % as one of 8.3 %."""
    put(NAME, COMPARED)

    rows = {key[2]: row for key, row in found_in(tmp_path).items() if key[0].endswith("83%")}

    said = "the name says 83 %: another's percentage was found in it"
    assert (rows["attention_percent"].value, rows["attention_percent"].void) == (None, said)
    assert rows["val_accuracy"].void == "empty in the file"
    assert rows["val_perplexity"].void == "capped at exp(20): no perplexity"
    assert rows["tokens_per_s"].value == 245760.0


def test_one_comparison_of_other_length_has_no_twins_and_a_copy_of_it_has(put, tmp_path):
    put(f"a/{NAME}", COMPARED)
    put(f"b/{NAME}", COMPARED | {"config": CONFIG | {"training_steps": 10}})
    put(f"c/{NAME}", COMPARED | {"architectures_tested": 3})

    flags = {row.run[0]: row.flags[-1] for row in collect(tmp_path).rows if row.metric == "val_loss"}

    assert flags == {"a": OWN_SEED, "b": OWN_SEED, "c": "identical config to a/Hybrid 83%"}


def test_learning_rates_of_one_architecture_and_of_several_are_runs(put, tmp_path):
    rate = {"lr": 0.0005, "best_val_loss": 5.25, "final_val_loss": 5.5, "elapsed_time": 99.5}
    tested = {"config": CONFIG, "learning_rates_tested": [0.0005, 0.001]}
    put("one/lr_ablation_summary.json", tested | {"results": [rate]})
    several = {"Full DeltaNet": [rate, rate | {"lr": 0.001, "best_val_loss": 5.0}]}
    put("more/lr_ablation_h100_summary.json", tested | {"results_by_architecture": several})

    best = {key[0]: row.value for key, row in found_in(tmp_path).items() if key[1] == "best"}

    assert best == {
        "one/lr=0.0005": 5.25,
        "more/Full DeltaNet lr=0.0005": 5.25,
        "more/Full DeltaNet lr=0.001": 5.0,
    }
    assert found_in(tmp_path)["one/lr=0.0005", "final", "elapsed_s"].value == 99.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"results": []}, "the key config is missing"),
        (COMPARED | {"results": {"rank": 1}}, "results must be a list of objects, one a run"),
        (COMPARED | {"results": [{"rank": 1}]}, "not what a architecture_comparison_summary.json holds"),
        (COMPARED | {"results": [SPARSE | {"best_val_loss": "low"}]}, "val_loss is 'low'"),
    ],
)
def test_a_comparison_that_is_none_is_refused_by_name(put, tmp_path, content, said):
    put(NAME, content)

    found = collect(tmp_path)

    (reason,) = found.unreadable
    assert reason.startswith(str(tmp_path / NAME)) and said in reason and found.rows == []
