import gzip
import json
import re

import pytest

from latentbridge.audit.comparison.report import compare
from latentbridge.audit.comparison.text import render
from latentbridge.errors import ConfigError, DamageError
from latentbridge.launch.cli import main
from latentbridge.metric import void
from latentbridge.rundir import RunDir, append_jsonl, read_jsonl, write_json

ACCURACY = "bridged_accuracy"
STOP = {"early_stop": {"metric": "bridged_nll"}}
# right answers of 8 questions by cell and seed
RIGHT = {
    ("old", 1): "11100000",
    ("old", 2): "11000000",
    ("old", 3): "10000000",
    ("new", 1): "11111100",
    ("new", 2): "11111000",
    ("new", 3): "11110001",
}


def answer(folder, right, asked="question {}"):
    for index, is_right in enumerate(right):
        asks = {"index": index, "question": asked.format(index), "gold_extracted": str(index)}
        append_jsonl(
            folder.eval_samples("final"), asks | {"bridged_match": is_right == "1", "bridged_nll": 0.5}
        )


@pytest.fixture
def cells(launch, metric):
    """Two cells of three seeds that answered 8 questions, evaluated twice in training."""
    launch.compare.append({"baseline": "old", "against": ["new"], "metric": ACCURACY})
    for (cell, seed), right in RIGHT.items():
        share = right.count("1") / 8
        folder = launch.run(
            cell, seed, {ACCURACY: metric(share, n=8), "bridged_nll": metric(0.5, n=8)}, config=STOP
        )
        final = next(read_jsonl(folder.metrics_log))
        folder.metrics_log.unlink()
        for step, nll in ((10, 0.4 + seed / 100), (20, 0.7)):
            records = {"bridged_nll": metric(nll, n=8).as_record()}
            append_jsonl(folder.metrics_log, {"step": step, "label": str(step), "metrics": records})
        append_jsonl(folder.metrics_log, final)
        answer(folder, right)
    return launch


def sides(launch, *cells):
    return [f"{launch.path}:{cell}" for cell in cells or ("old", "new")]


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main(["compare", *words])
    return ended.value.code


def test_the_first_side_is_the_baseline_and_its_launch_says_the_metric(cells):
    (row,) = compare(sides(cells)).seeds

    # differences of 3, 3 and 4 in 8: mean 10 / 24, spread sqrt(1 / 3) / 8
    assert (row.verdict.by, row.verdict.outcome, row.verdict.metric) == ("3 pairs", "won", ACCURACY)
    assert row.verdict.difference.value == pytest.approx(10 / 24)
    assert row.d_z == pytest.approx((10 / 3) / (1 / 3) ** 0.5)
    # 6 5 5 and 3 2 1 in eighths: variances 1 / 3 and 1
    assert row.d == pytest.approx((10 / 3) / (2 / 3) ** 0.5)
    assert row.needed == 3


def test_a_question_counts_once_for_every_pair_of_models(cells):
    (row,) = compare(sides(cells)).questions

    tables = [(t.seed, t.both, t.only_cell, t.only_baseline, t.neither) for t in row.tables]
    assert tables == [(1, 3, 3, 0, 2), (2, 2, 3, 0, 3), (3, 1, 4, 0, 3)]
    # alone 2 / 8, 2 / 8 and 2 / 16; by Holm three times the smallest, twice the next
    assert [t.p for t in row.tables] == pytest.approx([0.5, 0.5, 0.375])
    assert {t.outcome for t in row.tables} == {"tied"}
    assert row.difference.value == pytest.approx(10 / 24)
    assert row.difference.n == 8


def test_questions_are_matched_by_what_they_ask_whatever_their_order(cells):
    before = compare(sides(cells)).questions
    for seed in (1, 2, 3):
        path = RunDir(cells.path / f"new-s{seed}").eval_samples("final")
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))

    after = compare(sides(cells)).questions

    assert [row.tables for row in after] == [row.tables for row in before]


