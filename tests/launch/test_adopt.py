"""A folder of a published system becomes an archive, and stays as it was."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from archives import ended_launch, flip, kill, kill_points, named, tree, whole_copies

from latentbridge.errors import RunError
from latentbridge.launch.adopt import adopt
from latentbridge.launch.archive import restore, verify
from latentbridge.launch.cli import main
from latentbridge.launch.index import write_index
from latentbridge.launch.preserve import preserve
from latentbridge.rundir import read_json

NAME = "phase1_full_20251116_201212"
ACCURACIES = "Target-alone acc: 0.770 | Bridged acc: 0.500"


@pytest.fixture
def seed(tmp_path) -> Path:
    """A preserved folder as the ablations left them: a family above two configs, one of which was killed."""
    folder = tmp_path / "seed" / NAME
    for config, final in (("a", f"[Final Eval] {ACCURACIES}\n"), ("b", "")):
        run = folder / config
        run.mkdir(parents=True)
        (run / "train.log").write_text(f"Step 20/40 | Loss (avg over last 20): 2.1234\n{final}")
        record = '{"gold_extracted": "9", "bridged_extracted": "9"}\n'
        (run / "eval_samples_step_20.jsonl").write_text(record + "torn")
        if final:
            (run / "eval_samples_step_final.jsonl").write_text(record)
    (folder / "summary.log").write_text("End time: 9\n")
    (folder / ".hidden").write_text("kept\n")
    (folder / "gone").symlink_to("nowhere")
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "preserved_data"


def states(folder: Path) -> dict[str, tuple[int, ...]]:
    """What a change of any file below would change."""
    found = {str(path): path.lstat() for path in (folder, *folder.rglob("*"))}
    return {name: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in found.items()}


def test_every_byte_is_adopted_and_the_source_is_untouched(seed, root):
    before, stat_before = tree(seed), states(seed)

    archive = adopt(seed, root)

    assert (tree(seed), states(seed)) == (before, stat_before)
    assert archive == root / NAME
    assert verify(archive) == []
    assert {n: d for n, d in tree(archive).items() if n not in ("archive.json", "SHA256SUMS")} == before


def test_the_manifest_says_what_was_found_and_what_could_not_be_read(seed, root):
    manifest = read_json(adopt(seed, root) / "archive.json")

    assert manifest["imported_from"] == NAME
    assert manifest["layout"] == "latentwire"
    assert [(run["name"], run["state"]) for run in manifest["runs"]] == [("a", "DONE"), ("b", "unfinished")]
    assert manifest["runs"][0]["metrics"]["bridged_accuracy"]["value"] == 1.0
    assert manifest["headline"] == "1 of 2 runs have a number"
    assert manifest["unread"] == [
        f"{run}/eval_samples_step_20.jsonl: no JSON record in lines 2" for run in "ab"
    ]
    assert len(manifest["left_out"]) == 1 and "gone" in manifest["left_out"][0]
    assert "/" not in manifest["imported_from"]


def test_a_folder_that_nobody_knows_is_adopted_as_it_is(tmp_path, root):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.csv").write_text("1\n")
    os.utime(folder / "a.csv", (1763316732, 1763316732))

    archive = adopt(folder, root)

    assert archive.name == "notes_20251116_181212"
    manifest = read_json(archive / "archive.json")
    assert (manifest["layout"], manifest["runs"]) == ("unknown", [])


def test_runs_behind_links_are_copied_and_recognised(seed, root, tmp_path):
    farm = tmp_path / "farm_20251120_120000"
    farm.mkdir()
    (farm / "first").symlink_to(seed / "b")

    record = read_json(adopt(farm, root) / "archive.json")

    assert [(run["name"], run["state"]) for run in record["runs"]] == [("first", "unfinished")]
    assert record["unread"] == ["first/eval_samples_step_20.jsonl: no JSON record in lines 2"]


def test_a_name_that_is_no_text_is_kept_as_it_is(tmp_path, root):
    folder = tmp_path / "odd_20251120_120000"
    odd = os.fsdecode(b"di\xff")
    (folder / odd).mkdir(parents=True)
    (folder / odd / "train.log").write_text(f"[Final Eval] {ACCURACIES}\n")

    archive = adopt(folder, root)

    assert [run["name"] for run in read_json(archive / "archive.json")["runs"]] == [odd]
    assert verify(archive) == []
    assert tree(restore(archive, tmp_path / "back")) == tree(folder)


def test_a_second_import_does_nothing_and_restore_gives_the_folder_back(seed, root, tmp_path):
    before = (adopt(seed, root) / "archive.json").stat()

    archive = adopt(seed, root)

    after = (archive / "archive.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert tree(restore(archive, tmp_path / "back")) == tree(seed)


def test_a_whole_archive_of_other_files_is_never_replaced_and_a_damaged_one_is_written_anew(seed, root):
    archive = adopt(seed, root)
    flip(archive / "a" / "train.log")
    assert named(verify(archive)) == {"a/train.log"}
    assert verify(adopt(seed, root)) == []

    flip(seed / "a" / "train.log")
    with pytest.raises(RunError, match="is whole, and holds other files than"):
        adopt(seed, root)


@pytest.mark.parametrize("damaged", ["a-s1/metrics.jsonl", "archive.json", "SHA256SUMS"])
def test_a_damaged_archive_of_a_launch_is_not_replaced_by_a_folder_of_its_name(tmp_path, root, damaged):
    archive = preserve(ended_launch(tmp_path / "runs"), root)
    flip(archive / damaged)
    before = tree(archive)
    folder = tmp_path / "theirs" / archive.name
    folder.mkdir(parents=True)
    (folder / "train.log").write_text("theirs\n")

    with pytest.raises(RunError, match=r"is damaged .* and was not imported from"):
        adopt(folder, root)

    assert tree(archive) == before


def test_a_damaged_archive_is_not_replaced_by_a_namesake_of_its_folder(seed, root):
    archive = adopt(seed, root)
    flip(archive / "a" / "train.log")
    before = tree(archive)
    flip(seed / "b" / "train.log")

    with pytest.raises(RunError, match="may be all that is left"):
        adopt(seed, root)

    assert tree(archive) == before


def test_an_import_killed_at_20_points_leaves_nothing_that_verifies_and_is_not_whole(seed, root):
    before = tree(seed)
    points = kill_points(lambda: adopt(seed, root))
    complete = tree(root / NAME).keys()

    assert len(points) >= 20
    for point in points:
        shutil.rmtree(root)
        kill(lambda: adopt(seed, root), point)
        assert all(tree(copy).keys() == complete for copy in whole_copies(root)), f"operation {point}"
        assert verify(adopt(seed, root)) == []
    assert tree(seed) == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("archive.json", "{}", "archive already"), (None, None, "holds no file")],
)
def test_what_is_no_folder_of_results_is_refused(tmp_path, root, name, content, words):
    folder = tmp_path / "odd"
    folder.mkdir()
    if name:
        (folder / name).write_text(content)

    with pytest.raises(RunError, match=words):
        adopt(folder, root)
    with pytest.raises(RunError, match="no such folder"):
        adopt(folder / "nowhere", root)
    assert not root.exists()


def test_files_of_our_names_in_a_foreign_folder_are_not_taken_for_ours(seed, root):
    (seed / "summary.json").write_text('{"headline": "theirs", "verdicts": 5}')
    (seed / "plan.json").write_text("[1, 2]")
    (seed / "spec.yaml").write_text("# theirs too\n")
    adopt(seed, root)

    text = write_index(root).read_text()

    assert "theirs" not in text
    assert "- metrics: 1 of 2 runs have a number" in text
    assert "- verdict: none: numbers as they were found, not checked against controls" in text


def test_the_command_imports_what_it_can_and_indexes_it(seed, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LATENTBRIDGE_ROOT", str(tmp_path))

    with pytest.raises(SystemExit) as ended:
        main(["import", str(tmp_path / "nowhere"), str(seed)])

    said = capsys.readouterr()
    assert ended.value.code != 0
    assert "no such folder" in said.err
    assert said.out == f"{tmp_path}/preserved_data/{NAME}\n"
    assert said.err.count(f"{NAME}: kept, but not read: ") == 2
    index = (tmp_path / "preserved_data" / "README.md").read_text()
    assert "- why: imported; layout: latentwire" in index
    assert "1 DONE, 1 unfinished" in index
    assert "- could not be read: 2, the first a/eval_samples_step_20.jsonl" in index


def test_a_stamp_in_quotes_is_a_stamp_and_the_index_links_to_it(seed, root):
    quoted = seed.rename(seed.with_name('phase1 a=1_"20251116_201212"'))

    archive = adopt(quoted, root)

    assert archive.name == quoted.name
    assert "](phase1%20a%3D1_%2220251116_201212%22/)" in write_index(root).read_text()
    assert verify(archive) == []


@pytest.mark.parametrize("command", ["figures", "report", "preserve", "status"])
def test_what_a_launch_is_needed_for_says_what_reads_an_import(seed, root, capsys, command):
    archive = adopt(seed, root)

    with pytest.raises(SystemExit) as ended:
        main([command, str(archive)])

    assert ended.value.code == 2
    assert "it holds a published system's results: `latentbridge collect`" in capsys.readouterr().err
