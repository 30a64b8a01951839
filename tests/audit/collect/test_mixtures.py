import json

import pytest

from latentbridge.audit.collect.table import collect

UNIFIED = (
    "run,router,top_k,capacity_factor,num_experts,dim,expand,world_size,best_step,best_val_ppl,best_val_loss,"
    "best_tokens_per_s,best_eff_tflops,final_val_ppl,final_val_loss,median_tokens_per_s,median_eff_tflops,"
    "median_bw_GiBps,mean_drop_rate,mean_load_cv,mean_gate_entropy,log_path\n"
)
CELLS = "4,1200,5.5,1.7,2.7e7,,5.6,1.72,2.6e7,,,0.0,0.3,0.4,x/train_log.jsonl\n"


def study(**changes):
    history = {
        "steps": [10, 20],
        "train_losses": [3.5, 0.25],
        "val_losses": [10.775, 24.148],
        "val_accuracies": [0.02, 0.0],
        "val_perplexities": [47800.0, 485165195.40979],
        "elapsed_times": [0.1, 0.2],
        "learning_rates": [0.07, 0.0634],
        "temperatures": [5.0, 1.0],
        "routing_entropies": [0.0, 0.0],
        "selection_confidences": [0.0, 0.0],
        "expert_utilizations": [[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]],
        "load_balancing_losses": [0.06, 0.061],
    }
    return {
        "experiment_name": "schedule_linear",
        "description": "linear",
        "temperature": 5.0,
        "temperature_schedule": "linear",
        "final_metrics": {"val_loss": 24.148, "val_accuracy": 0.0, "val_perplexity": 485165195.40979},
        "history": history,
        "routing_stats": {"avg_entropy": 0.0, "avg_confidence": 0.0, "num_layers": 0},
        "config": {"max_steps": 500, "batch_size": 24, "num_experts": 8, "expert_top_k": 2},
        **changes,
    }


def found_in(folder):
    rows = collect(folder).rows
    return {(row.run, row.label, row.metric): row for row in rows}


def test_a_history_is_a_row_per_evaluation_and_a_measured_zero_stays_zero(put, tmp_path):
    put("results/schedule_linear/metrics.json", study())

    rows = found_in(tmp_path)
    run = "results/schedule_linear"

    assert rows[run, "20", "val_loss"].value == 24.148
    assert rows[run, "20", "val_accuracy"].value == 0.0
    assert rows[run, "10", "temperature"].value == 5.0
    assert rows[run, "10", "expert_utilization[2]"].value == 0.0
    assert rows[run, "final", "val_loss"].step is None


def test_what_was_never_recorded_and_what_was_capped_is_void(put, tmp_path):
    put("metrics.json", study())

    rows = {(label, metric): row for (_, label, metric), row in found_in(tmp_path).items()}
    gone = [("20", "routing_entropy"), ("10", "selection_confidence"), ("final", "avg_entropy")]
    gone += [("20", "val_perplexity"), ("final", "val_perplexity")]

    assert [rows[key].value for key in gone] == [None] * 5
    assert rows["20", "val_perplexity"].void == "capped at exp(20): no perplexity"
    assert rows["10", "val_perplexity"].value == 47800.0


def test_a_history_that_is_shorter_than_its_steps_is_void_and_the_others_stay(put, tmp_path):
    wrong = study()
    wrong["history"]["val_losses"].pop()
    put("metrics.json", wrong)

    rows = {(label, metric): row for (_, label, metric), row in found_in(tmp_path).items()}

    assert rows["history", "val_loss"].void == "1 val_losses for 2 steps"
    assert ("10", "val_loss") not in rows
    assert rows["20", "train_loss"].value == 0.25


@pytest.mark.parametrize("changes", [{"history": None}, {"final_metrics": None}, {"routing_stats": None}])
def test_a_part_that_a_study_lacks_costs_no_other_part(put, tmp_path, changes):
    put("metrics.json", study(**changes))

    rows = {(label, metric): row for (_, label, metric), row in found_in(tmp_path).items()}

    history = rows["20", "val_loss"] if changes.keys() != {"history"} else rows["history", "val_loss"]
    final = rows["final", "val_loss"]
    assert [row.value for row in (history, final)] == [
        None if "history" in changes else 24.148,
        None if "final_metrics" in changes else 24.148,
    ]


