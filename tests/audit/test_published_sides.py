"""Published systems' folders and answer files as sides of `latentbridge compare`."""

import gzip
import json
import math

import pytest

from latentbridge.audit.comparison.report import compare
from latentbridge.audit.comparison.text import render
from latentbridge.errors import ConfigError, DamageError
from latentbridge.launch.adopt import adopt
from latentbridge.launch.cli import main
from latentbridge.rundir import append_jsonl

ACCURACY = "bridged_accuracy"
PREFIX = "Answer step by step.\n\nQ: an example\nA: 1+1=2\n#### 2\n\nQ: "
WORDS = ["ann", "bob", "eve", "ida", "joe", "kim", "lou"]
SEVEN = "1110000"


def record(index, right, source="1", label="final"):
    """As the published translator wrote it, but shorter; right: 1, 0, or - for an answer that is none."""
    gold = str(index + 3)
    answers = {"1": gold, "0": f"{gold}.", "-": "[invalid]"}
    return {
        "eval_step": label,
        "index": index,
        "question": f"{PREFIX}{WORDS[index]} {index}?",
        "gold_full_text": f"#### {gold}",
        "gold_extracted": gold,
        "source_full": "",
        "source_extracted": answers[source],
        "target_full": "",
        "target_extracted": "[invalid]",
        "bridged_full": f"#### {answers[right]}" if right != "-" else "",
        "bridged_extracted": answers[right],
    }


def write_answers(folder, right, label="final", **changes):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"eval_samples_step_{label}.jsonl"
    records = [record(index, each, label=label) | changes for index, each in enumerate(right)]
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


def write_log(folder, seed=1234, evals=(), **changes):
    """train.log of the published translator; evals: label and bridged accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"bridge": "dit", "lr": "0.0001", "seed": str(seed), "log_dir": str(folder)} | changes
    lines = ["==== Config ====", *(f"{key}: {value}" for key, value in config.items()), "==== Rest ===="]
    for label, share in evals:
        head = "[Final Eval]" if label == "final" else f"[Eval] Step {label} |"
        lines.append(f"{head} Source-alone acc: 1.000 | Target-alone acc: 0.000 | Bridged acc: {share:.3f}")
    (folder / "train.log").write_text("\n".join(lines) + "\n")
    return str(folder)


def write_bench(folder, losses, strategy="softk", seed=17, **changes):
    """A run of the published bench; losses: by step."""
    folder.mkdir(parents=True)
    (folder / "hparams.json").write_text(json.dumps({"strategy": strategy, "seed": seed} | changes))
    for step, loss in losses.items():
        append_jsonl(
            folder / "train_log.jsonl",
            {"step": step, "val_loss": loss, "ppl": math.exp(loss), "tokens_per_s": 2e7},
        )
    return str(folder)


def sweep(root, **losses):
    """Three seeds a cell as the bench's launcher names them."""
    for strategy, of_seeds in losses.items():
        for seed, loss in zip((17, 18, 19), of_seeds, strict=True):
            write_bench(root / f"R{strategy}_E8_S{seed}", {100: 2.5, 200: loss}, strategy, seed)
    return str(root)


def test_two_files_of_answers_are_compared_question_by_question(tmp_path):
    first = write_answers(tmp_path / "a", "1110-00")
    second = write_answers(tmp_path / "b", "1101111", label="250")

    (row,) = compare([first, second]).questions

    (table,) = row.tables
    # right in both: 2; "5." is not "5", and none never counts
    assert (table.both, table.only_cell, table.only_baseline, table.neither) == (2, 4, 1, 0)
    # of 5 that differ, 4 or 5 on one side, or 0 or 1: 2 * (5 + 1) / 32
    assert (table.seed, table.p) == (None, pytest.approx(12 / 32))
    assert (row.difference.n, row.difference.value) == (7, pytest.approx(3 / 7))
    assert row.h == pytest.approx(2 * math.asin((6 / 7) ** 0.5) - 2 * math.asin((3 / 7) ** 0.5))


