"""One cell's runs: validated for every seed, and for every way its references can go."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from latentbridge.config import Complaint, JobConfig, Tree, check, config_id, dump
from latentbridge.launch.cells.best_of import BestOf, as_written, put, setting
from latentbridge.launch.cells.complaints import Complaints
from latentbridge.launch.cells.draft import Draft
from latentbridge.launch.cells.graph import Graph
from latentbridge.launch.spec import Spec, empty


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run to make."""

    name: str  # folder name: the cell and, where the spec lists seeds, its seed
    cell: str
    config: JobConfig  # with references: as it is if the first of their cells wins
    id: str
    overrides: dict[str, Any]
    written: Tree  # its settings before they were validated
    resources: Tree
    needs: tuple[str, ...]  # names of runs
    best_of: dict[str, BestOf] = field(default_factory=dict)  # by dotted key

    @property
    def settings(self) -> dict[str, Any]:
        """The content of config.yaml: every setting spelled out, references as written."""
        settings = dump(self.config)
        for key, reference in self.best_of.items():
            settings = put(settings, key, as_written(reference))
        return settings


@dataclass(frozen=True)
class _Option:
    """One way the references of a cell can go: values by dotted key, and the cells that would have won."""

    values: dict[str, Any]
    winners: tuple[str, ...] = ()


class Maker:
    """Makes the runs of one cell after another; those that others choose from come first."""

    def __init__(
        self, spec: Spec, tree: Tree, config_class: type[JobConfig], graph: Graph, complaints: Complaints
    ) -> None:
        self._spec, self._config_class = spec, config_class
        self._graph, self._complaints = graph, complaints
        at = tree.origin(("seeds",))
        self._seeded = bool(spec.seeds)
        self._seeds = [Tree({"seed": seed}, {(): at, ("seed",): at}) for seed in spec.seeds] or [empty(at)]
        # by cell; one that could not be made has no runs
        self.made: dict[str, list[Cell]] = {}
        # by cell, its config for each way its references can go
        self._possible: dict[str, list[JobConfig]] = {}
        self._chosen: dict[tuple[BestOf, tuple[str, ...]], list[_Option]] = {}

    def make(self, draft: Draft) -> None:
        """Add the cell's runs to `made`, and what is wrong with it to the complaints."""
        self.made[draft.name] = []
        best_of = {
            key: BestOf(**as_written(reference), candidates=self._graph.candidates(draft.name, reference))
            for key, reference in draft.references.items()
        }
        if not all(self.made.get(name) for reference in best_of.values() for name in reference.candidates):
            return  # a candidate could not be made, and the complaint about it stands
        options = self._options(draft, best_of) if best_of else [_Option({})]
        runs = []
        for seed in self._seeds:
            effective = draft.effective.override(seed) if self._seeded else draft.effective
            configs = [self._config(draft.name, effective, option) for option in options]
            sound = [config for config in configs if config is not None]
            if not sound or len(sound) < len(configs):
                return  # another seed would say the same
            self._possible[draft.name] = sound
            runs.append(self._cell(draft, sound[0], best_of))
        self.made[draft.name] = runs

    def _config(self, name: str, effective: Tree, option: _Option) -> JobConfig | None:
        values = effective.values
        for key, value in option.values.items():
            values = put(values, key, value)
        config, broken = check(self._config_class, Tree(values, lambda: effective.origins))
        won = f" (where {' and '.join(option.winners)} is best)" if option.winners else ""
        self._complaints.extend((Complaint(c.origin, c.text + won) for c in broken), name)
        return config

    def _cell(self, draft: Draft, config: JobConfig, best_of: dict[str, BestOf]) -> Cell:
        suffix = f"-s{config.seed}" if self._seeded else ""
        needs = [need + suffix for need in self._spec.needs.get(draft.name, [])]
        identity = dump(config)
        for key, reference in best_of.items():
            chosen_from = [run for name in reference.candidates for run in self.made[name]]
            needs += [run.name for run in chosen_from]
            # what the candidates compute; neither what they are called nor which of them wins
            among = {**as_written(reference), "best_of": sorted(run.id for run in chosen_from)}
            identity = put(identity, key, among)
        return Cell(
            name=draft.name + suffix,
            cell=draft.name,
            config=config,
            id=config_id(self._spec.job, identity),
            overrides=draft.overrides,
            written=draft.effective,
            resources=draft.resources,
            needs=tuple(dict.fromkeys(needs)),
            best_of=best_of,
        )

    def _options(self, draft: Draft, best_of: dict[str, BestOf]) -> list[_Option]:
        """Every way the references can go: keys with one reference together, others independently."""
        together: dict[BestOf, list[str]] = {}
        for key, reference in best_of.items():
            together.setdefault(reference, []).append(key)
        ways = itertools.product(
            *(self._choices(draft, reference, tuple(keys)) for reference, keys in together.items())
        )
        return [
            _Option(
                {key: value for choice in way for key, value in choice.values.items()},
                tuple(winner for choice in way for winner in choice.winners),
            )
            for way in ways
        ]

    def _choices(self, draft: Draft, reference: BestOf, keys: tuple[str, ...]) -> list[_Option]:
        """The different values of `keys` among the candidates, worked out once for all cells of a grid."""
        if (reference, keys) not in self._chosen:
            choices: dict[str, _Option] = {}
            for name in reference.candidates:
                for settings in map(dump, self._possible[name]):
                    try:
                        values = {key: setting(settings, key) for key in keys}
                    except KeyError as missing:
                        self._complain_of_gap(draft, reference, missing.args[0], name)
                        return []
                    choices.setdefault(json.dumps(values, sort_keys=True), _Option(values, (name,)))
            self._chosen[reference, keys] = list(choices.values())
        return self._chosen[reference, keys]

    def _complain_of_gap(self, draft: Draft, reference: BestOf, key: str, candidate: str) -> None:
        text = (
            f"'{key}' is to come from the best of '{reference.best_of}', but '{candidate}', which may win, "
            "has no such setting; set it there, or let best_of name other cells"
        )
        origin = draft.effective.origin(tuple(key.split(".")))
        self._complaints.add(Complaint(origin, text), draft.name)
