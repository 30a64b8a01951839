import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from eval_records import HEADER, record, write

from latentbridge.audit import eval_jsonl
from latentbridge.audit.eval_file import audit_file
from latentbridge.audit.eval_jsonl import find_eval_files, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "eval_samples_step_250.jsonl"


def test_null_empty_and_the_invalid_mark_are_invalid_and_never_match(file):
    gold = "[invalid]"
    unanswered = [
        record(0, "[invalid]", gold),
        record(1, "", ""),
        record(2, "x", gold, bridged_extracted=None, gold_extracted=None),
        record(3, "21", "21"),
    ]

    audit = audit_file(write(file, unanswered))

    assert (audit.total, audit.invalid, audit.gold_match) == (4, 3, 1)


def test_a_trailing_dot_is_no_match_and_is_named(file):
    audit = audit_file(write(file, [record(0), record(1, "7."), record(2, "15")]))

    assert (audit.total, audit.invalid, audit.gold_match) == (3, 0, 1)
    assert audit.problems == [
        "1 answer equal as a number, not as text, so not counted: index 1 ('7.' vs '7')"
    ]


@pytest.mark.parametrize("answer", ["7.0", "07", "7."])
def test_every_spelling_of_the_right_number_is_named(file, answer):
    assert "equal as a number" in audit_file(write(file, [record(0), record(1, answer)])).problems[0]


@pytest.mark.parametrize("answer", ["7.7.7", "...", "-7", "1.", "8"])
def test_a_wrong_answer_is_not_called_numerically_equal(file, answer):
    assert audit_file(write(file, [record(0), record(1, answer)])).problems == []


def test_accuracy_carries_the_wilson_interval(file):
    answers = [record(i) for i in range(3)] + [record(i, "5") for i in range(3, 10)]

    accuracy = audit_file(write(file, answers)).accuracy

    # Wilson by hand for 3 of 10 with z = 1.96: middle 0.3555, half 0.2478
    assert (accuracy.value, accuracy.n) == (0.3, 10)
    assert accuracy.low == pytest.approx(0.1078, abs=1e-4)
    assert accuracy.high == pytest.approx(0.6032, abs=1e-4)


def test_all_three_models_are_counted_each_over_the_records_that_have_it(file, capsys):
    records = [record(i, "5" if i else None) for i in range(3)] + [record(3)]
    records[0] |= {"source_extracted": "0"}
    del records[1]["target_extracted"]

    main([str(write(file, records))])
    text = capsys.readouterr().out
    main(["--json", str(file)])
    (found,) = json.loads(capsys.readouterr().out)

    assert "accuracy bridged 0.500 [0.150, 0.850], source 0.250 [0.046, 0.699], target 1.000 " in text
    assert " of 3 (95 % Wilson, n=4)" in text
    assert (found["accuracy"], found["source_accuracy"], found["target_accuracy"]) == (0.5, 0.25, 1.0)
    assert (found["source_n"], found["target_n"]) == (4, 3)


def test_a_model_that_no_record_tells_of_is_void_and_never_zero(file, capsys):
    without = [{k: v for k, v in record(i).items() if not k.startswith("source")} for i in range(2)]

    main(["--json", str(write(file, without))])

    (found,) = json.loads(capsys.readouterr().out)
    assert (found["source_n"], found["source_accuracy"], found["source_low"]) == (0, None, None)


def test_the_sample_is_the_first_valid_generation_in_three_lines_and_200_characters(file):
    wordy = record(1, bridged_full="one\n\ntwo\nthree\nfour\n#### 7")

    lines = list(audit_file(write(file, [record(0, "[invalid]"), wordy, record(2)])).lines())

    assert lines[2] == "    sample: one / two / three ..."
    assert audit_file(write(file, [record(0, "[invalid]")])).sample == "so it is"
    assert audit_file(write(file, [record(0, bridged_full="x" * 201)])).sample == "x" * 200 + " ..."


def test_a_truncated_last_line_and_a_broken_one_are_named_and_not_counted(file):
    whole = json.dumps(record(3))
    write(file, [record(0), record(1)], tail=f"{{broken\n\n{json.dumps(record(2))}\n[1]\n{whole[:-40]}")

    audit = audit_file(file)

    assert audit.total == 3
    assert audit.malformed == [3, 6, 7]
    assert audit.problems[:2] == [
        "2 lines not a JSON record: 3, 6; copy the file again from where it was written",
        "line 7 is cut off: the file ends inside it; copy the file again from where it was written",
    ]


