"""Whether every cell of a spec is an experiment of its own, and every override changes something."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from latentbridge.config import Config, JobConfig, Origin, Tree, build, dump
from latentbridge.errors import ConfigError

Leaves = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell of the plan, any of its seeds.

    runs: their names;  settings: every setting at full size;  small: the same after shrinking
    overrides: dotted keys that the spec sets;  swap: the two keys it exchanges
    """

    runs: Sequence[str]
    settings: dict[str, Any]
    small: dict[str, Any]
    overrides: Sequence[str]
    swap: Sequence[str] | None


class Ablation:
    """Compares cells by what they compute.

    fingerprint: of a full-size config, equal where the same is computed;  shrink: to plain settings
    engineering: keys that change only how;  protocol: keys that matter by being what they are
    """

    def __init__(
        self,
        config_class: type[JobConfig],
        fingerprint: Callable[[JobConfig], object],
        shrink: Callable[[JobConfig], dict[str, Any]],
        engineering: Sequence[str],
        protocol: Sequence[str],
    ) -> None:
        self._config_class, self._fingerprint, self._shrink = config_class, fingerprint, shrink
        self._engineering, self._protocol = tuple(engineering), tuple(protocol)

    def same(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Cell, list[str]]]:
        """Pairs of cells that are one experiment, and the keys by which they pretend to differ."""
        first: list[tuple[object, Cell]] = []
        for cell in cells:
            mine = self._fingerprint(self._built(cell.settings))
            other = next((before for found, before in first if found == mine), None)
            if other is None:
                first.append((mine, cell))
                continue
            keys = [key for key in _differing(other.settings, cell.settings) if not self._is_how(key)]
            if keys and all(self._is_visible(other.small, cell.small, key) for key in keys):
                yield other, cell, keys

    def idle(self, cell: Cell, base: dict[str, Any]) -> Iterator[str]:
        """Overrides without which a cell would compute the same; base: settings without any override."""
        known = self._fingerprint(self._built(cell.settings))
        without = dict(_taken_away(cell, base))
        for key, settings in without.items():
            if self._is_how(key) or _under(key, self._protocol):
                continue
            try:
                config = self._built(settings)
            except ConfigError:
                continue  # it does not go without its companions
            if dump(config) == cell.settings:
                continue  # the base says the same
            if self._is_visible(self._shrink(config), cell.small, key) and self._fingerprint(config) == known:
                yield key

    def _built(self, settings: dict[str, Any]) -> JobConfig:
        return build(self._config_class, Tree(settings, {(): Origin("rehearsal", 0)}))

    def _is_how(self, key: str) -> bool:
        return _under(key, self._engineering)

    @staticmethod
    def _is_visible(first: dict[str, Any], second: dict[str, Any], key: str) -> bool:
        """Whether the difference is still there at the small size; where it is not, nothing is proven."""
        one, other = leaves(first), leaves(second)
        if key == "swap":
            return first != second
        return any(one.get(name) != other.get(name) for name in {*one, *other} if _under(name, (key,)))


def leaves(settings: dict[str, Any] | Config, above: str = "") -> Leaves:
    """Settings by dotted key; lists are leaves."""
    plain = dump(settings) if isinstance(settings, Config) else settings
    found: Leaves = {}
    for key, value in plain.items():
        name = f"{above}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    one, other = leaves(first), leaves(second)
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


def _under(key: str, tops: Sequence[str]) -> bool:
    return any(key == top or key.startswith(f"{top}.") for top in tops)


def _taken_away(cell: Cell, base: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The cell's settings without one override each."""
    if cell.swap:
        first, second = cell.swap
        yield "swap", {**cell.settings, first: cell.settings[second], second: cell.settings[first]}
    for key in cell.overrides:
        yield key, _put(cell.settings, key.split("."), _get(base, key.split(".")))


_ABSENT = object()


def _get(settings: Any, path: Sequence[str]) -> Any:
    for part in path:
        if not isinstance(settings, dict) or part not in settings:
            return _ABSENT
        settings = settings[part]
    return settings


def _put(settings: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    inside = dict(settings) if isinstance(settings, dict) else {}
    made = _put(inside.get(path[0]), path[1:], value)
    if made is _ABSENT:
        inside.pop(path[0], None)
    else:
        inside[path[0]] = made
    return inside
