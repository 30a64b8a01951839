"""YAML text to typed settings: strict, frozen, and every complaint with its file and line."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentbridge.errors import ConfigError

Key = tuple[str | int, ...]

# YAML 1.2 core schema: `1e-4` is a number, `off` and `12:30:00` are text
_PLAIN_TAGS = {"map", "seq", "str", "null", "bool", "int", "float", "timestamp", "merge", "value"}
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


class Config(BaseModel):
    """Base of every settings class: unknown keys refused, nothing coerced, nothing changed later."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())


class JobConfig(Config):
    """What every job's config holds; a cell of a launch is one JobConfig."""

    # which effective computation this is; run names and paths of outputs never enter a config
    seed: int = Field(1234, ge=0)

    def metric_names(self) -> tuple[str, ...] | None:
        """What the final evaluation measures, so that a spec's claims are checked early; None: not known."""
        return None


ConfigT = TypeVar("ConfigT", bound=Config)


@dataclass(frozen=True)
class Origin:
    """Where a setting was written; line 0: not in a file of lines."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class Tree:
    """Nested settings in which every key remembers the file and line it came from; never changed after."""

    def __init__(
        self, values: dict[str, Any], origins: dict[Key, Origin] | Callable[[], dict[Key, Origin]]
    ) -> None:
        self.values = values
        self._origins = origins

    @cached_property
    def origins(self) -> dict[Key, Origin]:
        """Where each key was written, oldest first; of a merged tree worked out when somebody asks."""
        return self._origins() if callable(self._origins) else self._origins

    def origin(self, key: Key) -> Origin:
        """Where `key` was written, else what is inside it, else the nearest key around it."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.origins:
                return self.origins[key[:length]]
            # a mapping that only exists because something inside it was set
            inside = [origin for known, origin in self.origins.items() if known[:length] == key[:length]]
            if length and inside:
                return inside[-1]
        raise KeyError(key)

    @cached_property
    def _origins_below(self) -> dict[str | int, dict[Key, Origin]]:
        """Origins by top-level key, as the branch under that key has them."""
        below: dict[str | int, dict[Key, Origin]] = {}
        for key, origin in self.origins.items():
            if key:
                below.setdefault(key[0], {})[key[1:]] = origin
        return below

    def branch(self, key: str) -> Tree:
        """The mapping under one top-level key, as a tree of its own (empty where absent)."""
        values = self.values.get(key) or {}
        if not isinstance(values, dict):
            raise ConfigError(f"{self.origin((key,))}: '{key}' is {describe(values)}; it must be a mapping")
        origins = self._origins_below.get(key)
        return Tree(values, origins or {(): self.origin(())})

    def without(self, *keys: str) -> Tree:
        """A new tree that lacks these top-level keys."""
        values = {key: value for key, value in self.values.items() if key not in keys}
        return Tree(values, {key: origin for key, origin in self.origins.items() if not {*key[:1]} & {*keys}})

    def override(self, other: Tree) -> Tree:
        """A new tree with `other` on top: mappings merge, all else replaces; `a.b: 1` reaches into `a`."""
        values = dict(self.values)
        written: dict[tuple[str, ...], Key] = {}
        for path, value, source in _leaves(other.values, (), ()):
            if path in written:
                raise ConfigError(
                    f"{other.origin(source)}: '{'.'.join(path)}' was already set at "
                    f"{other.origin(written[path])}, written another way; keep one of them"
                )
            written[path] = source
            node = _way_down(values, path, other, source)
            # an empty mapping changes nothing in a mapping
            if value != {} or not isinstance(node.get(path[-1]), dict):
                node[path[-1]] = value
        return Tree(values, lambda: self._origins_under(other, written))

    def _origins_under(self, other: Tree, written: dict[tuple[str, ...], Key]) -> dict[Key, Origin]:
        """This tree's origins with those of `other` on top; written: its keys by where they lead."""
        origins = dict(self.origins)
        for path, source in written.items():
            for known in [known for known in origins if known[: len(path)] == path]:
                del origins[known]
            for known, origin in other.origins.items():
                if known[: len(source)] == source:
                    origins[(*path, *known[len(source) :])] = origin
        return origins

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted key."""
        return {".".join(path): value for path, value, _ in _leaves(self.values, (), ())}

    def swap(self, first: str, second: str, origin: Origin) -> Tree:
        """A new tree with two top-level settings exchanged (source and target, say)."""
        for key in (first, second):
            if key not in self.values:
                raise ConfigError(
                    f"{origin}: swap names '{key}', which is not set; "
                    f"{did_you_mean(key, tuple(self.values))}Set: {', '.join(self.values) or 'nothing'}"
                )
        rename = {first: second, second: first}
        values = {rename.get(key, key): value for key, value in self.values.items()}
        origins = {(rename.get(str(k[0]), k[0]), *k[1:]) if k else k: o for k, o in self.origins.items()}
        return Tree(values, origins)


def _way_down(values: dict[str, Any], path: tuple[str, ...], other: Tree, source: Key) -> dict[str, Any]:
    """The mapping that holds the last key of `path`; trees share what they do not change, so it is a copy."""
    for depth, key in enumerate(path[:-1], start=1):
        below = values.get(key)
        if below is None:  # absent, or `early_stop: null` in a base and `early_stop.patience: 3` in a run
            below = {}
        if not isinstance(below, dict):
            raise ConfigError(
                f"{other.origin(source)}: '{'.'.join(path)}' reaches into '{'.'.join(path[:depth])}', "
                f"which is {describe(below)}, not a mapping"
            )
        values[key] = dict(below)
        values = values[key]
    return values


def _leaves(
    values: dict[str, Any], path: tuple[str, ...], source: Key
) -> Iterator[tuple[tuple[str, ...], Any, Key]]:
    """Each setting with its path (dots split) and its key as written; an empty mapping is a setting."""
    for key, value in values.items():
        inner_path, inner_source = (*path, *key.split(".")), (*source, key)
        if isinstance(value, dict) and value:
            yield from _leaves(value, inner_path, inner_source)
        else:
            yield inner_path, value, inner_source


def describe(value: Any) -> str:
    """A value as an error shows it: what it is, and of which kind."""
    kinds = {
        str: "text",
        bool: "true/false",
        int: "an integer",
        float: "a number",
        list: "a list",
        dict: "a mapping",
    }
    if value is None:
        return "empty"
    return f"{value!r} ({kinds.get(type(value), type(value).__name__)})"


def read_yaml(path: Path, shown_as: str | None = None) -> Tree:
    """Parse one YAML file whose top level is a mapping; duplicate keys and custom tags are refused."""
    name = shown_as or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot be read ({error})") from None
    try:
        node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        begun = f" {error.context} from line {error.context_mark.line + 1} on" if error.context_mark else ""
        raise ConfigError(f"{name}:{line}: not valid YAML: {error.problem or error.context}{begun}") from None
    except yaml.YAMLError as error:  # a character that no YAML file may hold; there is no mark then
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    origins: dict[Key, Origin] = {(): Origin(name, 1)}
    if node is None:
        return Tree({}, origins)
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{name}:1: the top level must be a mapping of keys to values")
    try:
        return Tree(_construct(node, (), name, origins), origins)
    except RecursionError:
        raise ConfigError(f"{name}: an alias (*name) stands inside its own anchor (&name)") from None


def _construct(node: yaml.Node, key: Key, name: str, origins: dict[Key, Origin]) -> Any:
    line = node.start_mark.line + 1
    if node.tag.removeprefix("tag:yaml.org,2002:") not in _PLAIN_TAGS:
        raise ConfigError(f"{name}:{line}: the tag '{node.tag}' is not allowed; write a plain value")
    origins.setdefault(key, Origin(name, line))
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else parse_scalar(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*key, index), name, origins) for index, item in enumerate(node.value)]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        word, at = str(key_node.value), key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{name}:{at}: a key must be a word, not a list or mapping")
        if word in mapping:
            first = origins[(*key, word)].line
            raise ConfigError(
                f"{name}:{at}: the key '{word}' was already set in line {first}; keep one of them"
            )
        origins[(*key, word)] = Origin(name, at)
        mapping[word] = _construct(value_node, (*key, word), name, origins)
    return mapping


def parse_scalar(text: str) -> Any:
    """An unquoted YAML scalar's value: null, true/false, an integer, a number, else text."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def parse_value(text: str, shown_as: str) -> Any:
    """A value as it would stand behind a colon: a scalar, or a list or mapping in brackets."""
    try:
        node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ConfigError(f"{shown_as}: '{text}' is not a YAML value: {problem}") from None
    return None if node is None else _construct(node, (), shown_as, {})


