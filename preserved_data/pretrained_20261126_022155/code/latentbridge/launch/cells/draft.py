"""One cell before its seeds: base and overrides merged, sides swapped, references to siblings found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from latentbridge.config import Key, Tree, describe
from latentbridge.errors import ConfigError
from latentbridge.launch.cells.best_of import Reference, as_written

# keys of a cell that are no settings of its job
RESOURCES, SWAP = "resources", "swap"


@dataclass(frozen=True)
class Draft:
    """What a cell will be for every seed; `references` by dotted key of the effective settings."""

    name: str
    overrides: dict[str, Any]
    resources: Tree
    effective: Tree
    references: dict[str, Reference]


class Drafter:
    """Merges one cell after another onto one base.

    resources: what the spec asks for all runs;  seeded: the spec lists seeds
    """

    def __init__(self, base: Tree, resources: Tree, seeded: bool) -> None:
        self._base, self._resources, self._seeded = base, resources, seeded
        self._base_refers = any(True for _ in _references(base.values, ()))

    def draft(self, name: str, override: Tree) -> Draft:
        """Merge one cell; ConfigError where an override cannot be carried out."""
        if self._seeded and "seed" in override.values:
            at = override.origin(("seed",))
            raise ConfigError(f"{at}: 'seed' is set here, and the spec lists seeds; keep one of the two")
        settings, resources = override, self._resources
        if RESOURCES in override.values or SWAP in override.values:
            settings = override.without(RESOURCES, SWAP)
            resources = resources.override(_wanted(override))
        effective = self._base.override(settings)
        if SWAP in override.values:
            effective = _swapped(effective, override)
        overrides = override.flat()
        references: dict[str, Reference] = {}
        if self._base_refers or any(True for _ in _references(overrides, ())):
            references = _whole(effective)
            overrides = as_written(overrides)
        return Draft(name, overrides, resources, effective, references)


def _wanted(override: Tree) -> Tree:
    for path, _ in _references(override.values.get(RESOURCES), (RESOURCES,)):
        raise ConfigError(f"{override.origin(path)}: resources cannot wait for a result; write a number")
    return override.branch(RESOURCES)


def _swapped(effective: Tree, override: Tree) -> Tree:
    swap, at = override.values[SWAP], override.origin((SWAP,))
    if not (isinstance(swap, list) and len(swap) == 2 and all(isinstance(key, str) for key in swap)):
        raise ConfigError(f"{at}: swap is {describe(swap)}; write [source, target]")
    return effective.swap(swap[0], swap[1], at)


def _whole(effective: Tree) -> dict[str, Reference]:
    """The references by dotted key; one inside a list is refused."""
    found = {}
    for path, reference in _references(effective.values, ()):
        key = ".".join(str(part) for part in path)
        if any(isinstance(part, int) for part in path):
            at = effective.origin(path)
            raise ConfigError(
                f"{at}: '{key}' is a part of a list; best_of can only stand for the whole of it"
            )
        found[key] = reference
    return found


def _references(value: Any, path: Key) -> Iterator[tuple[Key, Reference]]:
    if isinstance(value, Reference):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _references(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _references(inner, (*path, index))