def test_bytes_that_are_no_text_are_one_malformed_line(file):
    file.write_bytes(b"\xff\xfe\n" + json.dumps(record(0)).encode() + b"\n" + b"\0" * 50)

    audit = audit_file(file)

    assert (audit.total, audit.malformed) == (1, [1, 3])


def test_a_last_line_without_newline_counts_when_it_is_whole(file):
    file.write_text(json.dumps(record(0)))

    assert (audit_file(file).total, audit_file(file).problems) == (1, [])


def test_repeated_and_missing_indices_are_named(file):
    audit = audit_file(write(file, [record(i) for i in (0, 1, 1, 4, 9, 9, 9)]))

    assert audit.problems == ["2 indices more than once: 1, 9", "indices missing: 2-3, 5-8"]


def test_a_lost_beginning_is_missing_too(file):
    assert audit_file(write(file, [record(2), record(3)])).problems == ["indices missing: 0-1"]


def test_a_huge_index_is_one_gap_and_costs_nothing(file):
    assert audit_file(write(file, [record(0), record(10**15)])).problems == [
        f"indices missing: 1-{10**15 - 1}"
    ]


def test_a_collapsed_model_is_named(file):
    answers = [record(i, "1000" if i < 5 else str(i)) for i in range(12)]

    problems = audit_file(write(file, answers)).problems

    assert problems == ["5 of 12 answers are '1000' (gold: 0 of 12): a collapsed model"]


def test_an_answer_as_common_as_in_the_gold_is_no_collapse(file):
    answers = [record(i, "2", "2") if i < 6 else record(i) for i in range(12)]

    assert audit_file(write(file, answers)).problems == []


def test_a_constant_gold_answer_is_named(file):
    problems = audit_file(write(file, [record(i, str(i), "12") for i in range(10)])).problems

    assert problems[0].startswith("the gold answer is '12' in every record")


def test_an_echoed_prompt_is_named(file):
    echo = record(1, "[invalid]", bridged_full=f"{HEADER} And then")

    assert "1 answer echoing the prompt: line 2" in audit_file(write(file, [record(0), echo])).problems


def test_a_stored_answer_that_its_text_does_not_hold_is_named(file):
    swapped = record(1, bridged_full="#### 8 and #### 7")
    marked_invalid = record(2, "[invalid]", bridged_full="#### 1,414")
    with_comma = record(3, "1414", "1414", bridged_full="#### 1,414")
    only_a_comma = record(4, "[invalid]", bridged_full="#### ,")

    audit = audit_file(write(file, [record(0), swapped, marked_invalid, with_comma, only_a_comma]))

    assert audit.problems == ["2 stored answers unlike the first '#### number' of bridged_full: line 2-3"]


def test_lacking_keys_are_named(file):
    lacking = {key: value for key, value in record(1).items() if key != "gold_extracted"}

    audit = audit_file(write(file, [record(0), lacking]))

    assert (audit.total, audit.invalid, audit.gold_match) == (2, 0, 1)
    assert audit.problems == ["1 record without the key 'gold_extracted'"]


def test_files_come_in_the_order_of_training_and_final_last(tmp_path):
    for label in ("1000", "final", "250", "0", "best"):
        write(tmp_path / f"eval_samples_step_{label}.jsonl", [record(0)])

    labels = [path.stem.rsplit("_", 1)[1] for path in find_eval_files(tmp_path)]

    assert labels == ["0", "250", "1000", "best", "final"]


def test_an_archive_of_nested_and_flat_runs_with_quotes_in_their_names(tmp_path, capsys):
    write(tmp_path / 'phase1_"20251116"' / "phase1_all_fix" / "eval_samples_step_0.jsonl", [record(0)])
    write(tmp_path / "layer_s0_t0" / "eval_samples_step_final.jsonl", [record(0, "[invalid]")])
    write(tmp_path / "layer_s0_t0" / "eval_samples_step_final.jsonl.bak", [record(0)])
    (tmp_path / "layer_s0_t0" / "train.log").write_text("Step 20/2000")

    code = main([str(tmp_path)])

    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    flat, nested = "layer_s0_t0/eval_samples_step_final.jsonl", 'phase1_"20251116"/phase1_all_fix'
    assert code == 0
    assert lines == [
        f"{tmp_path}/{flat} -> total=1 invalid=1 gold_match=0",
        f"{tmp_path}/{nested}/eval_samples_step_0.jsonl -> total=1 invalid=0 gold_match=1",
    ]


