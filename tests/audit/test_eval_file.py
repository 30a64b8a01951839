"""One file of answers, counted as it streams by: compressed, damaged, or long."""

import gzip
import tracemalloc
from pathlib import Path

import pytest
from eval_records import record, write

from latentbridge.audit.eval_file import audit_file
from latentbridge.audit.eval_jsonl import find_eval_files, main


@pytest.fixture
def file(tmp_path):
    return tmp_path / "eval_samples_step_250.jsonl"


def test_memory_does_not_grow_with_the_length_of_texts(file):
    # 25 MB in 200 records: the seed's largest archive files hold 2.3 MB
    long = "word – " * 8000
    write(file, [record(i, source_full=long, target_full=long) for i in range(200)])
    tracemalloc.start()
    audit = audit_file(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert audit.gold_match == 200
    assert peak < 3 * 2**20


def packed(file: Path) -> Path:
    """The file compressed, in place of the plain one."""
    target = file.with_name(file.name + ".gz")
    target.write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    return target


def test_a_compressed_file_is_counted_like_the_plain_one(tmp_path, capsys):
    records = [record(0), record(1, "[invalid]"), record(2, "9")]
    write(tmp_path / "a" / "eval_samples_step_250.jsonl", records[:2])
    plain = audit_file(write(tmp_path / "a" / "eval_samples_step_final.jsonl", records))
    for file in find_eval_files(tmp_path):
        packed(file)

    code = main([str(tmp_path)])

    first, last = find_eval_files(tmp_path)
    assert (first.name, last.name) == ("eval_samples_step_250.jsonl.gz", "eval_samples_step_final.jsonl.gz")
    audit = audit_file(last)
    assert (audit.total, audit.invalid, audit.gold_match, audit.label) == (3, 1, 1, "final")
    assert audit.digest == plain.digest
    assert code == 0
    assert f"{last} -> total=3 invalid=1 gold_match=1" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip"])
def test_damage_of_a_compressed_file_is_a_malformed_line(file, capsys, damage):
    path = packed(write(file, [record(i, source_full=f"{i:b}" * i) for i in range(40)]))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[len(content) // 2] ^= 255
    else:
        content[:2] = b"{}"
    path.write_bytes(content)

    code = main([str(path)])

    assert code == 1
    assert "is cut off: gzip cannot read on" in capsys.readouterr().out


def test_memory_does_not_grow_with_what_is_compressed(file):
    long = "word – " * 8000
    path = packed(write(file, [record(i, source_full=long, target_full=long) for i in range(100)]))
    tracemalloc.start()
    audit = audit_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert audit.gold_match == 100
    assert peak < 3 * 2**20


def test_a_link_to_nothing_costs_its_own_file_and_no_other(tmp_path, capsys):
    write(tmp_path / "eval_samples_step_250.jsonl", [record(0), record(1, "9")])
    lost = tmp_path / "eval_samples_step_final.jsonl"
    lost.symlink_to(tmp_path / "gone")

    code = main([str(tmp_path)])

    printed = capsys.readouterr().out
    assert "step_250.jsonl -> total=2 invalid=0 gold_match=1\n" in printed
    assert f"{lost} -> unread\n    ! cannot be read (No such file or directory); mend the link" in printed
    assert "n differs" not in printed and "fewer" not in printed
    assert code == 1


@pytest.mark.parametrize("stored", [7, 7.0])
def test_an_answer_stored_as_a_number_is_compared_as_text(file, stored):
    answer = {"gold_extracted": "7", "bridged_full": "#### 7", "bridged_extracted": stored}

    audit = audit_file(write(file, [record(0), record(1) | answer]))

    assert (audit.total, audit.invalid, audit.gold_match) == (2, 0, 2)
    assert audit.problems == ["1 record with answers stored as numbers, compared as text: line 2"]


def test_an_answer_of_nan_is_none(file):
    audit = audit_file(write(file, [record(0), record(1) | {"bridged_extracted": float("nan")}]))

    assert (audit.total, audit.invalid, audit.gold_match) == (2, 1, 1)


def test_a_record_without_a_gold_answer_is_named(file):
    audit = audit_file(write(file, [record(0), record(1) | {"gold_extracted": None}, record(2)]))

    assert audit.problems == ["1 record without a gold answer, never right: line 2"]
    assert audit.accuracy.value == pytest.approx(2 / 3)


def test_accuracies_of_a_file_without_any_gold_answer_are_void_and_never_zero(file):
    audit = audit_file(write(file, [record(i) | {"gold_extracted": "[invalid]"} for i in range(3)]))

    found = audit.as_record()
    assert audit.accuracy.void == "no record holds a gold answer"
    assert (found["total"], found["gold_match"]) == (3, 0)
    assert found["accuracy"] is None and found["source_accuracy"] is None


def test_records_of_another_evaluation_than_the_name_says_are_named(file):
    steps = ("250", 250, "500", "500")

    audit = audit_file(write(file, [record(i) | {"eval_step": step} for i, step in enumerate(steps)]))

    assert audit.problems == ["2 records of evaluation '500', in a file of '250'"]


def test_answers_behind_a_link_to_a_folder_are_audited(tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").mkdir()
    write(tmp_path / "disk" / "eval_samples_step_final.jsonl", [record(0), record(1, "9")])
    (tmp_path / "runs" / "a").symlink_to("../disk")

    assert main([str(tmp_path / "runs")]) == 0

    assert "runs/a/eval_samples_step_final.jsonl -> total=2 invalid=0 gold_match=1" in capsys.readouterr().out