def test_what_the_frozen_models_answered_is_compared_too_and_nobody_wins_by_it(tmp_path):
    sides = [write_answers(tmp_path / name, right) for name, right in (("a", SEVEN), ("b", "1010000"))]

    rows = {row.metric: row for row in compare(sides, ["*_accuracy"]).questions}

    assert list(rows) == ["source_alone_accuracy", "target_alone_accuracy", ACCURACY]
    assert rows["source_alone_accuracy"].difference.value == 0 and not rows["source_alone_accuracy"].tables


def test_an_answer_that_is_none_is_not_right_where_gold_is_none_too(tmp_path):
    first, second = (write_answers(tmp_path / name, "11-0111") for name in ("a", "b"))
    for path in (tmp_path / "a", tmp_path / "b"):
        records = [record(index, right) for index, right in enumerate("11-0111")]
        records[2] |= {"gold_extracted": "[invalid]"}
        text = "".join(json.dumps(each | {"index": path.name}) + "\n" for each in records)
        (path / "eval_samples_step_final.jsonl").write_text(text)

    (table,) = compare([first, second]).questions[0].tables

    assert (table.both, table.neither) == (5, 2)


def test_compressed_answers_are_those_of_the_plain_file(tmp_path):
    baseline, plain = write_answers(tmp_path / "a", SEVEN), write_answers(tmp_path / "b", "1011111")
    packed = tmp_path / "c" / "eval_samples_step_final.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress((tmp_path / "b" / "eval_samples_step_final.jsonl").read_bytes()))

    tables = [compare([baseline, str(side)]).questions[0].tables for side in (plain, packed)]

    assert tables[0] == tables[1]


def test_one_run_each_is_void_by_seeds_and_never_won_however_far_apart(tmp_path):
    sides = [write_answers(tmp_path / name, right) for name, right in (("a", "0000000"), ("b", "1111111"))]

    (row,) = compare(sides).seeds

    assert row.verdict.outcome == "void"
    assert row.verdict.difference.void.endswith("one run tells nothing of the spread between runs")


def test_other_questions_are_refused_with_how_many_and_an_example(tmp_path):
    first, second = (write_answers(tmp_path / name, right) for name, right in (("a", SEVEN), ("b", "11100")))

    with pytest.raises(
        ConfigError, match=r"2 of 7 questions of .*kim 5\?' \(gold answer '8'\).*not averaged"
    ):
        compare([first, second])


def test_an_ablation_that_is_the_identical_file_of_another_is_called_that_and_decides_nothing(tmp_path):
    sides = []
    for name, rate in (("adapter_20251120_210533", "0.1"), ("adapter_20251120_224319", "0.2")):
        write_answers(tmp_path / name, SEVEN)
        sides.append(write_log(tmp_path / name, evals=[("final", 3 / 7)], lr=rate))

    found = compare(sides)

    assert found.questions[0].difference.void.startswith("identical files")
    assert not found.questions[0].tables
    assert any(text.startswith("identical files: adapter_20251120_224319") for text in found.unsure)


def test_a_seed_whose_log_is_a_copy_of_anothers_is_called_no_second_seed(tmp_path):
    root = sweep(tmp_path, softk=[1.5, 1.5, 1.6], top1=[1.7, 1.8, 1.9])

    found = compare([f"{root}:softk", f"{root}:top1"], ["val_loss"])

    (twin,) = [text for text in found.unsure if text.startswith("identical files")]
    assert "Rsoftk_E8_S17 and" in twin and twin.endswith("no two seeds")


def test_two_ablations_that_were_told_the_same_are_called_one_experiment(tmp_path):
    sides = []
    for name, right in (("ablB_20251116_234242", SEVEN), ("ablC_20251117_013909", "1110001")):
        write_answers(tmp_path / name / name[:4], right)
        share = right.count("1") / 7
        write_log(tmp_path / name / name[:4], evals=[("final", share)])
        sides.append(str(tmp_path / name))

    found = compare(sides)

    assert [text for text in found.unsure if text.startswith("identical config: ablC_20251117_013909/ablC")]
    assert found.questions[0].tables[0].seed == 1234


