import json
import shutil

import pytest

from latentbridge.audit.ablations import lower_is_better, read_launch, summarize
from latentbridge.errors import RunError
from latentbridge.metric import void

RECOVERED = "context_recovered"


def cell(summary, name):
    return next(row for row in summary.cells if row.name == name)


def test_a_cell_is_the_mean_over_its_seeds_with_a_t_interval(launch, metric):
    for seed, value in ((1, 0.1), (2, 0.2), (3, 0.3)):
        launch.run("a", seed, {"bridged_accuracy": metric(value)})

    found = cell(read_launch(launch.path), "a").metrics["bridged_accuracy"]

    assert found.value == pytest.approx(0.2)
    assert found.n == 3
    assert found.high == pytest.approx(0.2 + 0.2484, abs=1e-4)


def test_one_seed_keeps_its_own_interval(launch, metric):
    launch.run("a", 1, {"bridged_accuracy": metric(0.4, half=0.07)})

    row = cell(read_launch(launch.path), "a")

    assert row.metrics["bridged_accuracy"] == metric(0.4, half=0.07)
    assert row.interval_over == "samples"


def test_a_failed_seed_is_named_and_never_averaged_over(launch, metric):
    launch.run("a", 1, {"bridged_accuracy": metric(0.6)})
    launch.run("a", 2, {"bridged_accuracy": metric(0.5)}, state="FAILED", cause="oom")

    row = cell(read_launch(launch.path), "a")

    assert row.metrics["bridged_accuracy"] == void("seed 2 FAILED (oom)")
    assert row.state == "1/2 done, 1 FAILED"


def test_a_void_metric_is_named_and_the_others_stand(launch, metric):
    launch.run("a", 1, {"x": metric(0.6), "y": metric(1.0)})
    launch.run("a", 2, {"x": void("no samples"), "y": metric(2.0)})
    launch.run("a", 3, {"y": metric(3.0)})

    metrics = cell(read_launch(launch.path), "a").metrics

    assert metrics["x"].void == "seed 2 no samples; seed 3 not measured"
    assert metrics["y"].value == pytest.approx(2.0)


def test_unfinished_and_waiting_seeds_are_told_apart(launch, metric):
    launch.run("a", 1, {"x": metric(0.6)}, state=None, label="250").new_attempt()
    launch.run("a", 2, None, state=None)

    summary = read_launch(launch.path)

    assert [run.state for run in summary.runs] == ["unfinished", "not started"]
    assert summary.runs[0].metrics["x"].value == 0.6
    assert cell(summary, "a").metrics["x"].void == "seed 1 unfinished; seed 2 not started"


def test_a_run_that_is_done_without_a_final_evaluation_counts_for_nothing(launch, metric):
    launch.run("a", 1, {"x": metric(0.6)}, label="250")

    assert cell(read_launch(launch.path), "a").metrics["x"] == void("seed 1 no final evaluation")


def test_a_damaged_file_voids_its_run_and_no_other(launch, metric):
    launch.run("a", 1, {"x": metric(0.6)}).metrics_log.write_text('{"step": 1}\n')
    launch.run("b", 1, {"x": metric(0.5)}).metrics_log.write_text('torn\n{"step": 2}')
    launch.run("c", 1, {"x": metric(0.4)})

    summary = read_launch(launch.path)

    assert [run.cause.split(":")[0] for run in summary.runs] == ["damaged", "damaged", ""]
    assert cell(summary, "c").metrics["x"].value == 0.4


def test_a_folder_that_is_no_launch_is_named(tmp_path):
    with pytest.raises(RunError, match=r"plan\.json"):
        read_launch(tmp_path)


def compare(launch, metric, first, second, name="bridged_accuracy", against=("new",)):
    launch.compare.append({"baseline": "old", "against": list(against), "metric": name})
    for label, values in (("old", second), ("new", first)):
        for seed, value in enumerate(values):
            launch.run(label, seed, {name: metric(value)})
    return read_launch(launch.path).verdicts


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ((0.60, 0.62, 0.61), (0.50, 0.52, 0.51), "won"),
        ((0.50, 0.52, 0.51), (0.60, 0.62, 0.61), "lost"),
        ((0.60, 0.50, 0.70), (0.50, 0.60, 0.55), "tied"),
    ],
)
def test_a_difference_counts_only_beyond_the_spread_of_the_seeds(launch, metric, first, second, outcome):
    (verdict,) = compare(launch, metric, first, second)

    assert verdict.outcome == outcome
    assert verdict.difference.value == pytest.approx(sum(first) / 3 - sum(second) / 3)


def test_a_lower_loss_wins(launch, metric):
    (verdict,) = compare(launch, metric, (0.50, 0.52, 0.51), (0.60, 0.62, 0.61), name="bridged_nll")

    assert verdict.outcome == "won"
    assert [lower_is_better(name) for name in ("val_loss", "nll", "glossary", "loss_ratio")] == [
        True,
        True,
        False,
        False,
    ]
    names = ("bridged_ttft_s", "cascade_kv_mib", "kv_saved_mib")
    assert [lower_is_better(name) for name in names] == [True, True, False]


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ((0.6,), (0.5,), "new: 1 seeds; a spread takes 2 or more"),
        ((0.6, 0.6), (0.5, 0.5), "in each cell all seeds gave one value"),
    ],
)
def test_without_a_spread_there_is_no_verdict(launch, metric, first, second, reason):
    (verdict,) = compare(launch, metric, first, second)

    assert (verdict.outcome, verdict.p) == ("void", None)
    assert verdict.difference.void.startswith(reason)