def test_studies_that_do_not_tell_their_settings_are_no_twins(put, tmp_path):
    for name in ("muon_optimal", "adam"):
        put(f"{name}/metrics.json", {"final_metrics": {"val_loss": len(name) / 4}})

    rows = found_in(tmp_path)

    assert rows["adam", "final", "val_loss"].value == 1.0
    assert {row.flags for row in rows.values()} == {()}


def test_a_routers_summary_is_a_row_per_metric_and_an_empty_cell_is_void(put, tmp_path):
    put("results/unified_summary.csv", UNIFIED + f"unified_softk_cf1_25,softk,2,1.25,8,256,,{CELLS}")

    rows = found_in(tmp_path)
    run = "results/unified_softk_cf1_25"

    assert (rows[run, "best", "val_loss"].value, rows[run, "best", "val_loss"].step) == (1.7, 1200)
    assert (rows[run, "final", "val_loss"].value, rows[run, "final", "val_loss"].step) == (1.72, None)
    assert (rows[run, "run", "mean_drop_rate"].value, rows[run, "run", "mean_drop_rate"].void) == (0.0, None)
    assert rows[run, "run", "median_bw_GiBps"].void == "empty in the file"
    assert rows[run, "run", "median_tokens_per_s"].value is None
    assert rows[run, "best", "val_loss"].cell == "softk"


def test_one_setting_twice_in_a_table_is_flagged_and_its_seeds_are_not(put, tmp_path):
    names = ("a", "b", "c-s17", "c-s18", "Rsoftk_E8_S17", "Rsoftk_E8_S18")
    lines = "".join(f"{run},softk,2,1.25,8,256,,{CELLS}" for run in names)
    put("unified_summary.csv", UNIFIED + lines)

    rows = found_in(tmp_path)
    flags = [rows[f"{tmp_path.name}/{name}", "final", "val_loss"].flags for name in names]

    is_first = f"identical config to {tmp_path.name}"
    again = [(f"{is_first}/c-s17",), (f"{is_first}/c-s18",)]
    assert flags == [(), (f"{is_first}/a",), (), (), *again]
    assert rows[f"{tmp_path.name}/Rsoftk_E8_S18", "run", "mean_load_cv"].seed == 18


def test_summaries_of_adapters_and_of_router_networks_are_read(put, tmp_path):
    put(
        "perft/variants_summary.csv",
        "variant,step,train_loss,eval_loss\nR_N4_k1_r8,10,2.5,2.25\nR_N4_k1_r8,eval,,1.5\n",
    )
    columns = "run,router_arch,strategy,router_params,mean_topk_prob,gate_entropy,ppl,tokens_per_s\n"
    put("arch/router_arch_summary.csv", f"{columns}arch_mlp_softk,mlp,softk,33928,0.8,0.4,8.5,5.6e7\n")

    rows = found_in(tmp_path)

    assert (
        rows["perft/R_N4_k1_r8", "10", "eval_total_loss"].step,
        rows["perft/R_N4_k1_r8", "10", "eval_total_loss"].value,
    ) == (10, 2.25)
    assert rows["perft/R_N4_k1_r8", "final", "eval_total_loss"].value == 1.5
    assert rows["perft/R_N4_k1_r8", "final", "train_total_loss"].void == "empty in the file"
    assert rows["arch/arch_mlp_softk", "run", "ppl"].value == 8.5


def test_runs_appended_to_one_log_give_no_number_and_a_log_of_one_does(put, tmp_path):
    for name, steps in (("tiny", (25, 50, 25)), ("one", (25, 50))):
        lines = (json.dumps({"step": step, "ppl": 4.5 - step / 100}) + "\n" for step in steps)
        put(f"{name}/train_log.jsonl", "".join(lines))

    rows = collect(tmp_path).rows

    assert [(row.step, row.value) for row in rows if row.run == "one"] == [(25, 4.25), (50, 4.0)]
    reason = "the log holds several runs, which nothing tells apart"
    assert [(row.value, row.void) for row in rows if row.run == "tiny"] == [(None, reason)] * 3


