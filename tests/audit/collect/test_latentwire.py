import json

import pytest

from latentbridge.audit.collect.table import collect

CONFIG = {
    "soft_tokens": "-1",
    "bridge": "dit",
    "lr": "0.0001",
    "decode_loss_weight": "0.0",
    "decode_interval": "50",
    "eval_samples": "200",
    "skip_source_baseline": "False",
    "log_dir": "paper_writing/runs/old_name",
    "seed": "1234",
}
HEAD = "[Final Eval] Source-alone acc: 0.540 | Target-alone acc: 0.770 | Bridged acc: 0.645\n"


def log(tail: str = HEAD, **changes: str) -> str:
    settings = "".join(f"{key}: {value}\n" for key, value in (CONFIG | changes).items())
    return (
        f"==== Config ====\n{settings}==== Reproducibility Settings ====\nWorld size: 4 (nccl)\n"
        "  5%|#   | 20/2000\rStep 20/2000 | Loss (avg over last 20): 3.1250 | TokenAlign: 0.5000\n"
        "[Distributed Eval] Sharding 200 samples across 4 ranks:\n  Rank 0: samples 0 to 49 (50 samples)\n"
        "Answer: [Eval] Step 999 | Target-alone acc: 0.111 | Bridged acc: 0.111\n"
        "[Eval] Step 250 | Source-alone acc: 0.540 | Target-alone acc: 0.770 | Bridged acc: 0.520\n"
        "Step 40/2000 | Loss (avg over last 20): 2.2500Step 60/2000\n" + tail
    )


def values(found, metric):
    return {row.label: row.value for row in found.rows if row.metric == metric}


def test_a_log_gives_losses_and_accuracies_and_no_number_out_of_a_quoted_generation(put, tmp_path):
    put('phase1_"20251116_201212"/phase1_all_fix/train.log', log())

    found = collect(tmp_path)

    assert values(found, "train_loss") == {"20": 3.125, "40": 2.25}
    assert values(found, "token_alignment") == {"20": 0.5}
    assert values(found, "bridged_accuracy") == {"250": 0.52, "final": 0.645}
    final = next(row for row in found.rows if row.label == "final" and row.metric == "bridged_accuracy")
    assert (final.n, final.seed, final.cell, final.void) == (200, 1234, "phase1_all_fix", None)
    # Wilson by hand for 129 of 200
    assert (final.low, final.high) == (pytest.approx(0.5766, abs=1e-4), pytest.approx(0.7080, abs=1e-4))


def test_a_log_of_before_the_source_was_measured_is_read_too(put, tmp_path):
    put("gated_20251108_101010/train.log", "[Eval] Step 0 | Target-alone acc: 0.296 | Bridged acc: 0.016\n")

    found = collect(tmp_path)

    assert values(found, "target_alone_accuracy") == {"0": 0.296}
    assert values(found, "source_alone_accuracy") == {}
    assert found.rows[0].cell == "gated"


def test_zeros_of_an_evaluation_that_kept_no_record_are_void(put, tmp_path):
    zeros = "Source-alone acc: 0.000 | Target-alone acc: 0.000 | Bridged acc: 0.000\n"
    kept = f"[Final Eval] {zeros}[Eval] No sample outputs to save for final (no records)\n"
    put("a/train.log", log(kept))
    put("b/train.log", log(f"[Final Eval] {zeros}", skip_source_baseline="True"))
    put("c/train.log", log(f"[Final Eval] {zeros}", lr="0.01"))

    rows = [
        row for row in collect(tmp_path).rows if row.label == "final" and row.metric == "bridged_accuracy"
    ]

    assert [(row.run, row.value, row.void is not None) for row in rows] == [
        ("a", None, True),
        ("b", None, True),
        ("c", 0.0, False),
    ]


def test_a_log_that_stops_has_a_void_final_accuracy(put, tmp_path):
    put("killed/train.log", log(tail=""))

    last = collect(tmp_path).rows[-1]

    assert (last.label, last.metric, last.value) == ("final", "bridged_accuracy", None)
    assert last.void == "the log ends at step 40 without a final evaluation"


def test_three_names_for_one_experiment_are_flagged_and_another_rate_is_not(put, tmp_path):
    put("ablB/train.log", log())
    put("ablC/train.log", log(decode_interval="100", log_dir="elsewhere", dit_dropout="0.1"))
    put("lr8e5/train.log", log(lr="8e-05"))
    put("rerun/train.log", log())

    flags = {row.run: row.flags for row in collect(tmp_path).rows}

    assert flags == {
        "ablB": (),
        "ablC": ("identical config to ablB",),
        "lr8e5": (),
        "rerun": ("identical file to ablB/train.log", "identical config to ablB"),
    }


def test_a_setting_of_a_loss_that_no_log_mentions_makes_no_other_experiment(put, tmp_path):
    """The published ablations B and C differ in names and in decode_interval alone."""
    for name, interval in (("ablB", "50"), ("ablC", "100")):
        put(f"{name}/train.log", log(decode_interval=interval).replace("decode_loss_weight: 0.0\n", ""))
    put("refine/train.log", log(decode_loss_weight="0.02"))

    flags = {row.run: row.flags for row in collect(tmp_path).rows}

    assert flags == {"ablB": (), "ablC": ("identical config to ablB",), "refine": ()}


