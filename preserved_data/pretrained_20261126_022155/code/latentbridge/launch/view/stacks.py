"""Where the ranks of a hung attempt stood, told from the stack files they left: who waits, and for whom."""

from __future__ import annotations

import linecache
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from latentbridge.rundir import RunDir

_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$')
# of the main thread of `python FILE` and `python -m MODULE`
_OUTERMOST = ("<module>", "_run_module_as_main")
_THREAD = re.compile(r"^(Current thread|Thread) 0x", re.MULTILINE)


class Frame(NamedTuple):
    """One line of a stack."""

    file: str
    line: int
    function: str


def stack_files(attempt: Path) -> list[Path]:
    """The stack files of an attempt, in rank order."""
    return sorted(RunDir.stack_file(attempt, 0).parent.glob("rank_*.txt"), key=_rank)


def where_ranks_stand(attempt: Path, code: Path) -> list[str]:
    """One line a place where ranks stood; those of few ranks come first, for they keep the others waiting.

    code: the launch's copy of the code, whose lines tell a person most
    """
    ranks: dict[str, list[int]] = defaultdict(list)
    for file in stack_files(attempt):
        ranks[_describe(main_stack(file.read_text(errors="replace")), code)].append(_rank(file))
    groups = sorted(ranks.items(), key=lambda group: (len(group[1]), group[1]))
    return [f"{_name(members)} {place}" for place, members in groups]


def main_stack(text: str) -> list[Frame]:
    """The main thread's frames in the last of the dumps that a stack file holds, innermost first."""
    starts = [match.start() for match in _THREAD.finditer(text)]
    threads = [text[start:end] for start, end in pairwise([*starts, len(text)])]
    stacks = [
        [
            Frame(match["file"], int(match["line"]), match["function"])
            for match in map(_FRAME.match, thread.splitlines())
            if match
        ]
        for thread in threads
    ]
    # the interpreter lists its first thread last; a very deep stack is cut before it shows where it began
    main = [stack for stack in stacks if stack and stack[-1].function in _OUTERMOST]
    return (main or stacks or [[]])[-1]


def _describe(stack: list[Frame], code: Path) -> str:
    if not stack:
        return "without a stack"
    innermost = stack[0]
    own = next((frame for frame in stack if Path(frame.file).is_relative_to(code)), None)
    if own is None:
        return f"in {innermost.function} ({innermost.file}:{innermost.line})"
    place = f"{Path(own.file).relative_to(code)}:{own.line} ({own.function})"
    source = linecache.getline(own.file, own.line).strip()
    called = f": `{source}`" if source else ""
    return f"at {place}{called}" if own is innermost else f"in {innermost.function}, from {place}{called}"


def _name(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {' '.join(map(str, ranks))}"


def _rank(file: Path) -> int:
    return int(file.stem.removeprefix("rank_"))
