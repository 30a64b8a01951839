from __future__ import annotations

import gzip
import hashlib
import zipfile

import pytest

from latentbridge.data import enwik8
from latentbridge.errors import RunError

TEXT = b"one line\nanother\nheld out\nthe rest\n"
PARTS = {"train": slice(0, 17), "heldout": slice(17, 26)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A text of four lines for enwik8."""
    monkeypatch.setattr(enwik8, "SIZE", len(TEXT))
    monkeypatch.setattr(enwik8, "PARTS", PARTS)
    digests = {name: hashlib.sha256(TEXT[part]).hexdigest() for name, part in PARTS.items()}
    monkeypatch.setattr(enwik8, "SHA256", digests)


@pytest.mark.parametrize("name", ["enwik8", "enwik8.gz", "enwik8.zip"])
def test_packed_or_not_it_gives_the_two_texts_and_the_same_bytes_each_time(tmp_path, name):
    path, folder = tmp_path / name, tmp_path / "text"
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("enwik8", TEXT)
    else:
        path.write_bytes(gzip.compress(TEXT) if name.endswith("gz") else TEXT)
    made = []
    for _ in range(2):
        told = list(enwik8.cut(path, folder))
        made.append([(folder / f"enwik8_{part}.txt.gz").read_bytes() for part in PARTS])

    assert [gzip.decompress(packed) for packed in made[0]] == [b"one line\nanother\n", b"held out\n"]
    assert made[0] == made[1]
    assert [line.split(": ")[1] for line in told] == ["17 bytes of text", "9 bytes of text"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TEXT[1:], "34 bytes of text, enwik8 has 35"),
        (TEXT.replace(b"held", b"hold"), "its heldout part another text"),
        (None, "cannot be read"),
    ],
)
def test_another_text_is_refused_and_nothing_is_written(tmp_path, content, said):
    path = tmp_path / "enwik8"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=said):
        list(enwik8.cut(path, tmp_path / "text"))

    assert not (tmp_path / "text").exists()


@pytest.mark.parametrize("damage", [lambda packed: packed[:-9], lambda packed: packed[:12] + b"\xff" * 9])
def test_a_damaged_file_is_told_as_that(tmp_path, damage):
    path = tmp_path / "enwik8.gz"
    path.write_bytes(damage(gzip.compress(TEXT)))
    with pytest.raises(RunError, match=r"enwik8\.gz cannot be read"):
        list(enwik8.cut(path, tmp_path / "text"))
