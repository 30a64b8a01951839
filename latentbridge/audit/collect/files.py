"""Files of the published systems as they lie on a disk: compressed, with a byte order mark, cut off."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentbridge.errors import DamageError
from latentbridge.rundir import NOT_GZIP, as_object, find_stored, open_stored

AGAIN = "copy it again from where it was written, or take it out of the folder"
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# tqdm's bar ends in "12/40 [00:03<00:07, 4.1it/s]", and what another rank prints follows at once
_BAR = re.compile(r"(\d+%\|[^\n]*?\d+/\d+ \[[^\]\n]*\])(?=[^\n])")


def read_bytes(path: Path) -> bytes:
    """A file's content, plain or NAME.gz; DamageError where the disk does not give it."""
    try:
        with open_stored(find_stored(path) or path) as file:
            return file.read()
    except NOT_GZIP as error:
        raise DamageError(f"{path}: damaged within what gzip holds ({error}); {AGAIN}") from None
    except OSError as error:
        why = error.strerror or error
        raise DamageError(
            f"{path}: cannot be read ({why}); mend the link or the rights, or remove it"
        ) from None


def read_text(path: Path) -> str:
    """A file's text, lines ending in one character; bytes that are no text are marked."""
    text = read_bytes(path).decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    if not text.strip("\n\r\0 "):
        raise DamageError(f"{path}: empty; {AGAIN}")
    return text


def read_log(path: Path) -> str:
    """What a terminal showed: no colours, and progress bars end lines too."""
    text = _COLOUR.sub("", read_text(path).replace("\r", "\n"))
    return _BAR.sub(r"\1\n", text)


def read_document(path: Path) -> Any:
    """One JSON document, whole."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        what = f"no JSON from there on ({error.msg})" if content.strip() else "empty"
        raise DamageError(f"{path}:{error.lineno}: {what}; {AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path}: no JSON ({error}); {AGAIN}") from None


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON object that holds these keys; DamageError names what it lacks."""
    return as_object(read_document(path), path, keys, AGAIN)


def at_line(path: Path, line: int, error: Exception) -> DamageError:
    """What is wrong with one line, with where it stands and what helps."""
    return DamageError(f"{path}:{line}: {error}; {AGAIN}")


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | DamageError]]:
    """The records of a JSONL with their lines; in place of a line that holds none, what is wrong with it."""
    lines = read_bytes(path).splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            # of a mark at its beginning json knows by itself
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield number, record
        else:
            what = "not a JSON record" if line.endswith(b"\n") else "cut off: the file ends inside it"
            yield number, DamageError(what)
