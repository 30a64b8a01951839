"""Which cells a spec has: runs x (grid x zip, less exclude, plus include), by name and override."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from latentbridge.config import Complaint, Key, Origin, Tree, did_you_mean, listed
from latentbridge.launch.cells.best_of import Reference
from latentbridge.launch.cells.complaints import Complaints
from latentbridge.launch.spec import Spec, empty


@dataclass(frozen=True)
class Variant:
    """One cell before its seeds: what it is called, where it stands, what it sets apart from the base."""

    name: str
    origin: Origin
    override: Tree


@dataclass(frozen=True)
class _Part:
    """What one run, or one combination of values, gives to a cell."""

    name: str
    origin: Origin
    tree: Tree
    flat: dict[str, Any]
    may_exclude: bool = True


def combine(spec: Spec, tree: Tree, complaints: Complaints) -> list[Variant]:
    """Every cell in the order of the spec; what is wrong with exclude rules goes to `complaints`.

    Lists of which no cells can be made end it, with all complaints so far.
    """
    broken = _broken_lists(spec, tree)
    complaints.extend(broken)
    if broken:
        raise complaints.error()
    combinations = _product(spec, tree) + _included(spec, tree)
    rules = [Tree(rule, {(): tree.origin(("exclude",))}).flat() for rule in spec.exclude]
    used: set[int] = set()
    variants = []
    for run in _runs(spec, tree):
        _check_overruled(run, combinations, complaints)
        for combination in combinations:
            if rules and combination.may_exclude:
                flat = run.flat | combination.flat
                hits = {i for i, rule in enumerate(rules) if all(flat.get(k) == v for k, v in rule.items())}
                used |= hits
                if hits:
                    continue
            name = "_".join(part for part in (run.name, combination.name) if part)
            origin = run.origin if run.name and combination.may_exclude else combination.origin
            variants.append(Variant(name, origin, run.tree.override(combination.tree)))
    for index in sorted(set(range(len(rules))) - used):
        _complain_of_rule(rules[index], tree.origin(("exclude", index)), variants, complaints)
    return variants


def _broken_lists(spec: Spec, tree: Tree) -> list[Complaint]:
    found = []
    lengths = {key: len(values) for key, values in spec.zip.items()}
    if len(set(lengths.values())) > 1:
        text = f"zip lists differ in length: {lengths}; make them equal"
        found.append(Complaint(tree.origin(("zip",)), text))
    for block, lists in (("grid", spec.grid), ("zip", spec.zip)):
        for key, values in lists.items():
            if not values:
                text = f"'{block}.{key}' is empty; list at least one value"
                found.append(Complaint(tree.origin((block, key)), text))
    for key, values in spec.grid.items():
        seen: set[str] = set()
        for index, word in enumerate(_word(key, value) for value in values):
            if word in seen:
                text = f"'grid.{key}' lists {values[index]!r} twice, which would be one run; drop one of them"
                found.append(Complaint(tree.origin(("grid", key, index)), text))
            seen.add(word)
    for key in spec.zip:
        if key in spec.grid:
            text = f"'{key}' is in grid and in zip, so one of them would count for nothing; drop one"
            found.append(Complaint(tree.origin(("zip", key)), text))
    return found


def _runs(spec: Spec, tree: Tree) -> list[_Part]:
    if not spec.runs:
        listed_elsewhere = spec.grid or spec.zip or spec.include
        origin = tree.origin(())
        return [_Part("" if listed_elsewhere else spec.name, origin, empty(origin), {})]
    written = tree.branch("runs")
    parts = []
    for name, settings in spec.runs.items():
        origin = written.origin((name,))
        own = empty(origin)
        if settings:
            own = own.override(written.branch(name))
        parts.append(_Part(name, origin, own, own.flat()))
    return parts


def _product(spec: Spec, tree: Tree) -> list[_Part]:
    """grid x zip: one combination of nothing where there is neither, unless `include` is all there is."""
    if spec.include and not (spec.runs or spec.grid or spec.zip):
        return []
    columns = {
        block: [
            [(key, value, _word(key, value), tree.origin((block, key, i))) for i, value in enumerate(values)]
            for key, values in lists.items()
        ]
        for block, lists in (("grid", spec.grid), ("zip", spec.zip))
    }
    at = tree.origin(("grid" if spec.grid else "zip",))
    pairs = list(zip(*columns["zip"], strict=True)) or [()]
    parts = []
    for cross in itertools.product(*columns["grid"]):
        for pair in pairs:
            chosen = (*cross, *pair)
            origins: dict[Key, Origin] = {(key,): origin for key, _, _, origin in chosen}
            values = Tree({key: value for key, value, _, _ in chosen}, {(): at, **origins})
            name = "_".join(word for _, _, word, _ in chosen)
            parts.append(_Part(name, at, values, values.flat()))
    return parts


def _included(spec: Spec, tree: Tree) -> list[_Part]:
    parts = []
    for index, settings in enumerate(spec.include):
        key: Key = ("include", index)
        origins = {known[2:]: origin for known, origin in tree.origins.items() if known[:2] == key}
        values = Tree(settings, origins).without("name")
        words = (_word(name, value) for name, value in values.flat().items())
        name = str(settings["name"]) if "name" in settings else "_".join(words)
        parts.append(_Part(name, tree.origin(key), values, values.flat(), may_exclude=False))
    return parts


def _word(key: str, value: Any) -> str:
    """A value as a part of a cell's name, e.g. soft_tokens=32."""
    return f"{key.rsplit('.', 1)[-1]}={_show(value)}"


def _show(value: Any) -> str:
    if isinstance(value, Reference):
        value = f"best_of-{value.best_of}"
    if isinstance(value, dict):
        value = [part for pair in value.items() for part in pair]
    text = "-".join(map(_show, value)) if isinstance(value, list) else str(value)
    return "".join(c if c.isalnum() or c in "._+-" else "-" for c in text)


def _check_overruled(run: _Part, combinations: list[_Part], complaints: Complaints) -> None:
    """A value in a run that every combination overrules would look like an ablation and be none."""
    for combination in combinations:
        for key in run.flat.keys() & combination.flat.keys() if run.flat else ():
            written = run.tree.origin(tuple(key.split(".")))
            text = f"'{key}' is set here and by {combination.tree.origin((key,))}; keep one of them"
            complaints.add(Complaint(written, text), run.name)


def _complain_of_rule(
    rule: dict[str, Any], origin: Origin, variants: list[Variant], complaints: Complaints
) -> None:
    known = tuple(dict.fromkeys(key for variant in variants for key in variant.override.flat()))
    hints = "".join(did_you_mean(key, known) for key in rule if key not in known)
    text = f"exclude rule {rule} matches no cell; {hints}correct or drop it. Cells set {listed(known)}"
    complaints.add(Complaint(origin, text))
