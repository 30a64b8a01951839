"""Numbers and node names as SLURM folds them: `0-4,7` and `node[0001-0003,0009]`."""

from __future__ import annotations

import re
from collections.abc import Iterable


def fold(numbers: Iterable[int], width: int = 0) -> str:
    """Ranges of a set of numbers: 0, 1, 2, 5 is "0-2,5"; width: pad with zeros to so many digits."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{a:0{width}}" if a == b else f"{a:0{width}}-{b:0{width}}" for a, b in parts)


def unfold(text: str) -> list[int]:
    """The numbers of `0-4,7,10-20:5`; ValueError where it is something else."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match is None:
            raise ValueError(text)
        first, last, step = match.groups()
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found


def fold_names(names: Iterable[str]) -> str:
    """Names with equal stems in brackets: node1, node2 is node[1-2]."""
    stems: dict[tuple[str, int], list[int]] = {}
    for name in names:
        stem = name.rstrip("0123456789")
        stems.setdefault((stem, len(name) - len(stem)), []).append(int(name[len(stem) :]))
    parts = []
    for (stem, width), numbers in stems.items():
        inner = fold(numbers, width)
        parts.append(f"{stem}[{inner}]" if len(numbers) > 1 else f"{stem}{inner}")
    return ",".join(parts)


def unfold_names(text: str) -> list[str]:
    """The names of `node[1-2,5],login3`."""
    found: list[str] = []
    for stem, inner in re.findall(r"([^,\[\]]+)(?:\[([^\]]*)\])?", text):
        width = len(re.split("[-,]", inner)[0])
        found += [f"{stem}{number:0{width}}" for number in unfold(inner)] if inner else [stem]
    return found
