"""What the published systems' folders are said to hold."""

from __future__ import annotations

import json
import math

import pytest

from latentbridge.audit.collect.table import collect
from latentbridge.audit.seed_folders import read_seed_folder

TEMPERATURE = {"experiment_name": "temp_2.0", "history": {}, "config": {}}
CAPPED = "capped at exp(20): no perplexity"
LOG = (
    "==== Config ====\nStep 20/60 | Loss (avg over last 20): 2.1234\n"
    "[Eval] Step 20 | Source-alone acc: 0.540 | Target-alone acc: 0.770 | Bridged acc: 0.500\n"
    "  a prompt with [Final Eval] in it\rStep 40/60 | Loss (avg over last 20): 1.9876\n"
)
FINAL = "[Final Eval] Source-alone acc: 0.540 | Target-alone acc: 0.770 | Bridged acc: 0.999\n"


def answers(path, *pairs):
    rows = [{"gold_extracted": gold, "bridged_extracted": bridged} for gold, bridged in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_of(folder):
    found = read_seed_folder(folder)
    (run,) = found.runs
    return run, found


@pytest.fixture
def nested(tmp_path):
    """A family folder above a config folder, as the ablations made them."""
    run = tmp_path / "phase1_full_20251116_201212" / "phase1_all_fix"
    run.mkdir(parents=True)
    (run.parent / "summary.log").write_text("Run directory: x\n")
    (run / "train.log").write_text(LOG + FINAL)
    return run


def test_answers_are_counted_anew_and_the_log_s_number_is_not_believed(nested):
    answers(nested / "eval_samples_step_20.jsonl", ("9", "9"))
    answers(nested / "eval_samples_step_final.jsonl", ("9", "9"), ("4", "[invalid]"), ("2", "2."), ("7", "7"))

    run, found = run_of(nested.parent)

    assert (run.name, found.layout, run.is_finished) == ("phase1_all_fix", "latentwire", True)
    assert (run.metrics["bridged_accuracy"].value, run.metrics["bridged_accuracy"].n) == (0.5, 4)


def test_a_flat_folder_is_a_run_too(nested):
    answers(nested / "eval_samples_step_final.jsonl", ("9", "9"))

    run, _ = run_of(nested)

    assert (run.name, run.metrics["bridged_accuracy"].value) == (".", 1.0)


def test_an_accuracy_without_answers_is_void_as_in_the_13_runs_of_zeros(nested):
    run, _ = run_of(nested)

    accuracy = run.metrics["bridged_accuracy"]
    assert (accuracy.value, accuracy.void) == (None, "2 logged accuracies without an answer to count")


def test_a_killed_run_says_where_its_log_ends(nested):
    (nested / "train.log").write_text(LOG)
    answers(nested / "eval_samples_step_20.jsonl", ("9", "9"))

    run, _ = run_of(nested)

    assert not run.is_finished
    assert run.why == "the log ends at step 40 without a final evaluation"
    assert (
        run.metrics["bridged_accuracy"].void == "no final evaluation; eval_samples_step_20.jsonl is the last"
    )


def test_damaged_answers_are_named_by_line(nested):
    (nested / "eval_samples_step_20.jsonl").write_text('{"gold_extracted": "9"}\nnot json\n')

    assert read_seed_folder(nested).unread == ["eval_samples_step_20.jsonl: no JSON record in lines 2"]


def test_a_part_of_the_final_answers_has_no_accuracy(nested):
    answers(nested / "eval_samples_step_final.jsonl", ("9", "9"), ("4", "5"))
    with open(nested / "eval_samples_step_final.jsonl", "a") as file:
        file.write('{"gold_extracted": "9", "bridged_ex')

    run, _ = run_of(nested)

    reason = "eval_samples_step_final.jsonl: no JSON record in lines 3"
    assert run.metrics["bridged_accuracy"].void == reason


def routing(folder, steps, max_steps=50):
    folder.mkdir()
    (folder / "hparams.json").write_text(json.dumps({"max_steps": max_steps}))
    rows = [{"step": step, "val_loss": 1.5, "ppl": 4.5 - step / 100, "bpc": 2.25} for step in steps]
    (folder / "train_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("steps", "is_finished", "ppl"), [((25, 50), True, 4.0), ((25, 40), False, 4.1)])
def test_a_routing_run_is_its_last_row_and_is_finished_at_its_last_step(tmp_path, steps, is_finished, ppl):
    routing(tmp_path / "uni_top1_c1.25", steps)

    run, found = run_of(tmp_path)

    assert (run.name, found.layout, run.is_finished) == ("uni_top1_c1.25", "moe-routing-bench", is_finished)
    assert run.metrics["ppl"].value == pytest.approx(ppl)


def test_a_log_without_a_record_is_a_run_without_a_number(tmp_path):
    routing(tmp_path / "died", ())

    run, _ = run_of(tmp_path)

    assert (run.name, run.is_finished, run.why) == ("died", False, "its log ends at step 0 of 50")
    assert run.metrics["val_loss"].void == "the log holds no record"


def test_what_import_and_collect_say_of_a_run_is_the_same(tmp_path):
    """Two readers of one file had drifted apart: of capped perplexities, and of appended logs."""
    routing(tmp_path / "a", (25, 50))
    routing(tmp_path / "b", (25, 25))

    of_import = {
        (run.name, name): m.value
        for run in read_seed_folder(tmp_path).runs
        for name, m in run.metrics.items()
    }

    of_collect = {(row.run, row.metric): row.value for row in collect(tmp_path).rows}
    assert of_import == of_collect
    assert of_import["a", "ppl"] == 4.0


def test_runs_appended_to_one_log_give_no_number(tmp_path):
    """F13: the committed log is three runs of two datasets, and the summary took the best row of all."""
    routing(tmp_path / "tiny", (25, 50, 25, 50))

    run, _ = run_of(tmp_path)

    assert not run.is_finished
    assert run.metrics["ppl"].void == "the log holds several runs, which nothing tells apart"


def test_temperature_and_dynamic_results_are_found_and_what_is_no_number_is_void(tmp_path):
    for place, record in (
        (
            "results/temp_2.0/metrics.json",
            TEMPERATURE | {"final_metrics": {"val_loss": 24.5, "val_accuracy": float("nan")}},
        ),
        ("results_baseline/training_results.json", {"config": {}, "results": {"best_val_loss": 5.3663}}),
    ):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text(json.dumps(record))

    found = read_seed_folder(tmp_path)

    assert (found.layout, found.unread) == ("blueberry", [])
    temperature, dynamic = found.runs
    assert {name: str(metric) for name, metric in temperature.metrics.items()} == {
        "val_loss": "24.500",
        "val_accuracy": "void (not finite (nan))",
        "val_perplexity": "void (not in metrics.json)",
    }
    assert dynamic.metrics["best_val_loss"].value == 5.3663


@pytest.mark.parametrize(("perplexity", "void"), [(math.exp(20), CAPPED), (4.85e8, None)])
def test_a_perplexity_that_was_capped_is_no_measurement(tmp_path, perplexity, void):
    """The published study writes exp(min(loss, 20)): 485165195.4 for every loss above 20."""
    final = {"val_loss": 24.5, "val_accuracy": 0.0, "val_perplexity": perplexity}
    (tmp_path / "metrics.json").write_text(json.dumps(TEMPERATURE | {"final_metrics": final}))

    run, _ = run_of(tmp_path)

    assert run.metrics["val_perplexity"].void == void
    assert run.metrics["val_accuracy"].value == 0.0


@pytest.mark.parametrize("text", ["{", "[]", '{"other": 1}'])
def test_a_result_file_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)

    found = read_seed_folder(tmp_path)

    assert (found.runs, found.layout) == ([], "unknown")
    assert found.unread[0].startswith("metrics.json:")


def test_a_folder_of_answers_alone_is_a_run_that_is_counted(tmp_path):
    for name, label in (("whole", "final"), ("cut", "250")):
        (tmp_path / name).mkdir()
        answers(tmp_path / name / f"eval_samples_step_{label}.jsonl", ("9", "9"), ("4", "5"))

    cut, whole = read_seed_folder(tmp_path).runs

    assert (whole.name, whole.is_finished, whole.metrics["bridged_accuracy"].value) == ("whole", True, 0.5)
    assert (cut.is_finished, cut.why) == (False, "it has no log, and answers without the final ones")
    last = "eval_samples_step_250.jsonl is the last"
    assert cut.metrics["bridged_accuracy"].void == f"no final evaluation; {last}"


def test_answers_that_are_empty_or_linked_to_nothing_are_named(nested):
    (nested / "eval_samples_step_250.jsonl").write_text("")
    (nested / "eval_samples_step_500.jsonl").symlink_to("gone")

    found = read_seed_folder(nested)

    assert found.unread[0] == "eval_samples_step_250.jsonl: no record in this file"
    assert found.unread[1].startswith("eval_samples_step_500.jsonl: cannot be read (No such file")


def test_a_log_of_several_runs_is_of_no_finished_one(nested):
    (nested / "train.log").write_text((LOG + FINAL) * 2)

    run, _ = run_of(nested)

    assert (run.is_finished, run.why) == (False, "steps start again within the log")


def test_a_loss_that_holds_the_balance_loss_is_not_said_to_be_missing(tmp_path):
    config = {"use_dynamic_routing": True, "load_balance_alpha": 0.5}
    content = {"config_name": "dynamic", "config": config, "results": {"best_val_loss": 4.43}}
    (tmp_path / "training_results.json").write_text(json.dumps(content))

    run, _ = run_of(tmp_path)

    assert run.metrics["best_val_loss"].void == "holds the balance loss: no language loss"