def test_another_set_of_questions_is_refused_with_what_differs(cells):
    folder = RunDir(cells.path / "new-s2")
    folder.eval_samples("final").unlink()
    answer(folder, "11111000", asked="riddle {}")

    with pytest.raises(ConfigError, match=r"8 of 8 questions of .*new-s2 are not among .*'riddle 0'"):
        compare(sides(cells))


def test_a_file_that_lost_its_last_question_is_refused(cells):
    path = RunDir(cells.path / "old-s3").eval_samples("final")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))

    with pytest.raises(ConfigError, match=r"1 of 8 questions of .*'question 7'"):
        compare(sides(cells))


def test_records_that_deny_the_metric_are_refused(cells):
    folder = RunDir(cells.path / "new-s2")
    folder.eval_samples("final").unlink()
    answer(folder, "11111100")

    with pytest.raises(DamageError, match=r"bridged_accuracy 0\.75, metrics\.jsonl says 0\.625"):
        compare(sides(cells))


def test_an_archive_without_all_answers_has_its_verdict_by_seeds_alone(cells):
    RunDir(cells.path / "old-s3").eval_samples("final").unlink()

    found = compare(sides(cells))

    assert found.seeds[0].verdict.outcome == "won"
    assert found.questions[0].difference.void == f"no eval_samples_step_*.jsonl in {cells.path.name}/old-s3"


def test_an_archive_of_compressed_answers_has_its_question_tables(cells):
    plain = compare(sides(cells))
    for path in [RunDir(cells.path / f"{cell}-s{seed}").eval_samples("final") for cell, seed in RIGHT]:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()

    assert compare(sides(cells)) == plain
    assert len(plain.questions[0].tables) == 3


def test_a_seed_that_one_side_lacks_is_refused_by_name(cells, metric, capsys):
    cells.run("new", 7, {ACCURACY: metric(0.5, n=8)})

    assert run(*sides(cells)) == 2
    told = capsys.readouterr().err
    assert f"{cells.path}:old lacks seed 7" in told
    assert "add the seed to `seeds`" in told


def test_a_run_without_an_end_is_refused_and_not_left_out(cells, metric):
    for cell, state in (("old", "DONE"), ("new", "FAILED")):
        cells.run(cell, 7, {ACCURACY: metric(0.5, n=8)}, state=state, cause="oom")

    with pytest.raises(ConfigError, match=r"new-s7: FAILED \(oom\)\. What is left is not averaged"):
        compare(sides(cells))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"value": 0.5, "n": 4}, "new-s3 measured it on 4 samples"),
        (void("no samples").as_record(), "new-s3 no samples"),
        (None, "new-s3 not measured"),
    ],
)
def test_a_metric_of_mixed_coverage_is_refused_by_name_and_left_out_of_a_pattern(cells, record, why):
    folder = RunDir(cells.path / "new-s3")
    *_, final = read_jsonl(folder.metrics_log)
    del final["metrics"]["bridged_nll"]
    final["metrics"] |= {"bridged_nll": record} if record else {}
    append_jsonl(folder.metrics_log, final)

    with pytest.raises(ConfigError, match=why):
        compare(sides(cells), ["bridged_nll"])
    found = compare(sides(cells), ["bridged_*"])

    assert [row.verdict.metric for row in found.seeds] == [ACCURACY]
    assert why in found.left_out[0]


def test_a_peak_is_of_its_own_metric_and_comes_with_how_many_it_is_the_best_of(cells):
    found = compare(sides(cells), ["bridged_nll", ACCURACY])

    nll, accuracy = found.cells[:2]
    assert (nll.cell, nll.metric, nll.evaluations) == (f"{cells.path}:old", "bridged_nll", 2)
    assert nll.peak.value == pytest.approx(0.42)  # the lowest of two, of seeds 1, 2 and 3
    assert nll.final.value == pytest.approx(0.5)
    assert accuracy.peak.void == "not evaluated in training"
    text = " ".join(render(found).split())
    assert "biased towards the better, the more so the larger k" in text
    assert "bridged_nll chose the weights that were evaluated last" in text


