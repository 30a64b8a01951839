"""What an archive keeps: checkpoints, what stays out, what is compressed."""

from __future__ import annotations

import gzip
import shutil

import pytest
from archives import ended_launch, flip, named, tree

from latentbridge.audit.ablations import summarize
from latentbridge.errors import RunError
from latentbridge.launch import keep as keep_module
from latentbridge.launch.archive import restore, verify
from latentbridge.launch.preserve import Keep, preserve, write_index
from latentbridge.rundir import read_json, write_json


@pytest.fixture
def launch(tmp_path):
    return ended_launch(tmp_path / "runs")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "preserved_data"


@pytest.mark.parametrize(
    ("limit", "which", "kept"), [(901, None, 3), (900, None, 0), (0, "best", 3), (10**6, "none", 0)]
)
def test_best_weights_stay_out_when_large_or_unwanted(launch, root, monkeypatch, limit, which, kept):
    monkeypatch.setattr(keep_module, "MAX_CHECKPOINT_BYTES", limit)

    archive = preserve(launch, root, keep=Keep(checkpoints=which))

    assert len(list(archive.rglob("model.safetensors"))) == kept
    left_out = read_json(archive / "archive.json")["left_out"]
    assert ("a-s1/checkpoints/best/model.safetensors" in left_out) == (not kept)
    assert verify(archive) == []


def test_what_is_asked_to_stay_out_stays_out_and_is_named(launch, root):
    whole = len(list(preserve(launch, root).rglob("metrics.jsonl")))

    archive = preserve(launch, root, keep=Keep(leave_out=["a-s?/metrics.jsonl"]))

    assert (whole, len(list(archive.rglob("metrics.jsonl")))) == (3, 1)
    left_out = read_json(archive / "archive.json")["left_out"]
    assert {"a-s1/metrics.jsonl", "a-s2/metrics.jsonl"} <= set(left_out)
    assert verify(archive) == []


def test_a_pattern_that_matches_nothing_is_refused_and_the_archive_stays(launch, root):
    before = sorted(preserve(launch, root).rglob("*"))

    with pytest.raises(RunError, match="no file matches 'a-s1/metric'"):
        preserve(launch, root, keep=Keep(leave_out=["a-s?/metrics.jsonl", "a-s1/metric"]))

    assert sorted(root.glob("*/**/*")) == before


def test_all_checkpoints_are_the_best_and_the_last_of_every_run(launch, root):
    archive = preserve(launch, root, keep=Keep(checkpoints="all"))

    sizes = sorted(path.stat().st_size for path in archive.glob("*/checkpoints/*/model.safetensors"))
    assert sizes == [300] * 3 + [5000] * 3


def test_what_is_compressed_verifies_and_is_restored_byte_for_byte(launch, root, tmp_path):
    before = tree(launch / "a-s1")
    summarize(launch)
    summary = (launch / "summary.json").read_bytes()

    archive = preserve(launch, root, keep=Keep(compress=["*/metrics.jsonl"]))

    assert verify(archive) == []
    assert not list(archive.rglob("metrics.jsonl"))
    packed = archive / "a-s1" / "metrics.jsonl.gz"
    assert gzip.decompress(packed.read_bytes()) == (launch / "a-s1" / "metrics.jsonl").read_bytes()
    restored = restore(archive, tmp_path / "other" / launch.name)
    assert not list(restored.rglob("*.gz"))
    names = {name for name in before if "checkpoints" not in name}
    after = tree(restored / "a-s1")
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    summarize(restored)
    assert (restored / "summary.json").read_bytes() == summary


def test_plans_and_settings_stay_plain_whatever_is_compressed(launch, root):
    """A pattern that caught a manifest hid its run from whoever reads archives."""
    archive = preserve(launch, root, keep=Keep(compress=["*"]))

    plain = [path.name for path in archive.rglob("*") if path.suffix in (".json", ".yaml")]
    assert {"plan.json", "archive.json"} <= {*plain}
    assert not list(archive.rglob("*.json.gz")) and (archive / "a-s1" / "metrics.jsonl.gz").exists()


