"""What a spec file may say, and how it is read; expand.py makes cells of it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from latentbridge.config import (
    Complaint,
    Config,
    JobConfig,
    Key,
    Origin,
    Tree,
    check,
    did_you_mean,
    listed,
    parse_value,
    read_yaml,
)
from latentbridge.errors import ConfigError
from latentbridge.launch.cells.best_of import Reference
from latentbridge.launch.keep import Keep
from latentbridge.trackers import TrackerName, check_installed

RESERVED = (
    "cache",
    "code",
    "ledger",
    "slurm",
    "spec.yaml",
    "plan.json",
    "packages.txt",
    "summary.log",
    "summary.json",
)
NAME_RULE = r"^[A-Za-z0-9][A-Za-z0-9_.=+-]*$"


class _SettingSchema:
    """Tells editors that a value may be a reference, and which keys a reference has."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        anything_else = {"not": {"type": "object", "required": ["best_of"]}}
        return {"anyOf": [handler(Reference.__pydantic_core_schema__), anything_else]}


Setting = Annotated[Any, _SettingSchema]
Overrides = dict[str, Setting]
Times = Annotated[
    int | None,
    Field(ge=0),
    BeforeValidator(
        lambda value: None if value == "unlimited" else value,
        json_schema_input_type=Annotated[int, Field(ge=0)] | Literal["unlimited"] | None,
    ),
]


def _each_once(seeds: list[int]) -> list[int]:
    twice = [seed for index, seed in enumerate(seeds) if seed in seeds[:index]]
    if twice:
        raise ValueError(f"seed {twice[0]} is listed twice, and would be one run; drop one of them")
    return seeds


class Retry(Config):
    """How often a run may start again, by what ended it; unlimited (or null): without limit."""

    # the site took the nodes back; nothing is wrong with the run
    preempted: Times = None
    # the time limit, with a checkpoint saved: a run of three days on a queue of one
    timeout: Times = 10
    # the node died or failed its health check
    node_fail: Times = 5
    # a rank was killed and nobody says by whom
    killed: Times = 3
    # device or host memory; each time with half the micro-batch
    oom: Times = 2
    # no rank made a step within hang_timeout_min
    hang: Times = 2
    # any exception: some are the network's or the file system's
    error: Times = 3
    # the same exception at the same step, which no retry cures
    deterministic: Times = 1
    # attempts, of whatever cause, that ended no further than where they began
    no_progress: Times = 3


Event = Literal["finished", "failed", "over_budget"]


class Notify(Config):
    """Who is told when nothing of a launch is at work or will be; at least one of webhook and mail."""

    webhook: str | None = Field(
        None, description="$NAME: the environment variable with the address that takes a POST of JSON"
    )
    mail: str | None = Field(None, pattern=r"^[^@\s]+@[^@\s]+$", description="an address, by local SMTP")
    on: list[Event] = Field(
        ["finished", "failed", "over_budget"], min_length=1, description="which ends to tell of"
    )

    @property
    def webhook_variable(self) -> str | None:
        """The environment variable that holds the webhook."""
        return self.webhook[1:] if self.webhook else None

    @model_validator(mode="after")
    def _somebody_is_told_and_secrets_stay_out(self) -> Notify:
        if self.webhook is None and self.mail is None:
            raise ValueError("it names nobody; set webhook or mail")
        if self.webhook is not None and not re.fullmatch(r"\$[A-Za-z_][A-Za-z0-9_]*", self.webhook):
            raise ValueError(
                "webhook is no $NAME; a spec is copied into archives, and who knows the address may post "
                "there: export it as a variable, and write webhook: $NAME"
            )
        return self


class Comparison(Config):
    """A claim stated before the run: these cells against that one.

    `best_of` in place of a cell: the best of several, in the mean over seeds, by what is not compared
    {baseline: {best_of: "a_lr=*", metric: val_nll, mode: min}, against: [...], metric: test_nll}
    """

    baseline: str | Reference = Field(description="a cell, or the best of several by another metric")
    against: list[str | Reference] = Field(min_length=1, description="the cells that are compared with it")
    metric: str = Field(description="a metric of the final evaluation")

    def sides(self, index: int) -> list[tuple[Key, str | Reference]]:
        """The baseline, then those against it, each with its key in the spec."""
        key: Key = ("compare", index)
        against = [((*key, "against", place), side) for place, side in enumerate(self.against)]
        return [((*key, "baseline"), self.baseline), *against]

    @model_validator(mode="after")
    def _nobody_is_chosen_by_what_is_compared(self) -> Comparison:
        for side in (self.baseline, *self.against):
            if isinstance(side, Reference) and (
                side.metric == self.metric or side.metric.startswith("test_")
            ):
                raise ValueError(
                    f"'{side.best_of}' would be chosen by {side.metric} and compared by {self.metric}: the "
                    "best of several is lucky too, so choose by validation, and compare what chose nothing"
                )
        return self


