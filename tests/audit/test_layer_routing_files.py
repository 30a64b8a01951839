"""A launch of layer routing in the files of the published experiment."""

import pytest

from latentbridge.audit.layer_routing_files import export
from latentbridge.rundir import append_jsonl, read_json


@pytest.fixture
def exported(launch, metric):
    config = {
        "model": {"dim": 24, "layers": 4},
        "optim": {"lr": 0.002},
        "routing": {"balance_weight": 0.5},
    }
    for cell, mixers in (("dynamic", ["gdn", "routed", "routed", "softmax"]), ("hybrid", "softmax_17")):
        folder = launch.run(cell, 7, config={**config, "mixers": mixers})
        for step, loss in ((0, 5.0), (10, 3.5), (20, 3.75)):
            found = {"val_nll": metric(loss), "val_accuracy": metric(0.25), "val_perplexity": metric(30.0)}
            if cell == "dynamic":
                found |= {"val_layer_1_gdn_share": metric(0.75), "val_layer_2_gdn_share": metric(0.5)}
            record = {name: value.as_record() for name, value in found.items()}
            append_jsonl(folder.metrics_log, {"step": step, "label": str(step), "metrics": record})
        losses = {"lm": 3.25, "balance": 1.5} if cell == "dynamic" else {"lm": 3.25}
        append_jsonl(folder.train_log, {"step": 20, "losses": losses, "lr": 0.001, "elapsed_s": 90.0})
    launch.run("other", 7)
    export(launch.path)
    return launch.path


def test_keys_are_the_published_ones_and_losses_of_the_text_alone(exported):
    """P: 0.5 of the balance loss stood in every published loss of such a run."""
    found = read_json(exported / "dynamic-s7" / "training_results.json")

    assert found == {
        "experiment": "layer_routing",
        "config_name": "dynamic",
        "config": {
            "use_dynamic_routing": True,
            "routed_layers": [1, 2],
            "hidden_size": 24,
            "num_layers": 4,
            "learning_rate": 0.002,
            "load_balance_alpha": 0.5,
        },
        "results": {
            "total_time": 90.0,
            "best_val_loss": 3.5,
            "final_val_metrics": {"loss": 3.75, "accuracy": 0.25, "perplexity": 30.0},
        },
    }
    assert read_json(exported / "dynamic-s7" / "train_history.json") == [
        {"step": 20, "loss": 3.25, "aux_loss": 1.5, "lr": 0.001}
    ]


def test_histories_tell_shares_by_layer_in_percent(exported):
    assert read_json(exported / "dynamic-s7" / "val_history.json")[1] == {
        "step": 10,
        "loss": 3.5,
        "accuracy": 0.25,
        "perplexity": 30.0,
        "layer_1_gdn_pct": 75.0,
        "layer_1_attn_pct": 25.0,
        "layer_2_gdn_pct": 50.0,
        "layer_2_attn_pct": 50.0,
    }


def test_static_runs_have_no_share_and_other_runs_no_file(exported):
    found = read_json(exported / "hybrid-s7" / "training_results.json")["config"]

    assert (found["use_dynamic_routing"], found["routed_layers"]) == (False, [])
    assert found["load_balance_alpha"] is None
    assert read_json(exported / "hybrid-s7" / "val_history.json")[0].keys() == {
        "step",
        "loss",
        "accuracy",
        "perplexity",
    }
    assert not (exported / "other-s7" / "val_history.json").exists()


def hybrid(launch, metric, cell, seed, losses, state="DONE"):
    config = {
        "mixers": cell.partition("_lr=")[0],
        "model": {"dim": 24, "layers": 12},
        "optim": {"lr": 0.002},
        "text": {"context": 11},
        "train": {"steps": 20, "batch_size": 4},
    }
    folder = launch.run(cell, seed, config=config, state=state)
    for step, loss in zip((0, 10, 20), losses, strict=True):
        record = {"val_nll": metric(loss).as_record(), "val_accuracy": metric(0.25).as_record()}
        append_jsonl(folder.metrics_log, {"step": step, "label": str(step), "metrics": record})
    timed = {"elapsed_s": 90.0, "tokens_per_s": 700.0}
    append_jsonl(folder.train_log, {"step": 20, "losses": {"lm": 3.0}, "lr": 0.001, **timed})


def test_a_run_without_a_config_has_no_files_and_costs_no_other_run_its_own(launch, metric):
    hybrid(launch, metric, "softmax_17", 1, (1.0, 4.0, 3.5))
    never_started = launch.run("softmax_17", 2, state=None)
    never_started.config.unlink()
    hybrid(launch, metric, "softmax_83", 1, (1.0, 4.0, 4.5))

    written = {str(path.relative_to(launch.path)) for path in export(launch.path)}

    files = ("training_results.json", "train_history.json", "val_history.json")
    assert written == {
        "hybrids_summary.json",
        *(f"{run}/{file}" for run in ("softmax_17-s1", "softmax_83-s1") for file in files),
    }


def test_a_run_that_failed_has_a_history_and_no_results(launch, metric):
    hybrid(launch, metric, "softmax_17", 1, (1.0, 4.0, 3.5), "FAILED")
    export(launch.path)

    assert read_json(launch.path / "softmax_17-s1" / "training_results.json")["results"] == {
        "total_time": 90.0,
        "best_val_loss": None,
        "final_val_metrics": {"loss": None, "accuracy": None, "perplexity": None},
    }
    assert [found["loss"] for found in read_json(launch.path / "softmax_17-s1" / "val_history.json")] == [
        1.0,
        4.0,
        3.5,
    ]


def test_the_ranking_of_hybrids_has_the_published_keys_and_means_over_seeds(launch, metric):
    """AD: one run each; 83 % of softmax layers was listed as 8.3 %."""
    for seed, noise in ((1, -0.25), (2, 0.25)):
        hybrid(launch, metric, "softmax_83", seed, (1.0, 4.0 + noise, 4.5 + noise))
        hybrid(launch, metric, "softmax_17", seed, (1.0, 4.0 + noise, 3.5 + noise))
        hybrid(launch, metric, "softmax_8", seed, (1.0, 2.0, 2.0), "DONE" if seed == 1 else "FAILED")
    export(launch.path)
    found = read_json(launch.path / "hybrids_summary.json")

    assert found["config"] == {
        "training_steps": 20,
        "hidden_size": 24,
        "num_layers": 12,
        "batch_size": 4,
        "max_seq_len": 11,
        "total_tokens_processed": 3 * 880.0,
    }
    assert [(row["rank"], row["architecture"], row["best_val_loss"]) for row in found["results"]] == [
        (1, "softmax_17", 3.5),
        (2, "softmax_83", 4.0),
        (None, "softmax_8", None),
    ]
    assert found["results"][1] == {
        "rank": 2,
        "architecture": "softmax_83",
        "attention_percentage": pytest.approx(1000 / 12),
        "learning_rate": 0.002,
        "best_val_loss": 4.0,
        "final_val_loss": 4.5,
        "final_val_accuracy": 0.25,
        "final_val_perplexity": None,
        "training_time_minutes": 1.5,
        "tokens_processed": 880.0,
        "throughput_tokens_per_sec": 700.0,
    }
    assert found["winner"] == found["results"][0]
    assert (found["architectures_tested"], found["total_training_time_minutes"]) == (3, 4.5)
