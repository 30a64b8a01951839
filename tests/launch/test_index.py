"""The index of preserved launches says of each what a reader asks first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from archives import NAME, ended_launch, flip

from latentbridge.launch.index import write_index
from latentbridge.launch.preserve import Keep, preserve
from latentbridge.rundir import read_json, write_json


@pytest.fixture
def launch(tmp_path):
    return ended_launch(tmp_path / "runs")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "preserved_data"


def test_the_index_lists_every_archive_with_states_headline_and_verdict(launch, root):
    write_json(launch / "summary.json", {"headline": "x 0.429 | best of 2"})
    archive = preserve(launch, root)
    flip(preserve_copy(archive, "broken_20261122_101501") / "plan.json")
    (root / "seed_run").mkdir()
    (root / f"{NAME}.partial").mkdir()

    text = write_index(root).read_text()

    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert "Generated" in text
    assert len(rows) == 3
    assert "1 FAILED" in rows[1] and "2 DONE" in rows[1]
    assert "x 0.429 \\| best of 2" in rows[1]
    assert rows[1].endswith("| yes |")
    assert "**NO**, 1: plan.json: damaged" in rows[0]
    assert "**NO**, 1: SHA256SUMS: missing" in rows[2]


def preserve_copy(archive: Path, name: str) -> Path:
    return Path(shutil.copytree(archive, archive.with_name(name)))


def test_a_section_says_why_by_which_command_what_came_out_and_what_is_there(launch, root):
    plan = read_json(launch / "plan.json")
    command = ["launch.py", "demo.yaml", "--set", "name=a b"]
    write_json(launch / "plan.json", plan | {"command": command})
    (launch / "spec.yaml").write_text("# Does x depend on b?\n# Cost: nothing.\nname: demo\n")
    difference = {"value": 0.25, "n": 6, "low": 0.125, "high": 0.375}
    verdict = {"cell": "b", "baseline": "a", "metric": "x", "outcome": "won", "p": 0.018}
    void = {"cell": "c", "baseline": "a", "metric": "x", "outcome": "void", "p": None}
    verdicts = [
        verdict | {"difference": difference},
        void | {"difference": {"n": 0, "void": "no seed is done"}},
    ]
    summary = {"headline": "x 0.429 in a", "verdicts": verdicts, "flags": ["b-s1: no gold", "b-s2: no gold"]}
    write_json(launch / "summary.json", summary)
    (launch / "summary.log").write_text("x\n")
    (launch / "x.png").write_bytes(b"png")
    preserve(launch, root, keep=Keep(compress=["*/metrics.jsonl"], checkpoints="none"))

    text = write_index(root).read_text()

    section = text[text.index(f"## {NAME}") :].splitlines()
    assert section[2:7] == [
        "- why: Does x depend on b?",
        "- command: `launch.py demo.yaml --set 'name=a b'`",
        "- runs: 2 DONE, 1 FAILED",
        "- metrics: x 0.429 in a",
        "- verdict: b won against a (x 0.250 [0.125, 0.375], p 0.018); c void against a "
        "(x void (no seed is done)); b-s1: no gold; and 1 more flags",
    ]
    assert section[7].startswith(
        "- artefacts: 20 files, 0.0 MB: [summary.log](demo_20261122_101500/summary.log)"
    )
    assert section[7].endswith("; 1 pictures; 3 files compressed")
    assert section[8] == "- left out: 13 files and folders, named in archive.json"


def test_what_was_changed_in_an_archive_is_not_believed(launch, root):
    write_json(launch / "summary.json", {"headline": "x 0.429 in a"})
    archive = preserve(launch, root)
    record = read_json(archive / "archive.json")
    write_json(archive / "archive.json", record | {"why": "to win"})
    (archive / "spec.yaml").write_text("# to win\n")
    write_json(archive / "summary.json", {"headline": "x 0.815 in a"})

    text = write_index(root).read_text()

    assert "0.815" not in text and "to win" not in text
    assert "- runs: ?" in text and "- why: not stated" in text and "- metrics: not summarised" in text
    assert "- **does not verify**: archive.json: damaged" in text
