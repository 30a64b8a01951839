"""What a shell needs to complete our commands: a script without Python in it, so that TAB stays instant."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

SHELLS = ("bash", "zsh", "fish")
# what an argument names; launches and runs are folders, runs/LAUNCH/RUN
_FOLDERS, _FILES = {"launch", "run", "target", "archive", "folder"}, {"spec"}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The text that a shell of this kind is to evaluate."""
    import shtab

    for action in _actions(parser):
        if action.dest in _FOLDERS | _FILES and action.nargs != 0:
            # where shtab looks for it
            action.complete = shtab.DIRECTORY if action.dest in _FOLDERS else shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