@dataclass(frozen=True)
class Complaint:
    """One rule that settings break: where they were written, what was found, the rule, the remedy."""

    origin: Origin
    text: str
    key: Key = ()


def check(config_class: type[ConfigT], tree: Tree) -> tuple[ConfigT | None, list[Complaint]]:
    """The validated settings, or None and every complaint about them."""
    try:
        return config_class.model_validate(tree.values), []
    except ValidationError as error:
        return None, [_complaint(config_class, tree, item) for item in error.errors()]


def build(config_class: type[ConfigT], tree: Tree, where: str = "") -> ConfigT:
    """Validate a tree; every complaint of one pass is raised together as one ConfigError.

    where: what is being built, for the message, e.g. "run '2a'"
    """
    config, complaints = check(config_class, tree)
    if config is None:
        prefix = f"{where}: " if where else ""
        raise ConfigError("\n".join(f"{c.origin}: {prefix}{c.text}" for c in complaints))
    return config


def _complaint(config_class: type[Config], tree: Tree, item: Any) -> Complaint:
    key: Key = tuple(item["loc"])
    dotted = ".".join(str(part) for part in key)
    origin = tree.origin(key)
    if item["type"] == "extra_forbidden":
        known = tuple(_class_at(config_class, key[:-1]).model_fields)
        hint = did_you_mean(str(key[-1]), known)
        text = f"unknown key '{dotted}'; {hint}Known here: {', '.join(known)}"
    elif item["type"] == "missing":
        meaning = _class_at(config_class, key[:-1]).model_fields[str(key[-1])].description
        text = f"'{dotted}' is missing; it has no default, so set it" + (f": {meaning}" if meaning else "")
    elif item["type"] == "value_error":
        text = (f"{dotted}: " if dotted else "") + str(item["ctx"]["error"])
        origin = _newest_mentioned(tree, key, text) or origin
    else:
        rule = _RULES.get(item["type"]) or item["msg"][0].lower() + item["msg"][1:]
        text = f"'{dotted}' is {describe(item['input'])}; {rule}{_remedy(item)}"
    return Complaint(origin, text, key)