def test_a_file_whose_compressed_name_is_taken_stays_plain(launch, root, tmp_path):
    (launch / "a-s1" / "metrics.jsonl.gz").write_bytes(b"somebody else's")

    archive = preserve(launch, root, keep=Keep(compress=["*/metrics.jsonl"]))

    assert sorted(path.name for path in (archive / "a-s1").glob("metrics*")) == [
        "metrics.jsonl",
        "metrics.jsonl.gz",
    ]
    restored = restore(archive, tmp_path / "back")
    assert (restored / "a-s1" / "metrics.jsonl.gz").read_bytes() == b"somebody else's"


def test_damage_of_a_compressed_file_is_named(launch, root):
    archive = preserve(launch, root, keep=Keep(compress=["*/metrics.jsonl"]))

    flip(archive / "a-s1" / "metrics.jsonl.gz")

    assert named(verify(archive)) == {"a-s1/metrics.jsonl.gz"}


@pytest.mark.parametrize(
    "rules",
    [{"checkpoints": "all"}, {"checkpoints": "none"}, {"compress": ["*.log"]}, {"leave_out": ["*.log"]}],
)
def test_a_second_preserve_without_rules_keeps_those_of_the_first_and_does_nothing(launch, root, rules):
    first = (preserve(launch, root, keep=Keep(**rules)) / "archive.json").stat()

    second = (preserve(launch, root) / "archive.json").stat()

    assert (second.st_ino, second.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)


def test_other_rules_make_another_archive_of_an_unchanged_launch(launch, root):
    preserve(launch, root)

    for rules, plain, packed in (({"compress": ["*/metrics.jsonl"]}, 0, 3), ({"checkpoints": "best"}, 3, 0)):
        archive = preserve(launch, root, keep=Keep(**rules))
        assert verify(archive) == []
        assert len(list(archive.rglob("metrics.jsonl"))) == plain
        assert len(list(archive.rglob("metrics.jsonl.gz"))) == packed


def test_the_spec_s_rules_hold_and_one_that_matches_nothing_costs_no_archive(launch, root):
    plan = read_json(launch / "plan.json")
    rules = {"checkpoints": "none", "leave_out": ["*/never_written.jsonl"], "of_a_later_version": 5}
    write_json(launch / "plan.json", plan | {"preserve": rules})

    archive = preserve(launch, root)

    assert not list(archive.rglob("model.safetensors"))
    assert read_json(archive / "archive.json")["preserve"] == {
        "checkpoints": "none",
        "leave_out": ["*/never_written.jsonl"],
        "compress": [],
    }


def test_the_spec_s_rules_that_match_nothing_are_in_the_manifest_and_the_index(launch, root):
    plan = read_json(launch / "plan.json")
    archive = preserve(launch, root)
    assert read_json(archive / "archive.json")["idle"] == []
    for leave_out, idle in (
        (["a-s1/metrics.jsonl"], []),
        (["a-s1/metrics.jsonl", "a-s1/metric"], ["a-s1/metric"]),
    ):
        rules = {"leave_out": leave_out, "compress": ["*/metrics.jsonl"]}
        write_json(launch / "plan.json", plan | {"preserve": rules})
        assert read_json(preserve(launch, root) / "archive.json")["idle"] == idle

    # of the same files, by other rules
    write_json(launch / "plan.json", plan | {"preserve": rules | {"leave_out": leave_out[:1]}})
    assert read_json(preserve(launch, root) / "archive.json")["idle"] == []

    write_json(launch / "plan.json", plan | {"preserve": rules})
    preserve(launch, root)
    assert "- rules that no file matched: a-s1/metric\n" in write_index(root).read_text()


def test_weights_that_the_archive_alone_still_has_are_never_replaced(launch, root):
    archive = preserve(launch, root)
    shutil.rmtree(launch / "a-s2" / "checkpoints")

    with pytest.raises(RunError, match=r"holds a-s2/checkpoints/best/model\.safetensors, which the"):
        preserve(launch, root)

    assert verify(archive) == []


def test_rules_that_change_in_the_spec_hold_where_nobody_asked_for_others(launch, root):
    plan = read_json(launch / "plan.json")
    for which, kept in (("none", 0), ("all", 6)):
        write_json(launch / "plan.json", plan | {"preserve": {"checkpoints": which}})
        assert len(list(preserve(launch, root).rglob("model.safetensors"))) == kept

    preserve(launch, root, keep=Keep(checkpoints="best"))
    write_json(launch / "plan.json", plan | {"preserve": {"checkpoints": "none"}})
    assert len(list(preserve(launch, root).rglob("model.safetensors"))) == 3
