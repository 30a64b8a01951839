"""A launch in the files of the published benches: their keys and units, and nothing where we have nothing."""

import csv

import pytest

from latentbridge.audit.seed_files import COLUMNS, export
from latentbridge.rundir import read_json

PUBLISHED_COLUMNS = (
    "run router top_k capacity_factor num_experts dim expand world_size best_step best_val_ppl best_val_loss "
    "best_tokens_per_s best_eff_tflops final_val_ppl final_val_loss median_tokens_per_s median_eff_tflops "
    "median_bw_GiBps mean_drop_rate mean_load_cv mean_gate_entropy log_path"
)
PUBLISHED_HISTORY = (
    "steps train_losses val_losses val_accuracies val_perplexities elapsed_times learning_rates temperatures "
    "routing_entropies selection_confidences expert_utilizations load_balancing_losses"
)


@pytest.fixture
def exported(launch):
    launch.mixture("softk", 7)
    launch.mixture("padded", 7, {"mixture.dispatch.kind": "padded", "mixture.router.top_k": 3})
    launch.mixture(
        "moving",
        7,
        {
            "mixture.router.temperature.schedule": "linear",
            "mixture.router.temperature.start": 5.0,
            "mixture.router.temperature.end": 1.0,
        },
    )
    launch.run("planned", 7, state=None)
    export(launch.path)
    return launch


def rows(launch):
    with open(launch.path / "demo_summary.csv", encoding="utf-8", newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def test_columns_and_keys_are_the_published_ones(exported):
    record = read_json(exported.path / "softk-s7" / "metrics.json")

    assert " ".join(COLUMNS) == PUBLISHED_COLUMNS
    assert list(rows(exported)["softk-s7"]) == list(COLUMNS)
    assert " ".join(record["history"]) == PUBLISHED_HISTORY
    assert list(record) == [
        "experiment_name",
        "description",
        "temperature",
        "temperature_schedule",
        "final_metrics",
        "history",
        "routing_stats",
        "config",
    ]
    stats = " ".join(record["routing_stats"])
    assert stats == "avg_entropy avg_confidence expert_utilization num_layers"


def test_a_row_says_what_was_measured_and_leaves_the_rest_empty(exported):
    row = rows(exported)["padded-s7"]

    assert (row["router"], row["top_k"], row["capacity_factor"]) == ("softk", "3", "1.25")
    assert (row["best_step"], float(row["best_val_loss"])) == ("30", pytest.approx(2.017))
    assert (row["mean_drop_rate"], float(row["mean_load_cv"])) == ("0.125", pytest.approx(0.4))
    assert (row["median_tokens_per_s"], row["log_path"]) == ("1007.0", "padded-s7/train.jsonl")
    for name in ("expand", "best_eff_tflops", "median_bw_GiBps", "mean_gate_entropy", "world_size"):
        assert row[name] == "", name


def test_dropless_has_no_capacity_and_drops_nothing(exported):
    row = rows(exported)["softk-s7"]

    assert (row["capacity_factor"], row["mean_drop_rate"]) == ("", "0.0")


def test_a_history_is_in_their_units(exported):
    history = read_json(exported.path / "moving-s7" / "metrics.json")["history"]

    # ours in seconds: 60, 120, 180
    assert history["elapsed_times"] == [1, 2, 3]
    # ours is a mean over 2 layers before its weight of 0.01
    assert history["load_balancing_losses"] == pytest.approx([1.25 * 2 * 0.01] * 3)
    assert history["temperatures"] == pytest.approx([5 - 4 * (step - 1) / 29 for step in (10, 20, 30)])
    # evaluations are at 10, 20 and 30, loads were kept of the first
    assert history["expert_utilizations"] == [[0.4375, 0.4375, 0.0625, 0.0625], None, None]


def test_utilisation_is_a_mean_over_layers_of_shares(exported):
    record = read_json(exported.path / "softk-s7" / "metrics.json")

    assert record["routing_stats"]["expert_utilization"] == [0.375, 0.375, 0.125, 0.125]
    assert (record["temperature"], record["temperature_schedule"]) == (1.0, None)
    assert record["config"] == {"max_steps": 30, "batch_size": 16, "num_experts": 4, "expert_top_k": 2}


def test_hash_has_no_temperature_rather_than_one_of_1(launch):
    folder = launch.mixture("hash", 7, {"mixture.router.strategy": "hash"})

    export(launch.path)

    record = read_json(folder.path / "metrics.json")
    assert (record["temperature"], record["temperature_schedule"]) == (None, None)
    assert record["history"]["temperatures"] == [None] * 3


def test_runs_without_a_measurement_have_null_not_zero(launch):
    folder = launch.mixture("early", 3, state="FAILED")
    folder.metrics_log.unlink()
    folder.train_log.unlink()
    (folder.path / "experts.jsonl").unlink()

    export(launch.path)

    record = read_json(folder.path / "metrics.json")
    assert record["final_metrics"] == {"val_loss": None, "val_accuracy": None, "val_perplexity": None}
    assert record["routing_stats"]["expert_utilization"] is None
    assert rows(launch)["early-s3"]["best_step"] == ""


def test_a_launch_without_mixtures_is_left_alone(launch, metric):
    launch.run("dense", 1, {"val_nll": metric(3.0)}, config={"model": {"dim": 24}})

    assert export(launch.path) == []
