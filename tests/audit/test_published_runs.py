"""Runs of published sides: what makes them a cell, how they are named, what keeps them from a mean."""

import gzip
import json
import shutil

import pytest

from latentbridge.audit.comparison.report import compare
from latentbridge.errors import ConfigError, DamageError
from latentbridge.launch.adopt import adopt


def sweep(root, lengths):
    """Two cells, three seeds each, an evaluation every 100 updates; lengths: of the second cell's logs."""
    for strategy, last in (("softk", (300, 300, 300)), ("top1", lengths)):
        for seed, end in zip((17, 18, 19), last, strict=True):
            folder = root / f"R{strategy}_E8_S{seed}"
            folder.mkdir(parents=True)
            (folder / "hparams.json").write_text(json.dumps({"strategy": strategy, "seed": seed}))
            losses = {step: 3 - step / 200 + seed**2 / 1000 for step in range(100, end + 1, 100)}
            records = [{"step": step, "val_loss": loss, "lr": len(strategy)} for step, loss in losses.items()]
            (folder / "train_log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return [f"{root}:softk", f"{root}:top1"]


def test_a_seed_whose_log_ends_early_is_not_averaged_with_whole_ones(tmp_path):
    """Step 400 of one seed among steps 1,000 of two made a tie of what was lost at p = 0.001."""
    sides = sweep(tmp_path / "runs", (300, 300, 100))

    with pytest.raises(ConfigError) as error:
        compare(sides, ["val_loss"])

    assert str(error.value) == (
        "val_loss is not averaged over uneven coverage: runs/Rtop1_E8_S19 has it of step 100; "
        "runs/Rtop1_E8_S17 has it of step 300"
    )


def test_cells_that_were_trained_for_other_lengths_are_compared_with_that_said(tmp_path):
    found = compare(sweep(tmp_path / "runs", (200, 200, 200)), ["val_loss"])

    # every seed 100 updates less, at 1/200 each
    assert found.cells[1].final.value - found.cells[0].final.value == pytest.approx(0.5)
    said = "val_loss of runs/Rtop1_E8_S17 (and 2 more): no final evaluation; step 200 is compared"
    assert said in found.unsure


def test_answers_of_another_step_are_not_averaged_with_final_ones(tmp_path):
    for cell in ("old", "new"):
        for seed in (3, 4, 5):
            label = "250" if (cell, seed) == ("new", 4) else "final"
            folder = tmp_path / f"{cell}-s{seed}"
            folder.mkdir()
            record = {"question": "1+1?", "gold_extracted": "2", "bridged_extracted": str(seed % 3)}
            (folder / f"eval_samples_step_{label}.jsonl").write_text(json.dumps(record) + "\n")

    with pytest.raises(
        ConfigError, match=r"new-s3 has it of the final evaluation; \S+/new-s4 has it of step 250$"
    ):
        compare([f"{tmp_path}:old", f"{tmp_path}:new"], ["bridged_accuracy"])


def test_runs_of_one_name_in_two_places_are_told_apart_in_what_is_said(tmp_path):
    first, second = (sweep(tmp_path / name / "runs", (300, 300, 300)) for name in ("old", "new"))

    unsure = compare([first[0], second[1]], ["val_loss"]).unsure
    copies = compare([first[0], second[0]], ["val_loss"]).unsure

    assert unsure[0].startswith("val_loss of runs/Rtop1_E8_S17 (and 5 more): no final evaluation")
    both = f"runs/Rsoftk_E8_S17 of {second[0]} and runs/Rsoftk_E8_S17 of {first[0]}"
    assert copies[0] == (
        f"identical files: {both} have one train_log.jsonl, byte for byte: one run, no comparison"
    )
    assert copies[3].startswith(f"val_loss of runs/Rsoftk_E8_S17 of {second[0]} (and 5 more): ")


def test_a_number_that_was_changed_in_an_archive_is_not_compared(tmp_path):
    sweep(tmp_path / "runs_20261120_120000", (300, 300, 300))
    archive = adopt(tmp_path / "runs_20261120_120000", tmp_path / "preserved_data")
    sides = [f"{archive}:softk", f"{archive}:top1"]
    compare(sides, ["val_loss"])

    log = archive / "Rtop1_E8_S18" / "train_log.jsonl"
    log.write_text(log.read_text().replace('"val_loss": 1', '"val_loss": 0'))

    with pytest.raises(DamageError, match=r"S18/train_log.jsonl: changed since it was preserved \(SHA"):
        compare(sides, ["val_loss"])


def test_an_archive_that_is_one_run_is_held_to_its_sums_too(tmp_path):
    sweep(tmp_path / "runs", (300, 300, 300))
    one, other = (
        adopt(tmp_path / "runs" / f"R{cell}_E8_S17", tmp_path / "kept") for cell in ("softk", "top1")
    )
    compare([str(one), str(other)], ["val_loss"])

    with open(other / "train_log.jsonl", "a") as file:
        file.write('{"step": 400, "val_loss": 0.5}\n')

    with pytest.raises(DamageError, match=r"train_log.jsonl: changed since it was preserved"):
        compare([str(one), str(other)], ["val_loss"])


def test_a_name_of_two_cells_is_refused_with_both(tmp_path):
    for batch in "ab":
        sweep(tmp_path / batch, (300, 300, 300))

    with pytest.raises(
        ConfigError, match=r"no cell 'Rtop1_E8'; several end in that name: a/Rtop1_E8, b/Rtop1_E8$"
    ):
        compare([f"{tmp_path}:Rtop1_E8", f"{tmp_path}:a/Rsoftk_E8"])


def test_a_report_of_an_older_batch_takes_no_run_its_name(tmp_path):
    """The published reports quote three runs that are gone, under the names of three that are there."""
    for name, loss in (("temp_0.7", 24.0), ("temp_1.0", 24.25)):
        study = {"final_metrics": {"val_loss": loss}, "history": {"steps": [1], "val_losses": [loss]}}
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "metrics.json").write_text(json.dumps(study))
    quoted = {"temp_0.7": {"final_loss": 14.5, "final_accuracy": 0.5}}
    (tmp_path / "analysis").mkdir()
    report = {"per_experiment": quoted, "summary": {}, "insights": []}
    (tmp_path / "analysis" / "specialization_report.json").write_text(json.dumps(report))

    cells = compare([f"{tmp_path}:temp_0.7", f"{tmp_path}:temp_1.0"], ["val_loss"]).cells

    assert [row.final.value for row in cells] == [24.0, 24.25]


