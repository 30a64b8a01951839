"""Whatever is killed while it writes, what verifies is whole."""

from __future__ import annotations

import shutil

import pytest
from archives import NAME, ended_launch, kill, kill_points, tree, whole_copies

from latentbridge.launch.archive import restore, verify
from latentbridge.launch.preserve import Keep, preserve
from latentbridge.rundir import append_jsonl

# what tells when, in an archive
OF_THE_DAY = ("archive.json", "SHA256SUMS")


@pytest.fixture
def launch(tmp_path):
    return ended_launch(tmp_path / "runs")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "preserved_data"


def contents(folder):
    return {name: digest for name, digest in tree(folder).items() if name not in OF_THE_DAY}


@pytest.mark.parametrize("keep", [Keep(), Keep(checkpoints="all", compress=["*.jsonl"])])
def test_preserve_killed_at_20_points_leaves_nothing_that_verifies_and_is_not_whole(launch, root, keep):
    points = kill_points(lambda: preserve(launch, root, keep=keep))
    complete = contents(root / NAME)
    shutil.rmtree(root)

    assert len(points) >= 20
    for point in points:
        kill(lambda: preserve(launch, root, keep=keep), point)
        for copy in whole_copies(root):
            assert contents(copy) == complete, f"operation {point}"
        assert verify(preserve(launch, root, keep=keep)) == []
        assert contents(root / NAME) == complete
        assert [path.name for path in root.iterdir() if path.is_dir()] == [NAME]
        shutil.rmtree(root)


def test_a_replacing_preserve_killed_at_20_points_leaves_some_whole_copy(launch, root):
    preserve(launch, root)
    append_jsonl(launch / "a-s1" / "train.jsonl", {"step": 0})
    points = kill_points(lambda: preserve(launch, root))

    assert len(points) >= 20
    for point in points:
        append_jsonl(launch / "a-s1" / "train.jsonl", {"step": point})
        kill(lambda: preserve(launch, root), point)
        assert whole_copies(root), f"operation {point}"
        preserve(launch, root)
        assert whole_copies(root) == [root / NAME], f"operation {point}"
        assert (root / NAME / "a-s1" / "train.jsonl").read_text().endswith(f'"step": {point}}}\n')


def test_a_restore_killed_at_20_points_leaves_no_tree_or_the_whole_one(launch, root, tmp_path):
    archive = preserve(launch, root, keep=Keep(compress=["*/metrics.jsonl"]))
    target = tmp_path / "back"
    points = kill_points(lambda: restore(archive, target))
    whole = tree(target)

    assert len(points) >= 20
    for point in points:
        if target.exists():
            shutil.rmtree(target)
        kill(lambda: restore(archive, target), point)
        assert not target.exists() or tree(target) == whole, f"operation {point}"
        if not target.exists():
            assert tree(restore(archive, target)) == whole
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("back")] == ["back"]
