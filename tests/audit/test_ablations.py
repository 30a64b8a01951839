import json
import shutil

import pytest

from latentbridge.audit.ablations import read_launch, summarize
from latentbridge.audit.table import render
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


@pytest.mark.parametrize("name", ["bridged_accuracy", "test_layer_1_gdn_share"])
def test_no_interval_of_a_share_leaves_0_to_1(launch, metric, name):
    for seed, value in ((1, 0.8), (2, 0.95)):
        launch.run("a", seed, {name: metric(value)})

    found = cell(read_launch(launch.path), "a").metrics[name]

    assert (found.low, found.high) == (0.0, 1.0)


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
        ((0.60, 0.62, 0.61), (0.50, 0.53, 0.51), "won"),
        ((0.50, 0.53, 0.51), (0.60, 0.62, 0.61), "lost"),
        ((0.60, 0.50, 0.70), (0.50, 0.60, 0.55), "tied"),
    ],
)
def test_a_difference_counts_only_beyond_the_spread_of_the_seeds(launch, metric, first, second, outcome):
    (verdict,) = compare(launch, metric, first, second)

    assert verdict.outcome == outcome
    assert verdict.difference.value == pytest.approx(sum(first) / 3 - sum(second) / 3)


def test_a_lower_loss_wins(launch, metric):
    (verdict,) = compare(launch, metric, (0.50, 0.53, 0.51), (0.60, 0.62, 0.61), name="bridged_nll")

    assert verdict.outcome == "won"


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ((0.6,), (0.5,), "new: one run tells nothing of the spread between runs"),
        ((0.6, 0.7), (0.5, 0.6), "every pair of seeds differs by the same"),
        ((0.6, 0.6), (0.5, 0.5, 0.5), "in each cell all seeds gave one value"),
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


BEST = {"metric": "val_nll", "mode": "min"}
# by cell: validation chooses slow of the old and fast of the new, and the test text would choose otherwise
TUNED = {
    "old_slow": ((3.1, 3.3), (5.0, 5.2)),
    "old_fast": ((3.0, 3.6), (4.0, 4.2)),
    "new_slow": ((3.4, 3.4), (1.0, 1.2)),
    "new_fast": ((2.9, 3.0), (4.5, 4.6)),
}


def tune(launch, metric):
    launch.compare.append(
        {
            "baseline": {"best_of": "old_*", **BEST},
            "against": [{"best_of": "new_*", **BEST}],
            "metric": "test_nll",
        }
    )
    for cell, values in TUNED.items():
        for seed, (val, test) in enumerate(zip(*values, strict=True)):
            launch.run(cell, seed, {"val_nll": metric(val), "test_nll": metric(test)})


def test_the_best_of_a_grid_is_chosen_by_validation_and_compared_on_the_test_text(launch, metric):
    """R: arms had unequal learning rates, which decided who won."""
    tune(launch, metric)

    summary = read_launch(launch.path)
    (verdict,) = summary.verdicts

    assert (verdict.cell, verdict.baseline) == ("new_fast", "old_slow")
    assert verdict.difference.value == pytest.approx(4.55 - 5.1)
    assert verdict.chosen == (
        "old_slow has the lowest val_nll, 3.2; beaten: old_fast 3.3",
        "new_fast has the lowest val_nll, 2.95; beaten: new_slow 3.4",
    )
    assert "- chosen: old_slow has the lowest val_nll" in render(summary)
    assert summary.as_record()["verdicts"][0]["chosen"] == list(verdict.chosen)


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ((3.0, 2.5, 2.0), "; it is at an end of the optim.lr that were tried (0.1, 0.2, 0.4), and beyond"),
        ((2.0, 2.5, 3.0), "; it is at an end of the optim.lr"),
        ((3.0, 2.0, 2.5), ""),
    ],
)
def test_a_best_at_an_end_of_its_grid_is_told_for_there_may_be_a_better_one(launch, metric, losses, told):
    side = {"best_of": "a_*", "metric": "val_nll", "mode": "min"}
    launch.compare.append({"baseline": side, "against": ["b"], "metric": "test_nll"})
    for rate, loss in zip((0.2, 0.1, 0.4), (losses[1], losses[0], losses[2]), strict=True):
        config = {"optim": {"lr": rate, "clip": 1.0}, "name": "a"}
        launch.run(f"a_{rate}", 5, {"val_nll": metric(loss), "test_nll": metric(loss)}, config=config)
    launch.run("b", 5, {"val_nll": metric(1.0), "test_nll": metric(1.0)})
    (why,) = read_launch(launch.path).verdicts[0].chosen

    assert told in why
    assert ("at an end" in why) == bool(told)