def test_a_runs_log_takes_seed_and_settings_from_beside_it(put, tmp_path):
    asked = {"strategy": "softk", "capacity_factor": 1.25, "seed": 17}
    record = {"step": 200, "val_loss": 2.5, "drop_rate": 0.0, "strategy": "softk", "tokens_per_s": 2.7e7}
    for name, changes in (("a", {}), ("b", {"outdir": "elsewhere"}), ("c", {"seed": 18})):
        put(f"{name}/hparams.json", {**asked, **changes})
        put(f"{name}/train_log.jsonl", json.dumps({**record, "loss_of": len(name + str(changes))}) + "\n")

    rows = found_in(tmp_path)

    first = rows["a", "200", "val_loss"]
    assert (first.value, first.step, first.seed, first.cell) == (2.5, 200, 17, "softk")
    assert rows["a", "200", "drop_rate"].value == 0.0
    assert "strategy" not in {metric for _, _, metric in rows}
    assert [rows[run, "200", "val_loss"].flags for run in "abc"] == [(), ("identical config to a",), ()]


def test_rates_that_were_multiplied_by_the_evaluation_interval_are_void_with_the_factor(put, tmp_path):
    """8,192 tokens in 0.2124 s were published as 1,928,774 tokens a second: 50 times what they are."""
    record = {"step": 50, "avg_step_ms": 212.4, "tokens_per_s": 1.93e6, "eff_tflops": 5.1, "ppl": 4.5}
    record |= {"tokens_per_s_per_rank": 1.93e6, "bw_GiBps_strict": 11.0}
    for name, asked in (("a", {"eval_interval": 50}), ("b", {}), ("each", {"eval_interval": 1})):
        put(f"{name}/hparams.json", asked)
        put(f"{name}/train_log.jsonl", json.dumps(record) + "\n")
    put("x_summary.csv", UNIFIED + f"c,softk,2,1.25,8,256,,{CELLS}")

    rows = found_in(tmp_path)

    rates = ("tokens_per_s", "tokens_per_s_per_rank", "eff_tflops", "bw_GiBps_strict")
    told = {run: {str(rows[run, "50", rate].void).split(":")[0] for rate in rates} for run in ("a", "b")}
    unknown = "too high by the updates between two evaluations, 200 as published"
    assert told == {"a": {"50 times too high"}, "b": {unknown}}
    assert str(rows[f"{tmp_path.name}/c", "best", "tokens_per_s"].void).startswith(unknown)
    assert [rows["each", "50", rate].value for rate in rates] == [1.93e6, 1.93e6, 5.1, 11.0]
    assert rows["a", "50", "avg_step_ms"].flags == ("the time of a validation is in it",)
    assert (rows["a", "50", "ppl"].value, rows["a", "50", "ppl"].flags) == (4.5, ())


def test_a_perplexity_of_a_loss_that_is_none_is_the_cap_and_void(put, tmp_path):
    """min(20, nan) is 20, so a run that had diverged was logged with 485,165,195."""
    put("a/train_log.jsonl", '{"step": 50, "val_loss": NaN, "ppl": 485165195.40979, "router_params": 2048}')
    put(
        "b_summary.csv",
        UNIFIED + f"b,softk,2,1.25,8,256,,{CELLS.replace('5.6,1.72', '485165195.40979,21.5')}",
    )

    rows = found_in(tmp_path)

    assert rows["a", "50", "val_loss"].void == "not finite (nan)"
    table = f"{tmp_path.name}/b"
    capped = {rows["a", "50", "ppl"].void, rows[table, "final", "val_ppl"].void}
    assert capped == {"capped at exp(20): no perplexity"}
    assert rows[table, "best", "val_ppl"].value == 5.5
    assert rows["a", "50", "router_params"].flags == ("stored in bf16, so rounded to three digits",)


def test_loads_of_a_study_say_what_they_are_a_mean_of(put, tmp_path):
    put("metrics.json", study())

    (flag,) = found_in(tmp_path)[tmp_path.name, "10", "expert_utilization[1]"].flags

    assert flag.startswith("a running mean over training and validation, and over layers")