def test_a_suites_summary_gives_peak_and_final_and_not_its_typed_in_baseline(put, tmp_path):
    put(
        "suite_20251113_090000/summary.log",
        "ABLATIONS\nExperiment: 1a_dit_2step\nDescription: two steps\nStart: x\nEnd: y\nResults:\n"
        + HEAD.replace("0.645", "0.560")
        + "Peak accuracy:\n  Peak bridged: 61.5%\n\nExperiment: 1d_cfg\nStart: z\n\n"
        "Experiment Tokens Dataset Peak Final Degradation\nBaseline 64 gsm8k 81.5 36.0 45.5\n",
    )

    found = collect(tmp_path)

    rows = [(row.cell, row.label, row.value) for row in found.rows if row.metric == "bridged_accuracy"]
    assert rows == [
        ("1a_dit_2step", "peak", 0.615),
        ("1a_dit_2step", "final", 0.56),
        ("1d_cfg", "final", None),
    ]


@pytest.mark.parametrize(("text", "rows"), [("PHASE 2\n", 1), ("PHASE 2\nEnd time: now\nLogs: x\n", 0)])
def test_a_summary_without_an_end_is_of_a_run_that_died(put, tmp_path, text, rows):
    put("phase2_swap_20251118_213543/summary.log", text)

    found = collect(tmp_path)

    assert (len(found.rows), found.unreadable, found.files) == (rows, [], 1)


def test_what_an_analyser_typed_in_or_took_for_zero_is_void(put, tmp_path):
    evals = [{"step": 250, "target": 0.77, "bridged": 0.5}]
    measured = {"evals": evals, "peak_bridged": 0.5, "final_bridged": 0, "final_target": 0}
    typed = {"evals": [], "peak_bridged": 0.815, "final_bridged": 0.36, "final_target": 0.73}
    put("ablation_results.json", json.dumps({"1a": measured, "baseline": typed}))

    found = [row for row in collect(tmp_path).rows if row.metric == "bridged_accuracy"]

    assert [(row.cell, row.label, row.value) for row in found] == [
        ("1a", "250", 0.5),
        ("1a", "final", None),
        ("baseline", "final", None),
    ]
    assert [row.void and row.void.split(":")[0] for row in found[1:]] == [
        "0 stands for a missing final evaluation",
        "no evaluation stands behind it",
    ]


def test_runs_appended_to_one_training_log_give_no_number(put, tmp_path):
    put("one/train.log", log())
    put("tiny/train.log", log(lr="0.01") + log())

    rows = collect(tmp_path).rows

    several = [row for row in rows if row.run == "tiny"]
    assert {row.void for row in several} == {"the log holds several runs, which nothing tells apart"}
    assert {row.flags for row in several} == {()}
    assert {row.void for row in rows if row.run == "one"} == {None}


def test_what_follows_a_progress_bar_or_a_colour_begins_a_line(put, tmp_path):
    bar = "\rLoading shards: 100%|####| 4/4 [00:04<00:00,  1.02s/it]"
    text = log().replace("==== Config", f"{bar}==== Config").replace("Step 40", f"{bar}Step 40")
    put("run/train.log", text.replace("[Final Eval]", "\x1b[32m[Final Eval]"))

    found = collect(tmp_path)

    assert values(found, "train_loss") == {"20": 3.125, "40": 2.25}
    assert values(found, "bridged_accuracy") == {"250": 0.52, "final": 0.645}
    assert found.rows[0].seed == 1234


def test_what_another_rank_prints_between_settings_hides_none(put, tmp_path):
    put("run/train.log", log().replace("seed: 1234", "/lib/x.py:7 UserWarning!\n  warn()\nseed: 1234"))

    assert {row.seed for row in collect(tmp_path).rows} == {1234}


def test_an_accuracy_of_nan_is_void_and_hides_no_evaluation(put, tmp_path):
    put("run/train.log", log(HEAD.replace("0.540", "nan")))

    final = [row for row in collect(tmp_path).rows if row.label == "final"]

    assert [(row.value, row.void) for row in final] == [
        (None, "not finite (nan)"),
        (0.77, None),
        (0.645, None),
    ]


def test_an_experiment_that_no_run_beside_its_table_stands_behind_was_typed_in(put, tmp_path):
    evals = [{"step": 500, "source": 0.12, "target": 0.73, "bridged": 0.815}]
    found = {"evals": evals, "final_bridged": 0.36, "final_target": 0.73}
    put("ablation_results.json", json.dumps({"1a_stable_64tok": found, "1b_baseline_64tok": found}))
    put("1a_stable_64tok/train.log", log())

    rows = [row for row in collect(tmp_path).rows if row.source == "ablation_results.json"]

    assert {row.value is None for row in rows if row.cell == "1b_baseline_64tok"} == {True}
    assert [row.value for row in rows if row.cell == "1a_stable_64tok"] == [0.12, 0.73, 0.815, 0.73, 0.36]


def test_accuracies_of_a_dataset_whose_answers_were_never_extracted_are_void(put, tmp_path):
    put("3a_hotpot/train.log", log(HEAD.replace("0.645", "1.000"), dataset="hotpotqa"))

    found = [row for row in collect(tmp_path).rows if row.metric == "bridged_accuracy"]

    assert [row.value for row in found] == [None, None]
    assert all(str(row.void).startswith("HotpotQA") for row in found)


def test_two_final_evaluations_are_of_two_runs_though_neither_logged_a_step(put, tmp_path):
    put("passthrough/train.log", HEAD + HEAD.replace("0.645", "0.000"))

    reason = "the log holds several runs, which nothing tells apart"
    assert [row.void for row in collect(tmp_path).rows] == [reason] * 6