def test_nobody_is_the_best_of_a_grid_of_which_a_seed_is_missing(launch, metric):
    tune(launch, metric)
    launch.run("new_slow", 9, state="FAILED", cause="oom")

    (verdict,) = read_launch(launch.path).verdicts

    assert (verdict.cell, verdict.baseline, verdict.outcome) == ("new_*", "old_slow", "void")
    assert verdict.difference.void == (
        "nobody can say which of new_* is best by val_nll: new_slow: seed 9 FAILED (oom)"
    )


def test_cells_of_the_same_seeds_are_compared_by_pairs_and_others_by_welch(launch, metric):
    """The published sweep's cells shared their seeds, which Welch's test takes for noise."""
    launch.run("other", 7, {"bridged_accuracy": metric(0.55)})
    launch.run("other", 8, {"bridged_accuracy": metric(0.50)})
    # seeds move both cells by 0.3, their difference by 0.02
    paired, unpaired = compare(
        launch, metric, (0.70, 0.50, 0.41), (0.60, 0.39, 0.30), against=("new", "other")
    )

    assert (paired.by, paired.outcome, paired.difference.n) == ("3 pairs", "won", 3)
    assert paired.difference.value == pytest.approx(0.32 / 3)
    assert (unpaired.by, unpaired.outcome, unpaired.difference.n) == ("Welch", "tied", 5)


def test_verdicts_are_corrected_for_their_number(launch, metric):
    launch.run("other", 0, {"bridged_accuracy": metric(0.55)})
    launch.run("other", 1, {"bridged_accuracy": metric(0.50)})
    # pairs differ by 0.04, 0.03 and 0.055: alone p = 0.029 and won; as the smaller of two it doubles: tied
    verdicts = compare(
        launch, metric, (0.60, 0.58, 0.59), (0.56, 0.55, 0.535), against=("new", "other", "absent")
    )

    assert [verdict.outcome for verdict in verdicts] == ["tied", "tied", "void"]
    assert verdicts[0].p == pytest.approx(2 * 0.0291, abs=1e-4)


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


def test_by_a_metric_without_a_better_side_nobody_wins_and_holm_does_not_count_it(launch, metric):
    """compare --metric '*' said that a cell had won by having more parameters."""
    names = ("active_parameters", "test_gdn_share", "shuffled_source_nll", "bridged_nll")
    launch.compare += [{"baseline": "old", "against": ["new"], "metric": name} for name in names]
    for cell, values in {"old": (0.5, 0.6, 0.7), "new": (0.3, 0.43, 0.5)}.items():
        for seed, value in enumerate(values):
            launch.run(cell, seed, {name: metric(value) for name in names})

    summary = read_launch(launch.path)

    *unjudged, judged = summary.verdicts
    assert {(verdict.outcome, verdict.p, verdict.by) for verdict in unjudged} == {("-", None, "3 pairs")}
    assert unjudged[0].difference == judged.difference
    # pairs differ by 0.2, 0.17 and 0.2: t = 19, p = 0.0028 alone, and four times that among four
    assert (judged.outcome, judged.p) == ("won", pytest.approx(0.00276, abs=1e-5))
    text = " ".join(render(summary).split())
    assert "new - old active_parameters 3 pairs - -0.190 [" in text
    assert '- "-": neither less nor more of such a metric is better' in text
    assert summary.headline == "active_parameters of 2 cells, none of which it makes the best"


def test_the_headline_follows_early_stopping_where_the_name_does_not_tell(launch, metric):
    for cell, value in (("a", 0.6), ("b", 0.4)):
        stop = {"early_stop": {"metric": "x", "mode": "min"}}
        launch.run(cell, 1, {"x": metric(value)}, config=stop)

    assert read_launch(launch.path).headline.endswith("in b, the best of 2")
