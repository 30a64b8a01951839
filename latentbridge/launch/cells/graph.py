"""Which cell waits for which: `needs` and sibling references, checked for names and circles."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from latentbridge.config import Complaint, Key, Origin, Tree, did_you_mean, listed
from latentbridge.launch.cells.best_of import Reference
from latentbridge.launch.cells.complaints import Complaints
from latentbridge.launch.cells.draft import Draft
from latentbridge.launch.spec import Spec


class Graph:
    """Cells by name, in the order of the spec, and what each waits for."""

    def __init__(
        self,
        spec: Spec,
        tree: Tree,
        names: Iterable[str],
        drafts: Mapping[str, Draft],
        complaints: Complaints,
    ) -> None:
        self._spec, self._tree, self._names = spec, tree, dict.fromkeys(names)
        self._drafts, self._complaints = drafts, complaints
        self._matches: dict[str, list[str]] = {}
        self._check_mentioned()
        self._waits = {name: self._waits_of(name) for name in self._names}

    def candidates(self, name: str, reference: Reference) -> tuple[str, ...]:
        """The cells that a reference of cell `name` chooses from."""
        return tuple(other for other in self.side(reference) if other != name)

    def side(self, side: str | Reference) -> Sequence[str]:
        """The cells that one side of a comparison may be."""
        if isinstance(side, str):
            return (side,)
        pattern = side.best_of
        if pattern not in self._matches:  # once for all cells of a grid
            self._matches[pattern] = fnmatch.filter(self._names, pattern)
        return self._matches[pattern]

    def order(self) -> list[str]:
        """All cells, each behind those it waits for; none where they go in a circle."""
        try:
            return list(TopologicalSorter(self._waits).static_order())
        except CycleError as error:
            # graphlib lists each name before the one that waits for it, and the first again as the last
            circle = error.args[1][:0:-1]
            names = list(self._names)
            first = min(range(len(circle)), key=lambda index: names.index(circle[index]))
            circle = [*circle[first:], *circle[: first + 1]]
            text = f"'{circle[0]}' needs itself: {' -> '.join(circle)}; cut the circle"
            self._complaints.add(Complaint(self._why(circle[0], circle[1]), text))
            return []

    def _why(self, name: str, other: str) -> Origin:
        """Where it was written that `name` waits for `other`."""
        needs = self._spec.needs.get(name, [])
        if other in needs:
            return self._tree.origin(("needs", name, needs.index(other)))
        draft = self._drafts[name]
        keys = (key for key, r in draft.references.items() if other in self.candidates(name, r))
        return draft.effective.origin(tuple(next(keys).split(".")))

    def _waits_of(self, name: str) -> list[str]:
        waits = [need for need in self._spec.needs.get(name, []) if need in self._names]
        if name in self._drafts:
            for key, reference in self._drafts[name].references.items():
                found = self.candidates(name, reference)
                waits += found
                if not found:
                    self._complain_of_glob(name, key, reference)
        return waits

    def _complain_of_glob(self, name: str, key: str, reference: Reference) -> None:
        pattern = reference.best_of
        hint = did_you_mean(pattern, tuple(other for other in self._names if other != name))
        text = f"'{key}': best_of '{pattern}' matches no other cell; {hint}Cells: {listed(self._names)}"
        origin = self._drafts[name].effective.origin(tuple(key.split(".")))
        self._complaints.add(Complaint(origin, text), name)

    def _check_mentioned(self) -> None:
        """Names in `needs` and `compare` must be cells."""
        mentioned: list[tuple[Key, str]] = []
        for name, needs in self._spec.needs.items():
            mentioned.append((("needs", name), name))
            mentioned += [(("needs", name, index), need) for index, need in enumerate(needs)]
        for index, comparison in enumerate(self._spec.compare):
            (_, baseline), *against = sides = comparison.sides(index)
            mentioned += [(key, side) for key, side in sides if isinstance(side, str)]
            for key, side in sides:
                if not self.side(side):
                    self._complain(key, f"'{side}': no run is called so", str(side))
            for key, side in against:
                self._check_sides(key, side, baseline)
        for key, name in mentioned:
            if name not in self._names:
                self._complain(key, f"no run is called '{name}'", name)

    def _complain(self, key: Key, text: str, name: str) -> None:
        hint = did_you_mean(name, tuple(self._names))
        text = f"{text}; {hint}Runs: {listed(self._names)}"
        self._complaints.add(Complaint(self._tree.origin(key), text))

    def _check_sides(self, key: Key, side: str | Reference, baseline: str | Reference) -> None:
        """Who is compared is another than the baseline, and had no more tries at it."""
        cells, others = self.side(side), self.side(baseline)
        text = ""
        if both := [cell for cell in cells if cell in others]:
            text = f"'{both[0]}' is compared with itself; drop it from 'against'"
        elif cells and others and len(cells) != len(others):
            text = (
                f"'{side}' is chosen of {len(cells)}, '{baseline}' of {len(others)}: more tries do better by "
                "luck alone; let both choose among as many"
            )
        if text:
            self._complaints.add(Complaint(self._tree.origin(key), text))
