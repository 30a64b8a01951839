import errno
import hashlib
import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from archives import NAME, ended_launch, flip, named, tree, whole_copies

from latentbridge.audit.ablations import summarize
from latentbridge.errors import RunError
from latentbridge.launch import deposit as deposit_module
from latentbridge.launch.preserve import preserve, restore, verify
from latentbridge.rundir import RunDir, read_json


@pytest.fixture
def launch(tmp_path):
    return ended_launch(tmp_path / "runs")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "preserved_data"


def test_an_archive_has_the_launch_s_name_verifies_and_leaves_the_launch_untouched(launch, root):
    before = tree(launch)

    archive = preserve(launch, root)

    assert archive == root / NAME
    assert verify(archive) == []
    assert tree(launch) == before


def test_results_go_in_and_caches_drafts_locks_and_other_checkpoints_stay_out(launch, root):
    (launch / "a-s1" / ".metrics.jsonl.x7").write_text("draft")
    RunDir(launch / "a-s1").worker_lock.write_text("")
    RunDir(launch / "a-s1").rank_lock.write_text("")
    RunDir(launch / "a-s1").trackers.mkdir()
    (RunDir(launch / "a-s1").trackers / "mlflow.db").write_text("the logs again")
    (launch / "finish.lock").write_text("{}")
    (launch / "ledger").mkdir(exist_ok=True)
    # one of these may vanish while the launch is copied
    for name in ("lock", "pool.lock"):
        (launch / "ledger" / name).write_text("{}")

    files = set(tree(preserve(launch, root)))

    per_run = ["config.yaml", "metrics.jsonl", "attempts/1/stdout.log", "checkpoints/best/model.safetensors"]
    expected = {f"{run}/{name}" for run in ("a-s1", "a-s2", "b-s1") for name in per_run}
    expected |= {"a-s1/DONE", "a-s2/DONE", "b-s1/FAILED", "plan.json", "archive.json", "SHA256SUMS"}
    assert files == expected | {"code/latentbridge/metric.py", "code/.gitignore"}


def test_the_record_says_how_every_run_ended_and_what_was_left_out(launch, root):
    record = read_json(preserve(launch, root) / "archive.json")

    assert [(run["name"], run["state"], run["cause"]) for run in record["runs"]] == [
        ("a-s1", "DONE", None),
        ("a-s2", "DONE", None),
        ("b-s1", "FAILED", "oom"),
    ]
    assert {"cache", "a-s1/checkpoints/last", "a-s1/checkpoints/last-5"} <= set(record["left_out"])


def test_links_are_resolved_and_bad_ones_left_out(launch, root, tmp_path):
    (tmp_path / "elsewhere.txt").write_text("kept")
    (launch / "a-s1" / "note.txt").symlink_to(tmp_path / "elsewhere.txt")
    (launch / "a-s1" / "up").symlink_to(launch)
    (launch / "a-s1" / "gone").symlink_to("nowhere")
    os.mkfifo(launch / "a-s1" / "pipe")

    archive = preserve(launch, root)

    assert (archive / "a-s1" / "note.txt").read_text() == "kept"
    assert not any(path.is_symlink() for path in archive.rglob("*"))
    left_out = " ".join(read_json(archive / "archive.json")["left_out"])
    assert all(name in left_out for name in ("a-s1/up", "a-s1/gone", "a-s1/pipe"))


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs GNU sha256sum")
def test_gnu_sha256sum_agrees(launch, root):
    archive = preserve(launch, root)

    check = subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=archive, check=False)

    assert check.returncode == 0


def test_unfinished_runs_are_refused_by_name(launch, root):
    (launch / "a-s2" / "DONE").unlink()

    with pytest.raises(RunError, match="1 runs neither finished nor failed: a-s2"):
        preserve(launch, root)
    assert not root.exists()


def test_a_run_whose_marker_is_damaged_is_preserved_and_says_so(launch, root):
    (launch / "b-s1" / "FAILED").write_text("{")

    archive = preserve(launch, root)

    run = read_json(archive / "archive.json")["runs"][2]
    assert (run["name"], run["state"]) == ("b-s1", "FAILED")
    assert run["cause"].startswith("b-s1/FAILED: cannot be read as JSON")


def test_an_unfinished_run_may_be_allowed_and_its_state_is_recorded(launch, root):
    (launch / "a-s2" / "DONE").unlink()

    archive = preserve(launch, root, allow_unfinished=True)

    assert [run["state"] for run in read_json(archive / "archive.json")["runs"]] == [
        "DONE",
        "unfinished",
        "FAILED",
    ]


def test_a_second_preserve_of_an_unchanged_launch_does_nothing_and_says_so(launch, root, caplog):
    caplog.set_level(logging.INFO)
    before = (preserve(launch, root) / "archive.json").stat()

    after = (preserve(launch, root) / "archive.json").stat()

    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert "unchanged since it was preserved; nothing to do" in caplog.text


def test_a_run_that_succeeded_later_replaces_the_archive(launch, root):
    preserve(launch, root)
    RunDir(launch / "b-s1").mark("DONE", {})

    archive = preserve(launch, root)

    assert verify(archive) == []
    assert (archive / "b-s1" / "DONE").exists()
    assert not (archive / "b-s1" / "FAILED").exists()
    assert [path.name for path in root.iterdir() if path.is_dir()] == [NAME]


