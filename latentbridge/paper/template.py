"""Markdown with calls in {{ }}, or the published grammar, filled from results; what is left over is named.

---
baseline: CELL      which cells the published constructs are about; left out: baseline and dynamic
---
{{ value('softk', 'test_nll') }}  interval each gain points difference p outcome judged verdict seeds
{{ table('main_results') }}  {{ figure('overlay', 'caption') }}  {% if outcome(...) == 'won' %} {% endif %}
{% for launch in launches %} {{ asked(launch) }} {{ tables(launch) }} {{ figures(launch) }} {% endfor %}
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from latentbridge.audit.figures import FIGURES, known, render
from latentbridge.audit.table import notes
from latentbridge.config import listed
from latentbridge.errors import ConfigError, PreflightError
from latentbridge.paper.figures import published
from latentbridge.paper.quote import Quote
from latentbridge.paper.results import Results
from latentbridge.paper.routing import Roles, RoutingPaper
from latentbridge.paper.seed_grammar import translate
from latentbridge.paper.tables import NAMES, Table, standard
from latentbridge.paper.trace import Trace

_HEAD = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
# what holds no placeholders: code, and the calls that are filled
_OPAQUE = re.compile(r"^```.*?^```|`[^`\n]*`|\{\{.*?\}\}|\{%.*?%\}", re.DOTALL | re.MULTILINE)
_BRACKET = re.compile(r"(?<![\w\\\]])\[([^\[\]]+)\](?!\(|:)")
# references, intervals, footnotes and boxes to tick
_HARMLESS = re.compile(r"[\d\s.,;+−–-]+|\^.*|[ xX]", re.DOTALL)
_CELL = re.compile(r"(?<!\w)[+-]?X+(?:[.,]X+)+(?:%|×)?|\bYes/No\b|\bTODO\b|\bTBD\b")


@dataclass(frozen=True)
class Drawing:
    """A figure of the paper by suffix: csv, png, svg."""

    name: str
    files: dict[str, str | bytes]


@dataclass
class Filled:
    """A paper without placeholders."""

    markdown: str
    quote: Quote
    drawings: list[Drawing] = field(default_factory=list)


def fill(template: Path, results: Results, settings: Mapping[str, str] | None = None) -> Filled:
    """Fill a template; ConfigError names file, line, placeholder, what is wrong and what to do."""
    try:
        text = template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{template}: cannot be read ({error})") from None
    head, body = _split_head(template, text)
    roles = Roles.of(head | dict(settings or {}), results)
    source = translate(body)
    _refuse_placeholders(template, source)
    filled = Filled("", Quote(results, Trace()))
    markdown = _run(template, source, _calls(filled, roles)).strip()
    appendix = "## Where each number comes from\n\n" + filled.quote.trace.appendix()
    filled.markdown = f"{markdown}\n\n{appendix}\n"
    return filled


def _split_head(template: Path, text: str) -> tuple[dict[str, str], str]:
    """The settings above a template, and the rest with as many lines in front."""
    found = _HEAD.match(text)
    if not found:
        return {}, text
    try:
        head = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{template}:1: its head is not valid YAML: {error}") from None
    if not isinstance(head, dict):
        raise ConfigError(f"{template}:1: its head must map settings to values")
    return {str(key): str(value) for key, value in head.items()}, "\n" * found[0].count("\n") + text[
        found.end() :
    ]


def _refuse_placeholders(template: Path, source: str) -> None:
    """Everything that neither grammar fills, all at once."""
    plain = _OPAQUE.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), source)
    left = [
        (found.start(), found.group())
        for pattern in (_BRACKET, _CELL)
        for found in pattern.finditer(plain)
        if pattern is _CELL or not _HARMLESS.fullmatch(found.group(1))
    ]
    if left:
        complaints = []
        for start, text in sorted(left):
            line = plain.count("\n", 0, start) + 1
            complaints.append(
                f"{template}:{line}: placeholder '{' '.join(text.split())}' is left: no result fills it. "
                "Write the text in its place, or \\[ for a bracket that is meant"
            )
        raise ConfigError("\n".join(complaints))


def _run(template: Path, source: str, calls: Mapping[str, Any]) -> str:
    try:
        import jinja2
    except ImportError:
        raise PreflightError(
            "jinja2 is missing, by which templates are filled: pip install 'latentbridge[report]'"
        ) from None
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
    name = str(template)
    try:
        code = environment.compile(source, name, name)
        return jinja2.Template.from_code(environment, code, dict(calls)).render()
    except jinja2.TemplateSyntaxError as error:
        raise _complaint(template, source, error.lineno, error.message or "not a call") from None
    except jinja2.UndefinedError as error:
        text = f"{error.message}; known: {listed(calls, 40)}"
        raise _complaint(template, source, _line(error, name), text) from None
    except (ConfigError, TypeError) as error:
        raise _complaint(template, source, _line(error, name), str(error)) from None


def _line(error: Exception, name: str) -> int:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    return frames[-1].lineno or 1 if frames else 1


def _complaint(template: Path, source: str, line: int, text: str) -> ConfigError:
    """At a line of the template, with its calls."""
    calls = re.findall(r"\{\{.*?\}\}|\{%.*?%\}", source.splitlines()[line - 1])
    shown = " ".join(call if len(call) < 80 else f"{call[:76]}... }}}}" for call in calls)
    return ConfigError(f"{template}:{line}: {shown}: {text}")


def _calls(filled: Filled, roles: Roles) -> dict[str, Any]:
    """What a template may call, by name."""
    quote = filled.quote
    routing = RoutingPaper(quote, roles)
    numbers = (
        *("value", "interval", "each", "gain", "points", "difference", "p", "seeds"),
        *("outcome", "judged", "verdict"),
    )
    words = ("abstract", "results", "discussion", "achieved", "larger_mixer", "largest_share", "split")
    return {
        **{name: getattr(quote, name) for name in numbers},
        **{name: getattr(routing, name) for name in (*words, "won", "collapsed", "balanced", "paper_table")},
        "table": lambda name, launch=None: _table(filled, name, launch),
        "figure": lambda name, caption="", launch=None: _figure(filled, name, caption, launch),
        "paper_figure": lambda number, title: _published(filled, roles, number, title),
        # of any launch, whatever it has
        "launches": list(quote.results.launches),
        "asked": lambda launch: quote.results.launch(launch).comment,
        "progress": lambda launch: quote.results.launch(launch).records.summary.progress,
        "stated": lambda launch: [
            (v.cell, v.baseline, v.metric) for v in quote.results.launch(launch).stated if v.outcome != "-"
        ],
        "notes": lambda launch: notes(quote.results.launch(launch).records.summary),
        "tables": lambda launch: _tables(filled, launch),
        "figures": lambda launch: _figures(filled, launch),
    }


def _table(filled: Filled, name: str, launch: str | None) -> str:
    of = filled.quote.results.launch(launch)
    table = standard(name, of, filled.quote)
    if table is None:
        raise ConfigError(f"{of.name} has no results for table '{name}'")
    return _with_caption(table)


def _tables(filled: Filled, launch: str) -> str:
    """All that the launch has results for."""
    of = filled.quote.results.launch(launch)
    return "\n\n".join(
        _with_caption(table) for name in NAMES if (table := standard(name, of, filled.quote)) is not None
    )


def _figures(filled: Filled, launch: str) -> str:
    of = filled.quote.results.launch(launch)
    drawn = [(figure, render(figure, of.records, ("png",))) for figure in FIGURES]
    return "\n\n".join(
        _place(filled, f"{of.name}_{figure.name}", files, figure.name.replace("_", " "))
        for figure, files in drawn
        if files
    )


def _with_caption(table: Table) -> str:
    return f"{table.markdown()}\n\n*{table.caption}*"


def _figure(filled: Filled, name: str, caption: str, launch: str | None) -> str:
    of = filled.quote.results.launch(launch)
    files = render(known(name), of.records, ("png",))
    if not files:
        raise ConfigError(known(name).nothing(of.records))
    return _place(filled, f"{of.name}_{name}", files, caption or name)


def _published(filled: Filled, roles: Roles, number: int, title: str) -> str:
    launch, dynamic = filled.quote.results.cell(roles.dynamic)
    _, baseline = filled.quote.results.cell(roles.baseline)
    figure, part = published(number, launch.records, baseline, dynamic)
    if files := render(figure, part, ("png",)):
        return _place(filled, figure.name, files, f"Figure {number}: {title}".rstrip(": "))
    # the published guide's optional one
    if number == 5:
        return f"*Figure 5 is optional: {launch.name} has no results to draw it from.*"
    raise ConfigError(f"figure {number}: {figure.nothing(part)}")


def _place(filled: Filled, name: str, files: dict[str, str | bytes], caption: str) -> str:
    if "png" not in files:
        raise PreflightError("matplotlib is missing, which draws figures: pip install 'latentbridge[report]'")
    filled.drawings.append(Drawing(name, files))
    return f"![{caption}](figures/{name}.png)\n\n*{caption}*"