def test_a_run_without_final_answers_is_compared_by_its_last_and_says_so(tmp_path):
    for step, right in ((250, "1111110"), (1000, "1100000")):
        write_answers(tmp_path / "dead", right, label=str(step))
    baseline = write_answers(tmp_path / "other", SEVEN)

    found = compare([baseline, str(tmp_path / "dead")])

    assert found.cells[1].final.value == pytest.approx(2 / 7)
    assert f"{ACCURACY} of dead: no final evaluation; step 1000 is compared" in found.unsure


def test_a_suites_own_summary_of_a_run_that_died_is_no_second_run(tmp_path):
    suite = tmp_path / "swap_20251118_213543"
    write_answers(suite / "swap_all_fix", "1000000", label="500")
    (suite / "summary.log").write_text("Run directory: runs/swap\n")

    found = compare([write_answers(tmp_path / "a", SEVEN), str(suite)])

    assert found.cells[1].final.value == pytest.approx(1 / 7)


def test_a_log_that_denies_the_answers_beside_it_is_refused(tmp_path):
    write_answers(tmp_path / "a", SEVEN)
    write_log(tmp_path / "a", evals=[("final", 0.5)])

    with pytest.raises(DamageError, match=r"give bridged_accuracy 0\.4286, train\.log says 0\.500"):
        compare([str(tmp_path / "a"), write_answers(tmp_path / "b", SEVEN)])


def test_answers_beside_a_log_of_several_runs_are_compared_with_that_said(tmp_path):
    write_answers(tmp_path / "a", SEVEN)
    write_log(tmp_path / "a", evals=[("final", 0.5), ("final", 0.6)])

    found = compare([write_answers(tmp_path / "b", "1111111"), str(tmp_path / "a")])

    assert f"{ACCURACY} of a: its log's is void: the log holds several runs, which nothing tells apart" in (
        found.unsure
    )


def test_an_archive_made_by_import_is_a_side(tmp_path):
    for name, right in (("a_20251116_201212", SEVEN), ("b_20251117_201212", "1111100")):
        write_answers(tmp_path / "theirs" / name, right)
    archives = [str(adopt(folder, tmp_path / "ours")) for folder in sorted((tmp_path / "theirs").iterdir())]

    assert compare(archives).questions[0].difference.value == pytest.approx(2 / 7)


def test_our_run_is_compared_with_published_answers_to_the_same_questions(launch, metric, tmp_path):
    folder = launch.run("ours", 5, {ACCURACY: metric(6 / 7, n=7)})
    for index, right in enumerate("1111110"):
        asked = {key: record(index, right)[key] for key in ("index", "question", "gold_extracted")}
        append_jsonl(folder.eval_samples("final"), asked | {"bridged_match": right == "1"})
    theirs = write_answers(tmp_path / "theirs", SEVEN)

    by_run = compare([theirs, str(folder.path)])
    by_file = compare([theirs, str(folder.eval_samples("final"))])

    assert by_run.questions[0].difference.value == pytest.approx(3 / 7)
    assert by_run.questions[0].tables == by_file.questions[0].tables
    assert compare([f"{launch.path}:ours", theirs]).questions[0].difference.value == pytest.approx(-3 / 7)


def test_a_cell_of_several_seeds_has_no_partner_in_a_run_that_tells_none(launch, metric, tmp_path):
    for seed in (1, 2):
        launch.run("ours", seed, {ACCURACY: metric(0.5, n=7)})

    with pytest.raises(ConfigError, match=r"tells no seed, and .*ours has 2 runs.*name one run of each"):
        compare([f"{launch.path}:ours", write_answers(tmp_path / "theirs", SEVEN)])


def test_seeds_of_a_published_sweep_are_judged_in_pairs(tmp_path):
    root = sweep(tmp_path / "runs", softk=[1.50, 1.51, 1.52], top1=[1.60, 1.62, 1.61], hash=[1.4, 1.5, 1.7])

    found = compare([f"{root}:softk", f"{root}:Rtop1_E8"], ["val_loss"])

    (row,) = found.seeds
    # 0.10, 0.11 and 0.09 apart
    assert (row.verdict.by, row.verdict.outcome) == ("3 pairs", "lost")
    assert row.verdict.difference.value == pytest.approx(0.10)
    assert row.d_z == pytest.approx(10.0)
    assert found.cells[0].seeds == (17, 18, 19) and found.questions == []