def test_an_archive_that_holds_more_than_the_launch_is_never_replaced(launch, root):
    preserve(launch, root)
    shutil.rmtree(launch / "a-s1")

    with pytest.raises(RunError, match="holds run 'a-s1' as DONE"):
        preserve(launch, root, allow_unfinished=True)

    assert verify(root / NAME) == []


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


@pytest.mark.parametrize("name", ["plan.json", "a-s1/checkpoints/best/model.safetensors", "archive.json"])
@pytest.mark.parametrize(
    ("damage", "what"),
    [(flip, "damaged"), (truncate, "damaged"), (Path.unlink, "missing"), (replace_by_link, "plain file")],
)
def test_every_damage_is_found_and_named(launch, root, name, damage, what):
    archive = preserve(launch, root)

    damage(archive / name)

    (problem,) = [found for found in verify(archive) if not found.path.endswith("moved")]
    assert problem.path == name
    assert what in str(problem)


def test_an_added_file_and_an_added_link_are_named(launch, root):
    archive = preserve(launch, root)
    (archive / "a-s1" / "better.txt").write_text("0.815")
    (archive / "folder").symlink_to(archive / "a-s1")

    problems = verify(archive)

    assert named(problems) == {"a-s1/better.txt", "folder"}
    assert all("extra" in problem.what for problem in problems)


def test_every_flipped_bit_of_the_checksums_is_found(launch, root):
    archive = preserve(launch, root)
    sums = archive / "SHA256SUMS"
    whole = sums.read_bytes()

    for position in range(0, len(whole), 13):
        sums.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert verify(archive), f"byte {position}"


@pytest.mark.parametrize("kept", [0.0, 0.4, 0.999])
def test_truncated_checksums_are_found(launch, root, kept):
    archive = preserve(launch, root)
    sums = archive / "SHA256SUMS"

    os.truncate(sums, int(sums.stat().st_size * kept))

    assert verify(archive)


def test_checksums_that_point_outside_are_refused(launch, root, tmp_path):
    archive = preserve(launch, root)
    outside = tmp_path / "outside"
    outside.write_text("")
    with open(archive / "SHA256SUMS", "a") as file:
        file.write(f"{hashlib.sha256(b'').hexdigest()}  ../../outside\n")

    assert named(verify(archive)) == {"SHA256SUMS"}


def test_a_folder_without_checksums_is_no_archive(tmp_path):
    assert named(verify(tmp_path)) == {"SHA256SUMS"}
    with pytest.raises(RunError, match="no such archive"):
        verify(tmp_path / "nowhere")


def test_a_damaged_archive_is_written_anew_from_an_unchanged_launch(launch, root):
    flip(preserve(launch, root) / "a-s2" / "metrics.jsonl")

    assert verify(preserve(launch, root)) == []


def test_an_archive_without_its_record_is_written_anew_unless_it_holds_more_than_the_launch(launch, root):
    archive = preserve(launch, root)
    (archive / "archive.json").unlink()
    (launch / "a-s1" / "DONE").unlink()
    with pytest.raises(RunError, match="holds run 'a-s1' as DONE"):
        preserve(launch, root, allow_unfinished=True)

    RunDir(launch / "a-s1").mark("DONE", {})
    assert verify(preserve(launch, root)) == []


def test_a_restored_launch_gives_the_same_summary_and_the_same_archive(launch, root, tmp_path):
    summarize(launch)
    archive = preserve(launch, root)

    restored = restore(archive, tmp_path / "other" / NAME)

    summarize(restored)
    for name in ("summary.json", "summary.log"):
        assert (restored / name).read_bytes() == (launch / name).read_bytes()
    again = preserve(restored, tmp_path / "second")
    assert {k: v for k, v in tree(again).items() if k not in ("archive.json", "SHA256SUMS")} == {
        k: v for k, v in tree(archive).items() if k not in ("archive.json", "SHA256SUMS")
    }


def test_a_damaged_archive_is_not_restored(launch, root, tmp_path):
    archive = preserve(launch, root)
    flip(archive / "a-s1" / "metrics.jsonl")

    with pytest.raises(RunError, match=r"nothing was restored: a-s1/metrics\.jsonl: damaged"):
        restore(archive, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_restoring_over_something_is_refused(launch, root):
    with pytest.raises(RunError, match="already exists"):
        restore(preserve(launch, root), launch)


def test_a_full_disk_is_named_leaves_no_archive_and_the_next_preserve_succeeds(launch, root, monkeypatch):
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")

    with monkeypatch.context() as patch:
        patch.setattr(deposit_module, "sync_disk", full)
        with pytest.raises(RunError, match=r"stopped at disk .*No space left on device"):
            preserve(launch, root)
    assert not (root / NAME).exists()

    assert verify(preserve(launch, root)) == []


def test_a_killed_replacement_gives_the_older_archive_its_name_back(launch, root):
    archive = preserve(launch, root)
    before = archive.stat().st_ino
    archive.rename(root / f"{NAME}.replaced")

    assert preserve(launch, root).stat().st_ino == before


def test_an_archive_that_is_still_named_partial_never_verifies(launch, root):
    partial = preserve(launch, root).rename(root / f"{NAME}.partial")

    assert named(verify(partial)) == {"."}


def test_preservers_at_the_same_time_make_one_archive(launch, root):
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            preserve(launch, root)
            os._exit(0)
        children.append(child)

    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert whole_copies(root) == [root / NAME]