class Spec(Config):
    """One ablation spec, as written."""

    name: str = Field(pattern=NAME_RULE, description="of the launch; its folder is runs/NAME_DATE_TIME")
    job: str = Field(description="what runs: jobs/JOB.py")
    base: str | None = Field(None, description="what all cells start from: configs/BASE.yaml")
    cluster: str | None = Field(
        None, description="where: slurm/CLUSTER.yaml; left out, SLURM where sbatch is, else local"
    )
    max_parallel: int | None = Field(None, ge=1, description="runs at a time, instead of the cluster's")
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(_each_once)] = Field(
        [], description="one run per cell and seed; empty: the base's seed"
    )
    runs: dict[str, Overrides] = Field(
        {},
        description="named cells: what each sets apart from the base, by key or dotted.key; "
        "`swap: [a, b]` exchanges two settings, `resources` asks for other nodes",
    )
    grid: dict[str, list[Setting]] = Field({}, description="dotted.key: [values], crossed with each other")
    zip: dict[str, list[Setting]] = Field({}, description="dotted.key: [values], taken side by side")
    include: list[Overrides] = Field(
        [],
        description="further combinations of values beside those of grid and zip, for every run; "
        "`name` names one, else its values do; `exclude` does not apply",
    )
    exclude: list[Overrides] = Field(
        [], description="combinations to leave out: every cell that sets all these keys to these values"
    )
    needs: dict[str, list[str]] = Field({}, description="cell: [cells that must be DONE before it starts]")
    resources: dict[str, Any] = Field({}, description="of every run, on top of the cluster's")
    # what looks on is no part of what is computed, hence of no run's id
    trackers: Annotated[list[TrackerName], AfterValidator(check_installed)] = Field(
        [], description="who else is told the numbers of every run, offline unless the environment says so"
    )
    compare: list[Comparison] = Field([], description="what is claimed, stated before the run")
    retry: Retry = Retry()
    notify: Notify | None = Field(None, description="who is told of its end; null: nobody")
    preserve: Keep = Field(Keep(), description="what its archive keeps")
    # runs at work are not stopped by it; nothing new is submitted beyond it
    budget_gpu_hours: float | None = Field(
        None, gt=0, description="GPU-hours of all attempts; null: no limit"
    )
    # a first evaluation of large models takes 8 minutes in which no step is made
    hang_timeout_min: float | None = Field(30, gt=0, description="minutes without a step; null: never a hang")


# stands where a broken reference was, until it is left out
_BROKEN = object()
# where one of these is broken, nothing true can be said about cells
_MAKES_CELLS = ("job", "base", "runs", "grid", "zip", "include", "exclude")


def find_spec(argument: str, root: Path) -> Path:
    """The spec a user means: that path if it exists, else the same under configs/."""
    tried = [Path(argument), root / "configs" / argument, root / "configs" / f"{argument}.yaml"]
    for path in tried:
        if path.is_file():
            return path.absolute()
    known = tuple(sorted(file.stem for file in (root / "configs").glob("*.yaml")))
    hint = did_you_mean(Path(argument).stem, known)
    raise ConfigError(f"no spec '{argument}'; {hint}Looked for {', '.join(str(path) for path in tried)}")


def read_draft(path: Path, root: Path) -> tuple[Spec | None, Tree, list[Complaint]]:
    """A spec less what is wrong with it, its tree, and all that is wrong.

    So its cells can be examined in the same pass; None where too little is left for that.
    """
    shown = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    tree, complaints = mark_references(read_yaml(path, shown))
    spec, broken = check(Spec, tree)
    return spec or _sound_part(tree, broken), tree, complaints + broken


