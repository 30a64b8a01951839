"""A spec to cells: one cell is one effective config, validated, with a name, a seed and an id."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from latentbridge.config import Complaint, JobConfig, Key, Origin, Tree, did_you_mean
from latentbridge.launch.cells.best_of import BestOf, Reference
from latentbridge.launch.cells.cell import Cell, Maker
from latentbridge.launch.cells.combine import Variant, combine
from latentbridge.launch.cells.complaints import Complaints
from latentbridge.launch.cells.draft import Draft, Drafter
from latentbridge.launch.cells.graph import Graph
from latentbridge.launch.spec import (
    NAME_RULE,
    RESERVED,
    Spec,
    empty,
    load_job_config,
    parse_settings,
    read_base,
    read_draft,
)
from latentbridge.metric import HIGHER, LOWER, better

__all__ = ["Cell", "read_cells"]

# a file system gives a name 255 bytes, and temporary names beside it are longer
LONGEST_NAME = 200


def read_cells(path: Path, settings: list[str], root: Path) -> tuple[Spec, list[Cell]]:
    """Read a spec and make its cells; one ConfigError tells every mistake that was found in it.

    settings: `--set` arguments
    """
    complaints = Complaints()
    spec, tree, found = read_draft(path, root)
    complaints.extend(found)
    if spec is None:
        raise complaints.error()
    on_top = empty(tree.origin(()))
    with complaints.gathered():
        on_top = parse_settings(settings)
    return spec, _expand(spec, tree, on_top, root, complaints)


def _expand(spec: Spec, tree: Tree, settings: Tree, root: Path, complaints: Complaints) -> list[Cell]:
    if spec.seeds and "seed" in settings.values:
        text = f"the spec lists seeds {spec.seeds}, one run each; change them there"
        complaints.add(Complaint(Origin("--set seed", 0), text))
    config_class, base = _sources(spec, tree, root, complaints)
    variants = combine(spec, tree, complaints)
    _check_names(variants, complaints)
    resources = tree.branch("resources") if spec.resources else empty(tree.origin(()))
    drafter = Drafter(base, resources, bool(spec.seeds))
    drafts = {}
    for variant in variants:
        override = variant.override.override(settings) if settings.values else variant.override
        with complaints.gathered():
            drafts[variant.name] = drafter.draft(variant.name, override)
    graph = Graph(spec, tree, [variant.name for variant in variants], drafts, complaints)
    maker = Maker(spec, tree, config_class, graph, complaints)
    for name in graph.order():
        if name in drafts:
            maker.make(drafts[name])
    _check_metrics(spec, tree, maker.made, drafts, graph, complaints)
    _check_directions(spec, tree, maker.made, complaints)
    complaints.refuse()
    cells = [cell for variant in variants for cell in maker.made[variant.name]]
    _check_ids(cells, {variant.name: variant.origin for variant in variants}, complaints)
    complaints.refuse()
    return cells


def _sources(spec: Spec, tree: Tree, root: Path, complaints: Complaints) -> tuple[type[JobConfig], Tree]:
    """What checks a cell, and what it starts from."""
    config_class: type[JobConfig] | None = None
    base: Tree | None = None
    with complaints.gathered():
        config_class = load_job_config(spec.job, root, tree.origin(("job",)))
    with complaints.gathered():
        at = tree.origin(("base",))
        base = read_base(spec.base, root, at) if spec.base else empty(at)
    if config_class is None or base is None:
        raise complaints.error()
    return config_class, base


def _check_names(variants: Iterable[Variant], complaints: Complaints) -> None:
    seen = set()
    for variant in variants:
        name, text = variant.name, ""
        if name in RESERVED or not re.match(NAME_RULE, name):
            text = (
                f"a run may not be called '{name}': the name of its folder takes letters, digits and "
                f"_ . = + -, and launch folders have {', '.join(RESERVED)} themselves"
            )
        elif len(name) > LONGEST_NAME:
            text = (
                f"the run '{name[:40]}...' has a name of {len(name)} letters, and its folder takes "
                f"{LONGEST_NAME}; write such values in named runs"
            )
        elif name in seen:
            text = f"two runs are called '{name}'; rename one"
        if text:
            complaints.add(Complaint(variant.origin, text))
        seen.add(name)


def _check_metrics(
    spec: Spec,
    tree: Tree,
    made: Mapping[str, list[Cell]],
    drafts: Mapping[str, Draft],
    graph: Graph,
    complaints: Complaints,
) -> None:
    """What is watched, compared or chosen by must be measured; a job may not say what it measures."""

    def check_one(metric: str, name: str, written: Tree, key: Key) -> None:
        known = made[name][0].config.metric_names() if made.get(name) else None
        if known is not None and metric not in known:
            hint = did_you_mean(metric, known)
            text = f"'{metric}' is no metric of jobs/{spec.job}.py; {hint}It measures {', '.join(known)}"
            complaints.add(Complaint(written.origin(key), text), name)

    # a grid may have thousands of cells with one reference to thousands
    references: dict[BestOf, tuple[Tree, Key]] = {}
    for name, runs in made.items():
        written = drafts[name].effective
        watched = getattr(runs[0].config, "early_stop", None) if runs else None
        if watched is not None:
            check_one(watched.metric, name, written, ("early_stop", "metric"))
        for key, reference in runs[0].best_of.items() if runs else ():
            references.setdefault(reference, (written, tuple(key.split("."))))
    for reference, place in references.items():
        for candidate in reference.candidates:
            check_one(reference.metric, candidate, *place)
    for index, comparison in enumerate(spec.compare):
        for at, side in comparison.sides(index):
            for name in graph.side(side):
                check_one(comparison.metric, name, tree, ("compare", index, "metric"))
                if isinstance(side, Reference):
                    check_one(side.metric, name, tree, (*at, "metric"))


def _check_directions(spec: Spec, tree: Tree, made: Mapping[str, list[Cell]], complaints: Complaints) -> None:
    """What is compared has a better side; what nobody measures is complained about already."""
    known = [runs[0].config.metric_names() for runs in made.values() if runs]
    for index, comparison in enumerate(spec.compare):
        metric = comparison.metric
        if better(metric) is None and any(names is None or metric in names for names in known):
            text = (
                f"by '{metric}' nobody can win or lose: neither less nor more of it is known to be better, "
                f"or it is a control's. Compare by a name that ends in {', '.join(HIGHER)} (more is better) "
                f"or {', '.join(LOWER)} (less is)"
            )
            complaints.add(Complaint(tree.origin(("compare", index, "metric")), text))


def _check_ids(cells: Iterable[Cell], origins: Mapping[str, Origin], complaints: Complaints) -> None:
    by_id: dict[str, Cell] = {}
    pairs: dict[Origin, list[tuple[Cell, Cell]]] = {}
    for cell in cells:
        other = by_id.setdefault(cell.id, cell)
        if other is not cell:
            pairs.setdefault(origins[cell.cell], []).append((other, cell))
    for origin, found in pairs.items():
        first, second = found[0]
        more = f", and so have {len(found) - 1} more such pairs" if len(found) > 1 else ""
        text = (
            f"runs '{first.name}' and '{second.name}' have the same effective config ({first.id}){more}: "
            "they are one experiment, not two. Drop one, or list more seeds to repeat it"
        )
        complaints.add(Complaint(origin, text))