def test_a_run_without_a_final_evaluation_is_named_and_a_single_file_is_not(tmp_path, capsys):
    for step in (0, 250):
        write(tmp_path / "killed" / f"eval_samples_step_{step}.jsonl", [record(0), record(1, str(step))])
    write(tmp_path / "whole" / "eval_samples_step_final.jsonl", [record(0)])
    missing = "a final evaluation is missing"

    main(["--json", str(tmp_path)])
    found = {item["path"]: item["problems"] for item in json.loads(capsys.readouterr().out)}
    main([str(tmp_path / "killed" / "eval_samples_step_0.jsonl")])

    assert [path for path, problems in found.items() if any(missing in text for text in problems)] == [
        str(tmp_path / "killed" / "eval_samples_step_250.jsonl")
    ]
    assert missing not in capsys.readouterr().out


def test_an_archive_ends_with_its_totals(tmp_path, capsys):
    write(tmp_path / "a" / "eval_samples_step_final.jsonl", [record(0), record(1, "[invalid]")], "{")
    write(tmp_path / "b" / "eval_samples_step_final.jsonl", [record(i) for i in range(3)])
    (tmp_path / "c").mkdir()
    copied = (tmp_path / "b" / "eval_samples_step_final.jsonl").read_bytes()
    (tmp_path / "c" / "eval_samples_step_final.jsonl").write_bytes(copied)

    main([str(tmp_path)])

    assert capsys.readouterr().out.splitlines()[-3:] == [
        "    all 3 files: total=8 invalid=1 gold_match=7",
        "    n differs: 2 of 3 records, 1 of 2 records",
        "    2 findings: 1 malformed line in 1 file, 1 copy of another file",
    ]


def test_strict_makes_every_finding_exit_code_1(tmp_path, file, capsys):
    write(file, [record(0), record(2)])
    sound = write(tmp_path / "run" / "eval_samples_step_final.jsonl", [record(0)])
    copy = tmp_path / "other" / sound.name
    copy.parent.mkdir()
    copy.write_bytes(sound.read_bytes())

    codes = {
        name: main([*options, *map(str, paths)])
        for name, options, paths in (
            ("sound", ["--strict"], [sound]),
            ("a gap", ["--strict"], [file]),
            ("a copy", ["--strict"], [sound, copy]),
            ("lenient", [], [file, sound, copy]),
        )
    }

    assert codes == {"sound": 0, "a gap": 1, "a copy": 1, "lenient": 0}


def test_csv_is_one_row_per_file_and_void_is_an_empty_cell(tmp_path, capsys):
    write(tmp_path / "eval_samples_step_250.jsonl", [record(i) for i in (0, 2)], "{\n[")
    write(tmp_path / "eval_samples_step_final.jsonl", [])

    code = main(["--csv", str(tmp_path)])

    first, last = csv.DictReader(capsys.readouterr().out.splitlines())
    assert code == 1
    assert (first["label"], first["total"], first["accuracy"], first["malformed"]) == ("250", "2", "1.0", "2")
    assert "indices missing: 1" in first["problems"]
    assert (last["label"], last["total"], last["accuracy"], last["low"]) == ("final", "0", "", "")