def test_of_answers_that_are_there_twice_the_plain_file_is_compared(tmp_path):
    for name, right in (("a", "2"), ("b", "3")):
        record = {"question": "1+1?", "gold_extracted": "2", "bridged_extracted": right}
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval_samples_step_final.jsonl").write_text(json.dumps(record) + "\n")
    stale = gzip.compress((tmp_path / "b" / "eval_samples_step_final.jsonl").read_bytes())
    (tmp_path / "a" / "eval_samples_step_final.jsonl.gz").write_bytes(stale)

    cells = compare([str(tmp_path / "a"), str(tmp_path / "b")], ["bridged_accuracy"]).cells

    assert [row.final.value for row in cells] == [1.0, 0.0]


def test_final_answers_behind_a_link_to_nothing_are_refused_by_name(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        record = {"question": "1+1?", "gold_extracted": "2", "bridged_extracted": name}
        (tmp_path / name / "eval_samples_step_250.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "a" / "eval_samples_step_final.jsonl").symlink_to("gone")

    with pytest.raises(DamageError, match=r"a/eval_samples_step_final.jsonl: cannot be read \(No such file"):
        compare([str(tmp_path / "a"), str(tmp_path / "b")], ["bridged_accuracy"])


def test_folders_and_cells_may_hold_colons(tmp_path):
    place = tmp_path / "runs: old"
    for name in ("a:b c", "a"):
        (place / name).mkdir(parents=True)
        record = {"question": "1+1?", "gold_extracted": "2", "bridged_extracted": str(len(name))}
        (place / name / "eval_samples_step_final.jsonl").write_text(json.dumps(record) + "\n")

    rows = compare([f"{place}:a", f"{place}:a:b c"], ["bridged_accuracy"]).cells

    assert [row.cell for row in rows] == [f"{place}:a", f"{place}:a:b c"]


def test_our_own_runs_of_one_id_are_called_one_experiment(launch, metric, tmp_path):
    for cell, loss in (("old", 2.5), ("new", 1.75)):
        launch.run(cell, 3, {"test_nll": metric(loss, n=5)})
    shutil.copytree(launch.path, tmp_path / "again")

    once = compare([f"{launch.path}:old", f"{launch.path}:new"], ["test_nll"]).unsure
    twice = compare([f"{launch.path}:old", f"{tmp_path}/again:old"], ["test_nll"]).unsure

    assert not any("identical" in text for text in once)
    both = f"again/old-s3 and {launch.path.name}/old-s3"
    assert f"identical config: {both} were told the same, so they are one experiment, run again" in twice


def test_seeds_that_were_told_other_settings_are_called_no_seeds_of_one_experiment(tmp_path):
    sides = sweep(tmp_path / "runs", (300, 300, 300))
    assert not any("told more" in text for text in compare(sides, ["val_loss"]).unsure)

    asked = tmp_path / "runs" / "Rtop1_E8_S18" / "hparams.json"
    asked.write_text(json.dumps(json.loads(asked.read_text()) | {"lr": 0.5}))

    said = "runs/Rtop1_E8_S18 and runs/Rtop1_E8_S17 were told more apart than the seed: "
    assert f"{said}no seeds of one experiment" in compare(sides, ["val_loss"]).unsure