def test_a_missing_seed_voids_the_verdict_and_is_named(launch, metric):
    launch.run("new", 9, state="FAILED", cause="timeout")

    (verdict,) = compare(launch, metric, (0.60, 0.62, 0.61), (0.50, 0.52, 0.51))

    assert verdict.outcome == "void"
    assert verdict.difference.void == "new: seed 9 FAILED (timeout)"


def test_verdicts_are_corrected_for_their_number(launch, metric):
    launch.run("other", 0, {"bridged_accuracy": metric(0.55)})
    launch.run("other", 1, {"bridged_accuracy": metric(0.50)})
    # alone this pair gives p = 0.042: won; as the smaller of two it doubles: tied
    verdicts = compare(
        launch, metric, (0.60, 0.58, 0.57), (0.56, 0.55, 0.54), against=("new", "other", "absent")
    )

    assert [verdict.outcome for verdict in verdicts] == ["tied", "tied", "void"]
    assert verdicts[0].p == pytest.approx(2 * 0.0419, abs=1e-4)


@pytest.mark.parametrize(
    ("no_source", "shuffled", "flagged"),
    [(0.1, 0.2, None), (0.1, 0.46, "context_recovered_shuffled_source"), (0.5, 0.2, "no_source")],
)
def test_a_bridge_must_clear_both_controls_by_its_interval(launch, metric, no_source, shuffled, flagged):
    launch.run(
        "a",
        1,
        {
            RECOVERED: metric(0.5, half=0.05),
            f"{RECOVERED}_no_source": metric(no_source),
            f"{RECOVERED}_shuffled_source": metric(shuffled),
        },
    )

    flags = read_launch(launch.path).flags

    assert len(flags) == (flagged is not None)
    assert all(flag.startswith("CLAIM FLAGGED: a-s1: ") and flagged in flag for flag in flags)


def test_a_claim_whose_control_is_void_is_flagged(launch, metric):
    controls = {f"{RECOVERED}_no_source": metric(0.1), f"{RECOVERED}_shuffled_source": void("one question")}
    launch.run("a", 1, {RECOVERED: metric(0.5), **controls})

    (flag,) = read_launch(launch.path).flags

    assert "cannot be checked" in flag
    assert "void (one question)" in flag


def test_only_a_final_claim_is_judged(launch, metric):
    launch.run("a", 1, {RECOVERED: metric(0.0)}, state=None, label="0")

    assert read_launch(launch.path).flags == []


def test_the_headline_is_the_best_cell_of_the_first_comparison_and_never_a_void_one(launch, metric):
    launch.run("zero", 1, state="FAILED", cause="oom")

    compare(launch, metric, (0.7, 0.6), (0.5, 0.4), name="val_loss")

    assert read_launch(launch.path).headline.startswith("val_loss 0.450 [")
    assert read_launch(launch.path).headline.endswith(" in old, the best of 2")


def test_without_comparisons_the_headline_is_what_early_stopping_watched(launch, metric):
    launch.run("a", 1, {"x": metric(0.6)}, config={"early_stop": {"metric": "x"}})

    assert read_launch(launch.path).headline.endswith("in a, the best of 1")


def test_a_share_above_the_text_is_named_and_never_the_headline(launch, metric):
    controls = {f"{RECOVERED}_no_source": metric(0.1), f"{RECOVERED}_shuffled_source": metric(0.2)}
    config = {"early_stop": {"metric": RECOVERED}}
    launch.run("questions", 1, {RECOVERED: metric(0.9), **controls}, config=config)
    launch.run("odd_text", 1, {RECOVERED: metric(16.7), **controls}, config=config)

    summary = read_launch(launch.path)

    (flag,) = summary.flags
    assert flag.startswith("ABOVE THE TEXT: odd_text-s1: ")
    assert summary.headline.endswith("in questions, the best of 1")


def test_summarize_writes_the_same_bytes_for_a_copy_elsewhere(launch, metric, tmp_path):
    compare(launch, metric, (0.60, 0.62), (0.50, 0.52))
    summarize(launch.path)
    copy = tmp_path / "elsewhere" / launch.path.name
    shutil.copytree(launch.path, copy, ignore=shutil.ignore_patterns("summary.*"))

    summarize(copy)

    for name in ("summary.json", "summary.log"):
        assert (copy / name).read_bytes() == (launch.path / name).read_bytes()
    written = json.loads((copy / "summary.json").read_text())
    assert [row["cell"] for row in written["cells"]] == ["old", "new"]
    assert written["runs"][0]["metrics"]["bridged_accuracy"]["value"] == 0.50


@pytest.mark.parametrize(
    ("metric", "is_lower"),
    [("bridged_ttft_s", True), ("c1.25_tokens_per_s", False), ("c1_drop_rate", True), ("val_nll", True)],
)
def test_a_rate_is_no_time_and_more_of_it_is_better(metric: str, is_lower: bool):
    assert lower_is_better(metric) == is_lower