def _sound_part(tree: Tree, broken: list[Complaint]) -> Spec | None:
    heads = {str(complaint.key[0]) for complaint in broken}
    if any(did_you_mean(head, _MAKES_CELLS) for head in heads - {"runs"}):
        return None  # one of them, or a typo of one
    sound = {key: value for key, value in tree.values.items() if key == "runs" or key not in heads}
    runs = sound.get("runs", {})
    if not isinstance(runs, dict):
        return None
    sound["runs"] = {name: value if isinstance(value, dict) else {} for name, value in runs.items()}
    return check(Spec, Tree({"name": "unnamed"} | sound, tree.origins))[0]


def mark_references(tree: Tree) -> tuple[Tree, list[Complaint]]:
    """The tree with a Reference for every `{best_of: ...}`, which an override then replaces whole.

    One that breaks a rule is left out, and returned as a complaint.
    """
    complaints: list[Complaint] = []
    return Tree(_marked(tree.values, (), tree, complaints), tree.origins), complaints


def _marked(value: Any, key: Key, tree: Tree, complaints: list[Complaint]) -> Any:
    if isinstance(value, dict) and "best_of" in value:
        return _reference(value, key, tree, complaints)
    if isinstance(value, dict):
        marked = {name: _marked(inner, (*key, name), tree, complaints) for name, inner in value.items()}
        return {name: inner for name, inner in marked.items() if inner is not _BROKEN}
    if isinstance(value, list):
        items = [_marked(item, (*key, index), tree, complaints) for index, item in enumerate(value)]
        return [item for item in items if item is not _BROKEN]
    return value


def _reference(value: dict[str, Any], key: Key, tree: Tree, complaints: list[Complaint]) -> Any:
    origins = {
        known[len(key) :]: origin for known, origin in tree.origins.items() if known[: len(key)] == key
    }
    reference, broken = check(Reference, Tree(value, {(): tree.origin(key), **origins}))
    dotted = ".".join(str(part) for part in key)
    complaints += [Complaint(c.origin, f"{dotted}: {c.text}", key) for c in broken]
    return reference or _BROKEN


def parse_settings(settings: list[str]) -> Tree:
    """`--set key=value` arguments as a tree that goes on top of every cell."""
    tree = empty(Origin("--set", 0))
    for setting in settings:
        key, separator, text = setting.partition("=")
        origin = Origin(f"--set {setting}", 0)
        if not separator or not key:
            raise ConfigError(f"{origin}: write key=value, e.g. --set train.steps=100")
        written = Tree({key: parse_value(text, str(origin))}, {(): origin, (key,): origin})
        marked, complaints = mark_references(written)
        if complaints:
            raise ConfigError(f"{origin}: {complaints[0].text}")
        tree = tree.override(marked)
    return tree


def empty(origin: Origin) -> Tree:
    """A tree without settings, for what comes from `origin`."""
    return Tree({}, {(): origin})


def load_job_config(job: str, root: Path, origin: Origin) -> type[JobConfig]:
    """The Config class of jobs/<job>.py, without importing torch."""
    path = root / "jobs" / f"{job}.py"
    if not path.exists():
        known = tuple(sorted(file.stem for file in path.parent.glob("*.py")))
        raise ConfigError(
            f"{origin}: there is no jobs/{job}.py; {did_you_mean(job, known)}Jobs: {', '.join(known)}"
        )
    name = f"latentbridge_jobs_{job}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # before it runs: classes look themselves up there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"jobs/{job}.py: it cannot be imported: {type(error).__name__}: {error}") from error
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
    configs = root / "configs"
    path = configs / f"{name}.yaml"
    if not path.exists():
        known = tuple(sorted(str(f.relative_to(configs).with_suffix("")) for f in configs.rglob("*.yaml")))
        hint = did_you_mean(name, known)
        raise ConfigError(f"{origin}: there is no base configs/{name}.yaml; {hint}Bases: {listed(known)}")
    tree, complaints = mark_references(read_yaml(path, f"configs/{name}.yaml"))
    if complaints:
        raise ConfigError("\n".join(f"{complaint.origin}: {complaint.text}" for complaint in complaints))
    if "base" not in tree.values:
        return empty(tree.origin(())).override(tree)
    parent = str(tree.values["base"])
    return read_base(parent, root, tree.origin(("base",)), (*above, name)).override(tree.without("base"))