# where pydantic's own words are a programmer's
_RULES = {
    "dict_type": "it must be a mapping, e.g. {} or {key: value}",
    "model_type": "it must be a mapping, e.g. {} or {key: value}",
    "list_type": "it must be a list, in brackets",
}


def _newest_mentioned(tree: Tree, key: Key, text: str) -> Origin | None:
    """Where the latest of the settings inside `key` that a rule names was written.

    A rule over several settings is broken by whoever wrote last, which is seldom the base.
    """
    found = None
    for known, origin in tree.origins.items():
        inner = ".".join(str(part) for part in known[len(key) :])
        if (
            inner
            and known[: len(key)] == key
            and isinstance(known[-1], str)
            and re.search(rf"(?<![\w.]){re.escape(inner)}(?![\w.])", text)
        ):
            found = origin
    return found


@cache
def did_you_mean(word: str, known: tuple[str, ...]) -> str:
    """`did you mean 'x'? `, to stand before a list of what is known; empty where nothing is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{near[0]}'? " if near else ""


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names behind commas; of many the first, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _remedy(item: Any) -> str:
    value = item["input"]
    if not isinstance(value, str):
        return ""
    if item["type"] == "literal_error":
        known = tuple(re.findall(r"'([^']*)'", item["ctx"]["expected"]))
        return f"; {did_you_mean(value, known)}".rstrip("; ")
    if item["type"] not in ("int_type", "float_type", "bool_type"):
        return ""
    plain = parse_scalar(value)
    if isinstance(plain, bool | int | float):
        return f"; write {value} without quotes"
    return "; YAML 1.2 knows true and false only" if item["type"] == "bool_type" else ""


def _class_at(config_class: type[BaseModel], key: Key) -> type[BaseModel]:
    """The settings class that sits at `key`."""
    for part in key:
        field = config_class.model_fields.get(str(part))
        if field is None:
            continue  # a list index, or the name of a union's branch
        choices = (field.annotation, *get_args(field.annotation))
        inner = [c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)]
        if inner:
            config_class = inner[0]
    return config_class


def dump(config: Config) -> dict[str, Any]:
    """Every setting spelled out, as plain data."""
    return config.model_dump(mode="json")


def config_id(job: str, settings: JobConfig | dict[str, Any]) -> str:
    """Twelve hex digits that name the effective computation: equal settings of one job, equal ids."""
    plain = settings if isinstance(settings, dict) else dump(settings)
    text = json.dumps({"job": job, "config": plain}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def to_yaml(settings: Config | dict[str, Any]) -> str:
    """The text of a config file that reads back as the same settings."""
    plain = settings if isinstance(settings, dict) else dump(settings)
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Quotes text that the 1.2 rules would read as something else; PyYAML only knows those of 1.1."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if isinstance(parse_scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def load(config_class: type[ConfigT], path: Path) -> ConfigT:
    """Read one complete config file, as the job on a node does: no merging, no defaults from elsewhere."""
    return build(config_class, read_yaml(path))