def test_a_peak_of_a_published_run_is_of_trained_weights_and_says_how_many(tmp_path):
    losses = ({0: 0.1, 100: 1.2, 200: 1.5}, {100: 1.3, 200: 1.4})
    sides = [write_bench(tmp_path / name, of) for name, of in zip("ab", losses, strict=True)]

    rows = compare(sides, ["val_loss"]).cells

    assert [(row.final.value, row.peak.value, row.evaluations) for row in rows] == [
        (1.5, 1.2, 2),
        (1.4, 1.3, 2),
    ]


def test_seeds_that_only_names_tell_are_seeds(tmp_path):
    for name, right in (("old-s3", SEVEN), ("old-s12", "1100000"), ("new-s3", "1111000"), ("new-s12", SEVEN)):
        write_answers(tmp_path / name, right)

    found = compare([f"{tmp_path}:old", f"{tmp_path}:new"])

    assert [table.seed for table in found.questions[0].tables] == [3, 12]
    # as our cells of one difference in every seed
    assert found.seeds[0].verdict.difference.void.startswith("every pair of seeds differs by the same")


def test_sweeps_of_one_set_of_cells_are_paired_by_name(tmp_path):
    first = sweep(tmp_path / "a", softk=[1.5, 1.6, 1.7], top1=[1.6, 1.7, 1.8])
    second = sweep(tmp_path / "b", softk=[1.4, 1.51, 1.6], top1=[1.5, 1.6, 1.71])

    names = [(row.verdict.baseline, row.verdict.cell) for row in compare([first, second], ["ppl"]).seeds]

    assert names == [(f"{first}:{cell}", f"{second}:{cell}") for cell in ("softk", "top1")]


def test_a_cell_without_a_number_is_left_out_of_a_sweep_by_name_and_refused_alone(tmp_path):
    for root in "ab":
        write_bench(tmp_path / root / "top1", {200: 1.5 + (root == "b")}, "top1")
        write_bench(tmp_path / root / "hash", {200: float(root == "a")}, "hash")
    write_bench(tmp_path / "b" / "gone", {}, "gone")
    (tmp_path / "b" / "gone" / "train_log.jsonl").write_text("")
    write_bench(tmp_path / "a" / "gone", {200: 1.7}, "gone")

    found = compare([str(tmp_path / "a"), str(tmp_path / "b")])

    assert {row.verdict.cell.rpartition(":")[2] for row in found.seeds} == {"top1", "hash"}
    assert "val_loss: b/gone the log holds no record" in found.left_out
    with pytest.raises(ConfigError, match=r"nothing to compare: val_loss: b/gone .* no record"):
        compare([f"{tmp_path}/a:gone", f"{tmp_path}/b:gone"])


def test_a_seed_in_a_folders_name_groups_runs_whose_files_tell_it_and_no_others(tmp_path):
    for seed in (3, 4):
        write_bench(tmp_path / f"seed{seed}" / "softk", {200: 1.5 + seed / 100}, seed=seed)
        write_bench(tmp_path / f"seed{seed}" / "hash", {200: 1.6 + seed / 10}, "hash", seed)
        # s4 is a layer here, and the seed is another
        write_bench(tmp_path / f"layer_s{seed}", {200: 1.9}, "linear", seed=9)

    found = compare([f"{tmp_path}:softk", f"{tmp_path}:hash"], ["val_loss"])

    assert found.cells[0].seeds == (3, 4)
    assert compare([f"{tmp_path}:layer_s3", f"{tmp_path}:layer_s4"]).cells[0].seeds == (9,)


