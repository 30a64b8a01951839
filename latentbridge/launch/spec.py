"""An ablation spec (YAML) to cells: one cell is one effective config, with a name, a seed and an id."""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from latentbridge.config import (
    Config,
    JobConfig,
    Key,
    Origin,
    Tree,
    build,
    config_id,
    describe,
    parse_value,
    read_yaml,
)
from latentbridge.errors import ConfigError

RESERVED = ("cache", "code", "ledger", "slurm", "spec.yaml", "plan.json", "summary.log", "summary.json")
NAME_RULE = r"^[A-Za-z0-9][A-Za-z0-9_.=+-]*$"


class Retry(Config):
    """How often a run may start again, by what ended it."""

    preempted: int | None = None  # None: without limit
    timeout: int | None = 10
    node_fail: int | None = 5
    oom: int | None = 0
    error: int | None = 1
    no_progress: int | None = 3


class Comparison(Config):
    """A claim stated before the run: these cells against that one."""

    baseline: str
    against: list[str]
    metric: str


class Spec(Config):
    """One ablation spec, as written."""

    name: str = Field(pattern=NAME_RULE)
    job: str
    base: str | None = None
    cluster: str | None = None
    max_parallel: int | None = Field(None, ge=1)
    seeds: list[int] = Field([], description="one run per cell and seed; empty: the base's seed")
    runs: dict[str, dict[str, Any]] = {}
    grid: dict[str, list[Any]] = {}
    zip: dict[str, list[Any]] = {}
    exclude: list[dict[str, Any]] = []
    needs: dict[str, list[str]] = {}
    resources: dict[str, Any] = {}
    compare: list[Comparison] = []
    retry: Retry = Retry()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run to make."""

    name: str  # folder name: the cell and, where the spec lists seeds, its seed
    cell: str
    config: JobConfig
    id: str
    overrides: dict[str, Any]
    resources: Tree
    needs: tuple[str, ...]  # names of runs


def find_spec(argument: str, root: Path) -> Path:
    """The spec a user means: that path if it exists, else the same under configs/."""
    tried = [Path(argument), root / "configs" / argument, root / "configs" / f"{argument}.yaml"]
    for path in tried:
        if path.is_file():
            return path.absolute()
    raise ConfigError(f"no spec '{argument}': looked for {', '.join(str(path) for path in tried)}")


def read_spec(path: Path, root: Path) -> tuple[Spec, Tree]:
    """Parse and validate a spec; the tree keeps the line of every key."""
    shown = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    tree = read_yaml(path, shown)
    return build(Spec, tree), tree


def parse_settings(settings: list[str]) -> Tree:
    """`--set key=value` arguments as a tree that goes on top of every cell."""
    tree = _empty(Origin("--set", 0))
    for setting in settings:
        key, separator, text = setting.partition("=")
        origin = Origin(f"--set {setting}", 0)
        if not separator or not key:
            raise ConfigError(f"{origin}: write key=value, e.g. --set train.steps=100")
        tree = tree.override(Tree({key: parse_value(text, str(origin))}, {(): origin, (key,): origin}))
    return tree


def load_job_config(job: str, root: Path, origin: Origin) -> type[JobConfig]:
    """The Config class of jobs/<job>.py, without importing torch."""
    path = root / "jobs" / f"{job}.py"
    if not path.exists():
        known = sorted(file.stem for file in path.parent.glob("*.py"))
        near = difflib.get_close_matches(job, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"{origin}: there is no jobs/{job}.py; {hint}Jobs: {', '.join(known)}")
    name = f"latentbridge_jobs_{job}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # before it runs: classes look themselves up there
    module_spec.loader.exec_module(module)
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and issubclass(config, JobConfig)):
        raise ConfigError(
            f"jobs/{job}.py: it must define Config, a subclass of latentbridge.config.JobConfig"
        )
    return config


def read_base(name: str, root: Path, origin: Origin, above: tuple[str, ...] = ()) -> Tree:
    """configs/<name>.yaml; its own `base` is applied below it."""
    if name in above:
        raise ConfigError(f"{origin}: bases in a circle: {' -> '.join((*above, name))}")
    path = root / "configs" / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"{origin}: there is no base configs/{name}.yaml")
    tree = read_yaml(path, f"configs/{name}.yaml")
    if "base" not in tree.values:
        return _empty(tree.origin(())).override(tree)
    parent_name, parent_origin = tree.values.pop("base"), tree.origins.pop(("base",))
    return read_base(str(parent_name), root, parent_origin, (*above, name)).override(tree)


def expand(spec: Spec, tree: Tree, settings: Tree, root: Path) -> list[Cell]:
    """Every cell of a spec, validated; two cells with the same effective config are refused."""
    if spec.seeds and "seed" in settings.values:
        raise ConfigError(f"--set seed: the spec lists seeds {spec.seeds}, one run each; change them there")
    config_class = load_job_config(spec.job, root, tree.origin(("job",)))
    base = read_base(spec.base, root, tree.origin(("base",))) if spec.base else _empty(tree.origin(()))
    variants = _variants(spec, tree)
    _check_references(spec, tree, [name for name, _ in variants])
    seeds: list[int | None] = [*spec.seeds] or [None]
    cells, complaints = [], []
    for name, override in variants:
        for seed in seeds:
            try:
                cells.append(_cell(spec, tree, name, seed, base, override.override(settings), config_class))
            except ConfigError as error:
                if str(error).startswith("--set"):
                    raise  # every other cell would say the same
                complaints.append(str(error))
                break
    if complaints:
        raise ConfigError("\n".join(complaints))
    _refuse_duplicates(cells, tree)
    return cells


def _empty(origin: Origin) -> Tree:
    return Tree({}, {(): origin})


def _variants(spec: Spec, tree: Tree) -> list[tuple[str, Tree]]:
    """Names and overrides of every cell before seeds: runs x grid x zip, less what is excluded."""
    lengths = {key: len(values) for key, values in spec.zip.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"{tree.origin(('zip',))}: zip lists differ in length: {lengths}; make them equal")
    for block, lists in (("grid", spec.grid), ("zip", spec.zip)):
        for key, values in lists.items():
            if not values:
                raise ConfigError(
                    f"{tree.origin((block, key))}: '{block}.{key}' is empty; list at least one value"
                )
    crossed = [dict(zip(spec.grid, values, strict=True)) for values in itertools.product(*spec.grid.values())]
    paired = [
        dict(zip(spec.zip, values, strict=True)) for values in zip(*spec.zip.values(), strict=True)
    ] or [{}]
    runs = list(spec.runs) or ([""] if spec.grid or spec.zip else [spec.name])
    found, used = [], set()
    for run, cross, pair in itertools.product(runs, crossed, paired):
        override = _empty(tree.origin(("runs", run)))
        if run in spec.runs:
            override = override.override(tree.branch("runs").branch(run))
        for block, values in (("grid", cross), ("zip", pair)):
            origins: dict[Key, Origin] = {(key,): tree.origin((block, key)) for key in values}
            override = override.override(Tree(values, {(): tree.origin((block,)), **origins}))
        flat = override.flat()
        hits = {i for i, rule in enumerate(spec.exclude) if all(flat.get(k) == v for k, v in rule.items())}
        used |= hits
        if not hits:
            parts = [run] if run else []
            parts += [f"{key.rsplit('.', 1)[-1]}={_show(value)}" for key, value in (cross | pair).items()]
            found.append(("_".join(parts), override))
    for index in sorted(set(range(len(spec.exclude))) - used):
        origin = tree.origin(("exclude", index))
        raise ConfigError(f"{origin}: exclude rule {spec.exclude[index]} matches no cell; correct or drop it")
    return found


def _show(value: Any) -> str:
    text = "-".join(map(_show, value)) if isinstance(value, list) else str(value)
    return "".join(c if c.isalnum() or c in "._+-" else "-" for c in text)


def _cell(
    spec: Spec,
    tree: Tree,
    name: str,
    seed: int | None,
    base: Tree,
    override: Tree,
    config_class: type[JobConfig],
) -> Cell:
    where = f"run '{name}'"
    settings = Tree(dict(override.values), override.origins)
    settings.values.pop("resources", None)
    swap = settings.values.pop("swap", None)
    effective = base.override(settings)
    if swap is not None:
        at = override.origin(("swap",))
        if not (isinstance(swap, list) and len(swap) == 2 and all(isinstance(key, str) for key in swap)):
            raise ConfigError(f"{at}: {where}: swap is {describe(swap)}; write [source, target]")
        effective = effective.swap(swap[0], swap[1], at)
    if seed is not None:
        at = tree.origin(("seeds",))
        effective = effective.override(Tree({"seed": seed}, {(): at, ("seed",): at}))
    config = build(config_class, effective, where)
    suffix = "" if seed is None else f"-s{seed}"
    return Cell(
        name=name + suffix,
        cell=name,
        config=config,
        id=config_id(spec.job, config),
        overrides=override.flat(),
        resources=tree.branch("resources").override(override.branch("resources")),
        needs=tuple(need + suffix for need in spec.needs.get(name, [])),
    )


def _check_references(spec: Spec, tree: Tree, names: list[str]) -> None:
    """Names in `needs` and `compare` must be cells, and needs must not go in circles."""
    mentioned: list[tuple[Key, str]] = [(("needs", run), run) for run in spec.needs]
    mentioned += [(("needs", run), need) for run, needs in spec.needs.items() for need in needs]
    for index, comparison in enumerate(spec.compare):
        mentioned += [(("compare", index), cell) for cell in (comparison.baseline, *comparison.against)]
    for key, name in mentioned:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(
                f"{tree.origin(key)}: no run is called '{name}'; {hint}Runs: {', '.join(names)}"
            )
    for start in spec.needs:
        seen, waiting = set(), [start]
        while waiting:
            for need in spec.needs.get(waiting.pop(), []):
                if need == start:
                    raise ConfigError(
                        f"{tree.origin(('needs', start))}: '{start}' needs itself, by way of its needs"
                    )
                if need not in seen:
                    seen.add(need)
                    waiting.append(need)


def _refuse_duplicates(cells: list[Cell], tree: Tree) -> None:
    by_id: dict[str, Cell] = {}
    by_name: set[str] = set()
    for cell in cells:
        if cell.id in by_id:
            other = by_id[cell.id]
            origin = tree.origin(("runs", cell.cell)) if cell.cell != other.cell else tree.origin(("seeds",))
            raise ConfigError(
                f"{origin}: runs '{other.name}' and '{cell.name}' have the same effective config "
                f"({cell.id}): they are one experiment, not two. Drop one, or list more seeds to repeat it"
            )
        if cell.name in RESERVED or not re.match(NAME_RULE, cell.name):
            raise ConfigError(
                f"{tree.origin(('runs', cell.cell))}: a run may not be called '{cell.name}': "
                "the name of its folder takes letters, digits and _ . = + -, "
                f"and launch folders have {', '.join(RESERVED)} themselves"
            )
        if cell.name in by_name:
            raise ConfigError(f"{tree.origin(('runs',))}: two runs are called '{cell.name}'; rename one")
        by_id[cell.id] = cell
        by_name.add(cell.name)