def test_peaks_of_more_evaluations_do_not_compare_with_those_of_fewer(cells, metric):
    for seed in (1, 2, 3):
        folder = RunDir(cells.path / f"new-s{seed}")
        *_, final = read_jsonl(folder.metrics_log)
        again = {"bridged_nll": metric(0.9, n=8).as_record()}
        append_jsonl(folder.metrics_log, {"step": 30, "label": "30", "metrics": again})
        append_jsonl(folder.metrics_log, final)

    text = " ".join(render(compare(sides(cells), ["bridged_nll"])).split())

    assert "peaks of bridged_nll are of 2, 3 evaluations, so they do not compare" in text


def test_two_runs_have_no_verdict_by_seeds_but_one_by_questions(cells):
    found = compare([str(cells.path / "old-s1"), f"{cells.path}/new-s1/"])

    assert found.seeds[0].verdict.outcome == "void"
    assert found.seeds[0].verdict.difference.void.endswith("one run tells nothing of the spread between runs")
    assert [table.only_cell for table in found.questions[0].tables] == [3]


def test_launches_are_compared_cell_by_cell_also_where_their_folders_have_one_name(cells, tmp_path):
    import shutil

    copy = tmp_path / "elsewhere" / cells.path.name
    shutil.copytree(cells.path, copy)

    found = compare([str(cells.path), str(copy)])

    names = [(row.verdict.cell, row.verdict.baseline) for row in found.seeds]
    assert names == [(f"{copy}:{cell}", f"{cells.path}:{cell}") for cell in ("old", "new")]
    assert {row.verdict.outcome for row in found.seeds} == {"void"}


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (":olf", "no cell 'olf'; did you mean 'old'"),
        (":old", "is compared with itself"),
        ("", "do not have the same cells: only one of them has new"),
        ("/nowhere", "no such launch, run, folder or file"),
    ],
)
def test_what_is_no_other_side_is_refused(cells, second, why):
    with pytest.raises(ConfigError, match=why):
        compare([f"{cells.path}:old", f"{cells.path}{second}"])


def test_a_damaged_plan_is_named(cells):
    (cells.path / "plan.json").write_text('["runs"]')
    for text in (str(cells.path), f"{cells.path}:old", str(cells.path / "old-s1")):
        with pytest.raises(DamageError, match=r"plan\.json: a JSON object is needed, not a list"):
            compare([text, text])


def test_a_baseline_has_a_row_for_every_metric_that_any_side_is_compared_by(cells, metric):
    for seed in (1, 2, 3):
        cells.run("odd", seed, {ACCURACY: metric(seed / 4, n=4), "bridged_nll": metric(0.5 + seed, n=8)})
    # of other questions' accuracy, so it is left out of that pair alone
    found = compare(sides(cells, "old", "new", "odd"), ["bridged_*"])

    rows = [(row.cell.rpartition(":")[2], row.metric) for row in found.cells]
    assert rows == [
        ("old", ACCURACY),
        ("old", "bridged_nll"),
        ("new", ACCURACY),
        ("new", "bridged_nll"),
        ("odd", "bridged_nll"),
    ]


def test_a_side_given_twice_is_refused_also_by_another_way_to_it(cells, tmp_path):
    (tmp_path / "link").symlink_to(cells.path)

    with pytest.raises(ConfigError, match=r"link:new was given before, as .*:new.*name every side once"):
        compare([*sides(cells), f"{tmp_path}/link:new"])