def test_bits_of_a_token_are_not_called_bits_of_a_character(put, tmp_path):
    """Published subword runs have 32.07 a token where others have 5.5 a character, under one name."""
    for name, asked in (("subword", {"tokenizer": "gpt-neo"}), ("characters", {"tokenizer": None})):
        put(f"{name}/hparams.json", asked)
        record = {"step": 50, "val_loss": 3.5, "ppl": 33.1, "bpc": 5.05, "lr": len(name)}
        put(f"{name}/train_log.jsonl", json.dumps(record))

    rows = found_in(tmp_path)

    assert rows["subword", "50", "bpc"].void == "bits a token of gpt-neo, and called bits a character"
    assert rows["characters", "50", "bpc"].value == 5.05
    by_token = ("by token of gpt-neo; the bench's other runs are by character",)
    assert [rows["subword", "50", name].flags for name in ("val_loss", "ppl", "lr")] == [
        by_token,
        by_token,
        (),
    ]
    assert {row.flags for (run, _, _), row in rows.items() if run == "characters"} == {()}


def test_a_line_that_is_cut_off_is_named_and_the_evaluations_before_it_stay(put, tmp_path):
    put("a/train_log.jsonl", '{"step": 25, "ppl": 4.5}\n{"step": 50, "ppl": 4.25}\n{"step": 75, "pp')

    found = collect(tmp_path)

    assert [(row.step, row.value) for row in found.rows] == [(25, 4.5), (50, 4.25)]
    where = f"{tmp_path}/a/train_log.jsonl:3: cut off: the file ends inside it; copy it again"
    assert [reason.startswith(where) for reason in found.unreadable] == [True]


def test_numbers_that_were_written_as_text_are_numbers(put, tmp_path):
    put("a/hparams.json", {"seed": "17"})
    put("a/train_log.jsonl", '{"step": "200", "ppl": "5.5"}\n')

    (row,) = collect(tmp_path).rows

    assert (row.step, row.label, row.value, row.seed) == (200, "200", 5.5, 17)


def test_a_bad_row_of_a_table_is_named_with_its_line_and_the_others_stay(put, tmp_path):
    put("variants_summary.csv", "variant,step,eval_loss\nR,10,2.5\nR,20,high\nR,30\nR,40,2.25\n")

    found = collect(tmp_path)

    assert [(row.step, row.value) for row in found.rows] == [(10, 2.5), (40, 2.25)]
    assert [reason.split("_summary.csv:")[1].split(";")[0] for reason in found.unreadable] == [
        "3: eval_loss is 'high'",
        "4: not as many cells as columns",
    ]


@pytest.mark.parametrize(
    ("train", "val", "is_flagged"),
    [
        ([0.5, 0.00019], [10.774, 24.148], True),
        # honest, and overfitting
        ([3.5, 0.75], [10.774, 12.5], False),
        ([3.5, 0.00019], [10.774, 5.25], False),
    ],
)
def test_a_study_that_learnt_to_copy_its_input_is_flagged(put, tmp_path, train, val, is_flagged):
    copied = study()
    copied["history"] |= {"train_losses": train, "val_losses": val}
    put("metrics.json", copied)

    rows = found_in(tmp_path)

    assert rows[tmp_path.name, "20", "val_loss"].value == val[1]
    # a comparison is of what the file calls final
    for label in ("20", "final"):
        flags = rows[tmp_path.name, label, "val_loss"].flags
        assert any("do not score one task" in flag for flag in flags) == is_flagged


@pytest.mark.parametrize(
    ("strategy", "entropy", "largest"),
    [("top1", None, None), ("topk_hard", None, None), ("topk-hard", None, None), ("softk", 0.0, 1.0)],
)
def test_gate_numbers_of_a_router_without_gates_are_void_and_never_zero(
    put, tmp_path, strategy, entropy, largest
):
    record = {"step": 200, "strategy": strategy, "gate_entropy": 0.0, "mean_topk_prob": 1.0, "drop_rate": 0.0}
    put("a/train_log.jsonl", json.dumps(record) + "\n")
    put("x_summary.csv", UNIFIED + f"b,{strategy},2,1.25,8,256,,{CELLS.replace('0.4,x', '0.0,x')}")

    rows = found_in(tmp_path)

    assert rows["a", "200", "gate_entropy"].value == entropy
    assert rows["a", "200", "mean_topk_prob"].value == largest
    assert rows["a", "200", "drop_rate"].value == 0.0
    assert rows[f"{tmp_path.name}/b", "run", "mean_gate_entropy"].value == entropy