def test_several_processes_print_what_one_does(tmp_path, capsys, monkeypatch):
    for run, step in (("a", "0"), ("a", "final"), ("b", "250"), ("b", "final"), ("c", "final")):
        records = [record(i, str(len(run + step))) for i in range(3 if run == "a" else 5)]
        write(tmp_path / run / f"eval_samples_step_{step}.jsonl", records, "{" if step == "250" else "")
    alone = (main([str(tmp_path)]), capsys.readouterr().out)

    monkeypatch.setattr(eval_jsonl, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(eval_jsonl.os, "cpu_count", lambda: 3)

    assert (main([str(tmp_path)]), capsys.readouterr().out) == alone
    assert alone[0] == 1


def test_a_shorter_file_than_its_neighbours_is_named(tmp_path, capsys):
    write(tmp_path / "eval_samples_step_250.jsonl", [record(i) for i in range(5)])
    write(tmp_path / "eval_samples_step_final.jsonl", [record(i) for i in range(3)])

    main([str(tmp_path)])

    assert "! 2 records fewer than eval_samples_step_250.jsonl beside it" in capsys.readouterr().out


def test_a_file_with_the_bytes_of_an_earlier_one_names_it_across_runs_and_paths(tmp_path, capsys):
    names = [f"{run}/eval_samples_step_0.jsonl" for run in "abc"]
    first, other, third = (tmp_path / name for name in names)
    for path, answer in ((first, "5"), (other, "6"), (third, "5")):
        write(path, [record(0), record(1, answer)])
    paths = [str(first.parent), str(other.parent), str(third)]

    main(paths)
    text = capsys.readouterr().out.splitlines()
    main(["--json", *paths])
    found = [item["identical_to"] for item in json.loads(capsys.readouterr().out)]

    assert found == [None, None, str(first)]
    note = f"    ! byte for byte the same as {first}: not an independent sample"
    assert [line for line in text if "byte for byte" in line] == [note]
    assert text.index(note) > text.index(f"{third} -> total=2 invalid=0 gold_match=1")


def test_a_file_given_twice_and_files_without_records_are_no_copies(tmp_path, capsys):
    file = write(tmp_path / "run" / "eval_samples_step_0.jsonl", [record(0)])
    empty = [write(tmp_path / "empty" / f"eval_samples_step_{step}.jsonl", []) for step in (0, 250)]

    main(["--json", str(file), str(tmp_path / "run"), *map(str, empty)])

    assert [item["identical_to"] for item in json.loads(capsys.readouterr().out)] == [None] * 4


def test_one_byte_more_is_another_file(tmp_path, capsys):
    for step, tail in ((0, ""), (250, "\n")):
        write(tmp_path / f"eval_samples_step_{step}.jsonl", [record(0)], tail)

    main([str(tmp_path)])

    assert "byte for byte" not in capsys.readouterr().out


def test_json_holds_the_same_counts(file, capsys):
    write(file, [record(0), record(1, "[invalid]"), record(2, "5")], tail="{")

    code = main(["--json", str(file)])

    (found,) = json.loads(capsys.readouterr().out)
    assert code == 1
    assert found["path"] == str(file)
    assert (found["total"], found["invalid"], found["gold_match"]) == (3, 1, 1)
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["malformed"] == [4]


def test_an_empty_file_has_a_void_accuracy_and_exit_code_1(file, capsys):
    file.write_text("\n  \n")

    code = main(["--json", str(file)])

    (found,) = json.loads(capsys.readouterr().out)
    assert (code, found["total"], found["accuracy"]) == (1, 0, None)
    assert found["problems"] == ["no record in this file"]


def test_a_folder_without_evaluations_is_exit_code_1(tmp_path, file, capsys):
    write(file, [record(0)])
    (tmp_path / "empty").mkdir()

    code = main([str(file), str(tmp_path / "empty")])

    assert code == 1
    assert f"{tmp_path}/empty: no evaluation record here" in capsys.readouterr().err


def test_a_missing_path_is_named_and_exit_code_2(tmp_path, file, capsys):
    write(file, [record(0)])

    with pytest.raises(SystemExit) as stop:
        main([str(file), str(tmp_path / "nowhere")])

    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert f"{tmp_path}/nowhere: no such file or folder" in printed.err
    assert printed.out == ""


def run_script(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "summarize_eval_jsonl.py"), *arguments]
    return subprocess.run(command, capture_output=True, cwd="/", timeout=60, check=False, **options)


def test_the_script_runs_from_anywhere_and_imports_nothing_heavy(tmp_path, file):
    write(file, [record(0)])
    probe = "import sys, latentbridge.audit.eval_jsonl; print([m for m in {} if m in sys.modules])"
    heavy = ["torch", "pandas", "scipy", "numpy", "pydantic", "rich"]

    imported = subprocess.run([sys.executable, "-c", probe.format(heavy)], capture_output=True, check=True)

    assert run_script(str(file)).stdout.startswith(f"{file} -> total=1 invalid=0 gold_match=1\n".encode())
    assert imported.stdout == b"[]\n"


def test_a_folder_name_that_is_no_text_is_still_audited(tmp_path):
    folder = bytes(tmp_path) + b"/run\xff"
    write(Path(folder.decode(errors="surrogateescape")) / "eval_samples_step_0.jsonl", [record(0)])

    done = run_script(str(tmp_path))

    assert (done.returncode, done.stderr) == (0, b"")
    assert b"run\\udcff/eval_samples_step_0.jsonl -> total=1" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    for step in range(300):
        write(tmp_path / f"eval_samples_step_{step}.jsonl", [record(i) for i in (0, 2)])
    script = ROOT / "scripts" / "summarize_eval_jsonl.py"

    shell = f"set -o pipefail; {sys.executable} {script} {tmp_path} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)

    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_a_folder_that_may_not_be_listed_is_a_finding_and_costs_no_other(tmp_path, capsys, monkeypatch):
    closed = tmp_path / "closed"
    write(tmp_path / "a" / "eval_samples_step_final.jsonl", [record(0)])
    closed.mkdir()
    scandir = os.scandir

    def guarded(path):
        if os.fspath(path) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)

    code = main([str(tmp_path)])

    printed = capsys.readouterr().out
    assert code == 1
    assert "total=1 invalid=0 gold_match=1" in printed
    assert f"{closed} -> unread" in printed