def test_a_metric_without_a_better_side_is_shown_as_a_difference_and_changes_no_other_verdict(cells, metric):
    shown = "no_source_accuracy"
    for cell, seed in RIGHT:
        folder = RunDir(cells.path / f"{cell}-s{seed}")
        *_, final = read_jsonl(folder.metrics_log)
        final["metrics"][shown] = metric((cell == "new") * (seed + 1) / 8, n=8).as_record()
        append_jsonl(folder.metrics_log, final)
        path = folder.eval_samples("final")
        records = list(read_jsonl(path))
        path.unlink()
        for index, record in enumerate(records):
            append_jsonl(path, record | {"no_source_match": cell == "new" and index <= seed})
    alone = compare(sides(cells))

    found = compare(sides(cells), [ACCURACY, shown])

    assert found.seeds[0] == alone.seeds[0] and found.questions[0] == alone.questions[0]
    row, asked = found.seeds[1], found.questions[1]
    assert (row.verdict.outcome, row.verdict.p) == ("-", None)
    assert row.verdict.difference.value == asked.difference.value == pytest.approx(3 / 8)
    assert row.d_z == pytest.approx(3.0) and asked.tables == ()
    text = " ".join(render(found).split())
    assert "new - old no_source_accuracy - " in text
    assert '- "-": neither less nor more' in text


def test_a_metric_that_nobody_measured_is_refused_with_those_there_are(cells):
    with pytest.raises(ConfigError, match=r"'accuracy'; there are bridged_accuracy, bridged_nll"):
        compare(sides(cells), ["accuracy"])


def write_texts(launch, **texts):
    """A mixture of one seed for every text.json."""
    for cell, text in texts.items():
        folder = launch.mixture(cell, 1)
        if text:
            write_json(folder.path / "text.json", text)
    return sides(launch, *texts)


def text_of(size=300, sha256=None, **more):
    splits = {"validation": {"bytes": 40}, "test": {"bytes": size}}
    for split in splits.values():
        split.update({"sha256": sha256} if sha256 else {})
    return {"splits": splits, **more}


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ({}, {"size": 301}, "the test text of .*b-s1 has 300 bytes, that of .*a-s1 301"),
        (
            {"sha256": ["12ab"]},
            {"sha256": ["34cd"]},
            "validation text .* sha256 12ab, that of .*a-s1 from 34cd",
        ),
        # halves change with the order
        ({"sha256": ["1", "2"]}, {"sha256": ["2", "1"]}, "sha256 1 2, that of .*a-s1 from 2 1"),
    ],
)
def test_models_of_other_texts_are_refused(launch, a, b, why):
    texts = write_texts(launch, a=text_of(**b), b=text_of(**a))

    with pytest.raises(ConfigError, match=why):
        compare(texts, ["test_nll"])


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        (text_of(sha256=["1"]), text_of(sha256=["1"], vocab_size=7), ""),
        (text_of() | {"sha256": {"x": "1"}}, text_of() | {"sha256": {"x": "1"}}, ""),
        (text_of() | {"sha256": {"x": "1"}}, text_of(sha256=["1"]), "are of one size, which is all"),
        (text_of(), None, "only one of .* says what text it was read"),
        (None, None, ""),
    ],
)
def test_texts_that_nothing_but_their_size_tells_apart_are_compared_and_named(launch, a, b, told):
    found = compare(write_texts(launch, a=a, b=b), ["test_nll"])

    assert len(found.unsure) == bool(told)
    assert re.search(told, " ".join(render(found).split()))


def test_the_command_prints_tables_or_json_and_ends_with_0(cells, capsys):
    assert run(*sides(cells)) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 150
    assert text.startswith(f"{cells.path}: the folder of every cell below\n")
    assert "new   won  old       bridged_accuracy" in text

    assert run(*sides(cells), "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["over_seeds"][0]["seeds_for_80_percent"] == 3
    # as summary.json has a verdict: nobody was chosen
    assert "chosen" not in record["over_seeds"][0]
    assert record["over_questions"][0]["tables"][2]["only_cell"] == 4
    assert record["cells"][0]["final"]["n"] == 3