def test_a_table_is_compared_line_by_line_with_seeds_out_of_its_names(tmp_path):
    lines = ["run,router,final_val_loss,median_tokens_per_s"]
    lines += [f"softk-s{seed},softk,{1.5 + seed / 100},1e7" for seed in (1, 2)]
    lines += [f"top1-s{seed},top1,{1.6 + seed / 50},3e7" for seed in (1, 2)]
    (tmp_path / "unified_summary.csv").write_text("\n".join(lines) + "\n")

    found = compare([f"{tmp_path}:softk", f"{tmp_path}:top1"], ["val_loss", "*tokens_per_s"])

    # 0.11 and 0.12 more
    assert found.seeds[0].verdict.difference.value == pytest.approx(0.115)
    # what 200 times too many tokens a second are made of has no winner
    assert {row.verdict.metric for row in found.seeds} == {"val_loss"}
    (why,) = found.left_out
    assert why.startswith("median_tokens_per_s: ")
    assert "200 as published" in why


def test_a_seed_that_a_published_cell_lacks_is_refused_with_what_can_be_done(tmp_path):
    first = sweep(tmp_path / "a", softk=[1.5, 1.6, 1.7])
    for seed in (17, 18):
        write_bench(tmp_path / "b" / f"Rsoftk_E8_S{seed}", {200: 1.4}, seed=seed)

    with pytest.raises(ConfigError, match=r"1 seed without a partner: .*b lacks seed 19\. .*one run of each"):
        compare([first, str(tmp_path / "b")])


def test_one_run_of_each_is_compared_across_seeds_and_says_so(tmp_path):
    sides = [write_bench(tmp_path / name, {200: 1.5}, seed=seed) for name, seed in (("a", 17), ("b", 42))]

    found = compare(sides)

    assert "b and a are of the seeds 42 and 17: what a seed does is in the difference" in found.unsure
    assert {row.verdict.outcome for row in found.seeds} == {"void"}


def test_a_capped_perplexity_stays_void_and_the_loss_beside_it_is_compared(tmp_path):
    for name, loss in (("temp_1", 24.1), ("temp_2", 5.2)):
        (tmp_path / name).mkdir()
        final = {"val_loss": loss, "val_perplexity": math.exp(min(loss, 20))}
        (tmp_path / name / "metrics.json").write_text(json.dumps({"final_metrics": final}))
    sides = [str(tmp_path / name) for name in ("temp_1", "temp_2")]

    found = compare(sides)

    assert [row.metric for row in found.cells] == ["val_loss", "val_loss"]
    assert found.left_out == ["val_perplexity: temp_1 capped at exp(20): no perplexity"]
    with pytest.raises(ConfigError, match="capped at exp"):
        compare(sides, ["val_perplexity"])


def test_a_loss_that_holds_the_balance_loss_is_not_compared_with_one_without(tmp_path):
    """P: most of a published gap of 0.6 nats was balance loss."""
    for name, is_routed in (("baseline", False), ("dynamic", True), ("aggressive", True)):
        config = {"use_dynamic_routing": is_routed, "load_balance_alpha": 0.01}
        results = {"config_name": name, "config": config, "results": {"best_val_loss": 5.0 + is_routed}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "training_results.json").write_text(json.dumps(results))
    baseline, dynamic, aggressive = (str(tmp_path / name) for name in ("baseline", "dynamic", "aggressive"))

    with pytest.raises(ConfigError, match="best_val_loss: dynamic not measured"):
        compare([baseline, dynamic])
    found = compare([dynamic, aggressive], ["best_val_total_loss"])

    assert any("holds the balance loss: no language loss" in text for text in found.unsure)


def test_one_experiment_of_several_stamps_and_one_seed_is_several_cells(tmp_path):
    for stamp in ("20251120_210533", "20251120_224319"):
        write_log(tmp_path / f"adapter_{stamp}", evals=[("final", 0.46)])
    write_log(tmp_path / "other_20251121_000000", evals=[("final", 0.5)])

    with pytest.raises(ConfigError, match=r"no cell 'adapter'; .*adapter_20251120_210533"):
        compare([f"{tmp_path}:other", f"{tmp_path}:adapter"])
    found = compare([f"{tmp_path}:other", f"{tmp_path}:adapter_20251120_210533"])

    assert found.cells[1].final.value == pytest.approx(0.46)


