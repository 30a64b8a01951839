"""Reading what SLURM's tools print, of SLURM 20.11 to 25.11: pure functions of text.

A value that a version does not print, or prints as one of SLURM's words for nothing, is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def parse_config(lines: Iterable[str]) -> dict[str, str]:
    """`scontrol show config` by name."""
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def parse_fields(line: str) -> dict[str, str]:
    """One line of `scontrol --oneliner`; a value may hold blanks, and of two equal names the first counts."""
    fields: dict[str, str] = {}
    for name, value in re.findall(r"(?:^|\s)([A-Za-z]\w*)=(.*?)(?=\s+[A-Za-z]\w*=|\s*$)", line):
        fields.setdefault(name, value)
    return fields


def parse_table(lines: list[str]) -> list[dict[str, str]]:
    """`sacctmgr --parsable2`, whose columns differ by version: each row by the names of the first line."""
    names, *rows = [line.split("|") for line in lines if line.strip()] or [[]]
    return [dict(zip(names, row, strict=False)) for row in rows]


def parse_gpus(gres: str | None) -> dict[str, int]:
    """GPUs by type in a list such as gpu:h100:4(S:0-1),nvme:1; "" for those without a type."""
    found: dict[str, int] = {}
    for item in parse_words(re.sub(r"\([^)]*\)", "", gres or "")):
        name, *rest = item.split(":")
        if name != "gpu":
            continue
        count = int(rest.pop()) if rest and rest[-1].isdigit() else 1
        kind = rest[0] if rest else ""
        found[kind] = found.get(kind, 0) + count
    return found


def parse_seconds(text: str | None) -> int | None:
    """Seconds of [days-]hours:minutes:seconds, minutes:seconds or minutes; None for UNLIMITED and nothing."""
    days, dash, clock = (text or "").rpartition("-")
    parts = clock.split(":")
    if len(parts) > 3 or not all(part.isdigit() for part in (*parts, days or "0")):
        return None
    numbers = [int(part) for part in parts]
    if dash or len(parts) == 3:  # from the left, hours first
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, minutes, seconds = (0, *numbers, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_minutes(text: str | None) -> int | None:
    """Whole minutes of a time that parse_seconds reads."""
    seconds = parse_seconds(text)
    return None if seconds is None else seconds // 60


def node_names(hostlist: str) -> list[str]:
    """Every name of a host list: `gpu[01-03,07],login1` are five."""
    found: list[str] = []
    for item in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", hostlist.replace(" ", "")):
        names = [""]
        for plain, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", item):
            endings = [plain] if plain else [name for span in ranges.split(",") for name in _span(span)]
            names = [name + ending for name in names for ending in endings]
        found += names
    return found


def _span(text: str) -> list[str]:
    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit()):
        return [text]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def parse_amounts(text: str | None) -> dict[str, int]:
    """Counts by name in a list such as cpu=64,gres/gpu=8; amounts with a unit are left out."""
    pairs = (item.partition("=") for item in parse_words(text))
    return {name: int(value) for name, _, value in pairs if value.isdigit()}


def text_or_none(value: str | None) -> str | None:
    """A value, or None for one of SLURM's many words for nothing."""
    return None if value in (None, "", "(null)", "N/A", "NONE", "none") else value


def number_or_none(value: str | None) -> int | None:
    """The whole number a value begins with (`300 sec`); None for UNLIMITED and for nothing."""
    found = re.match(r"\d+", value or "")
    return int(found[0]) if found else None


def parse_words(value: str | None) -> tuple[str, ...]:
    """The words of a list with commas; none for one of SLURM's words for nothing."""
    return tuple(word.strip() for word in (text_or_none(value) or "").split(",") if word.strip())
