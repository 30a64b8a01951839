"""Runs that had a card, or a machine without one, to share: their tokens a second are of a part of it.

`cluster: local` starts more runs than there are cards where it is told to. On SLURM a job has its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from latentbridge.errors import LatentbridgeError
from latentbridge.rundir import RunDir, read_object


class _Stay(NamedTuple):
    """One attempt: of which run, where, and from when to when in seconds; cards: empty without any."""

    run: str
    host: str
    cards: frozenset[str]
    began: float
    ended: float

    def meets(self, other: _Stay) -> bool:
        """Whether another run was there at the same time."""
        there = self.host == other.host and (self.cards & other.cards or not self.cards | other.cards)
        return bool(there) and self.run != other.run and self.began < other.ended and other.began < self.ended


def most_at_once(folders: Iterable[RunDir]) -> dict[str, int]:
    """By name of each run: how many runs of these were on one of its cards together, itself among them.

    Runs that no worker of today started do not tell their cards, and are left out.
    """
    stays = [stay for folder in folders for stay in _stays(folder)]
    found: dict[str, int] = {}
    for stay in stays:
        met = [other for other in stays if stay.meets(other)]
        # they are most when one of them has just begun
        moments = [stay.began, *(other.began for other in met if other.began >= stay.began)]
        together = [{other.run for other in met if other.began <= at < other.ended} for at in moments]
        found[stay.run] = max(found.get(stay.run, 1), 1 + max(map(len, together)))
    return found


def _stays(folder: RunDir) -> Iterable[_Stay]:
    for attempt in folder.list_attempts():
        try:
            opened, ending = (read_object(attempt / name) for name in ("env.json", "exit.json"))
            cards = frozenset(filter(None, opened["cards"].split(",")))
            yield _Stay(folder.name, opened["host"], cards, float(ending["began"]), float(ending["ended"]))
        # it has not ended, is on SLURM, is of an older worker, or a file was damaged
        except (OSError, LatentbridgeError, KeyError, AttributeError, TypeError, ValueError):
            continue