def test_two_files_that_give_one_number_differently_are_both_named(tmp_path):
    suite = tmp_path / "ablations_20251108_091500"
    for name, final in (("1a", 0.36), ("2a", 0.3)):
        write_log(suite / name, evals=[("final", final)])
    told = {name: {"evals": [{"step": 1, "bridged": 0.1}], "final_bridged": 0.3} for name in ("1a", "2a")}
    (suite / "ablation_results.json").write_text(json.dumps(told))

    found = compare([f"{suite}:2a", f"{suite}:1a"])

    name = suite.name
    assert (
        f"{ACCURACY} of {name}/1a: ablation_results.json says 0.3; 1a/train.log is compared" in found.unsure
    )
    assert found.cells[1].final.value == pytest.approx(0.36)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"question": "q", "gold_extracted": "3"}\n{"question": "q", "gold_', r":2: cut off: the file ends"),
        ("[1]\n", r":1: not a JSON record"),
        ('{"question": "q"}\n', r":1: a record without gold_extracted: questions are matched"),
        ("", r"final\.jsonl: it holds no record"),
    ],
)
def test_damaged_answers_are_named_with_their_line_and_a_remedy(tmp_path, content, why, capsys):
    sound = write_answers(tmp_path / "a", SEVEN)
    bad = write_answers(tmp_path / "b", SEVEN)
    (tmp_path / "b" / "eval_samples_step_final.jsonl").write_text(content)

    for side in (bad, str(tmp_path / "b")):
        with pytest.raises(DamageError, match=why + r".*; copy it again"):
            compare([sound, side])
        with pytest.raises(SystemExit) as ended:
            main(["compare", sound, side])
        assert ended.value.code == 1


def test_a_record_without_the_answer_leaves_no_mean_and_is_named_by_line(tmp_path):
    path = write_answers(tmp_path / "a", SEVEN)
    records = [record(index, "1") for index in range(7)]
    del records[3]["bridged_extracted"]
    (tmp_path / "a" / "eval_samples_step_final.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")

    with pytest.raises(ConfigError, match=r"final\.jsonl:4: no bridged_accuracy .*lacks 'bridged_extracted'"):
        compare([write_answers(tmp_path / "b", SEVEN), path])


@pytest.mark.parametrize("value", [None, "yes", 0.5, 10**400, float("nan")])
def test_a_verdict_that_is_neither_right_nor_wrong_leaves_no_mean(tmp_path, value):
    sides = [write_answers(tmp_path / "a", SEVEN), write_answers(tmp_path / "b", SEVEN, bridged_match=value)]

    with pytest.raises(ConfigError, match=r"final\.jsonl:1: .*bridged_match is .*; true or false is needed"):
        compare(sides)


def test_a_damaged_log_is_refused_though_the_lines_before_it_could_be_compared(tmp_path):
    sides = [write_bench(tmp_path / name, {100: 2.5, 200: 1.5}) for name in ("a", "b")]
    with open(tmp_path / "b" / "train_log.jsonl", "a") as file:
        file.write('{"step": 300, "val_')

    with pytest.raises(DamageError, match=r"train_log\.jsonl:3: cut off.*What is left is not compared"):
        compare(sides)


@pytest.mark.parametrize(
    ("side", "why"),
    [
        ("a:b", "it has no cell 'b'; it has softk"),
        ("a", "is compared with itself"),
        ("a/hparams.json", "no file of answers, which are called eval_samples_step_LABEL.jsonl"),
        ("empty", "nor a published system's numbers; name a launch"),
    ],
)
def test_what_names_no_other_published_side_is_refused(tmp_path, side, why):
    write_bench(tmp_path / "a", {200: 1.5})
    (tmp_path / "empty").mkdir()

    with pytest.raises(ConfigError, match=why):
        compare([str(tmp_path / "a"), str(tmp_path / side)])


def test_a_comparison_of_published_runs_is_printed_with_its_doubts(tmp_path, capsys):
    sides = [write_bench(tmp_path / name, {100: 2.5, 200: 1.5}, top_k=k) for name, k in (("a", 1), ("b", 2))]

    text = " ".join(render(compare(sides)).split())

    assert "val_loss, ppl of b (and 1 more): no final evaluation; step 200 is compared" in text
    assert "published files do not say of which text; that it is one is not checked" in text
    with pytest.raises(SystemExit) as ended:
        main(["compare", *sides, "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["cells"][0]["seeds"] == [17]
