"""enwik8, the first 100,000,000 bytes of a dump of Wikipedia, cut as the texts of our results on it were.

It is to be had at mattmahoney.net/dc/enwik8.zip.
"""

from __future__ import annotations

import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from latentbridge.errors import RunError
from latentbridge.rundir import write_atomic

SIZE = 100_000_000
# from a line's start to a line's end
PARTS = {"train": slice(0, 60_000_633), "heldout": slice(90_000_190, 92_000_314)}
# of the text itself: what a compressed file comes to depends on who compresses
SHA256 = {
    "train": "9d2a1b24d1f997189a29c65f52e08d2e4ff62a6f2954d6ea2d9e907a18962bdf",
    "heldout": "83d5e35ea95531e8adbcc536371f1a717700829aa9ed1521ac46556eff4a69ea",
}


def cut(path: Path, folder: Path) -> Iterator[str]:
    """Write FOLDER/enwik8_train.txt.gz and enwik8_heldout.txt.gz, and tell of each.

    path: enwik8 as it is, as .zip or as .gz;  RunError where it is another text: then nothing is written
    """
    try:
        text = _read(path)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, KeyError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if len(text) != SIZE:
        raise RunError(f"{path} has {len(text):,} bytes of text, enwik8 has {SIZE:,}: fetch it anew")
    for name, part in PARTS.items():
        if hashlib.sha256(text[part]).hexdigest() != SHA256[name]:
            raise RunError(f"{path} is as long as enwik8, and its {name} part another text")
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        made = folder / f"enwik8_{name}.txt.gz"
        # without a time, so that the same text gives the same bytes
        write_atomic(made, gzip.compress(text[part], 9, mtime=0))
        yield f"{made}: {len(text[part]):,} bytes of text"


def _read(path: Path) -> bytes:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return archive.read("enwik8")
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
