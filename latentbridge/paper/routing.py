"""The published paper's own constructs: its tables 1 to 3, and the text that its choice rule picks.

Dynamic routing has won only where its loss is lower beyond the spread of the seeds; else it is tied or lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean, median

from latentbridge.audit.records import CellRecords, RunRecords
from latentbridge.errors import ConfigError
from latentbridge.layer_routing.metrics import split_entropy, status
from latentbridge.paper.quote import METRICS, TRAINING, Quote, over, shown, sources_of
from latentbridge.paper.results import Results
from latentbridge.paper.tables import Cell, Table
from latentbridge.paper.trace import Number
from latentbridge.paper.words import discussion, summary

# of mixers, as the published tables spell them
_SPELT = {"gdn": "GDN", "softmax": "Softmax"}
_PATTERN = re.compile(r"X\.(X+)")
# a cell of a table: text, or what makes it with so many digits, and how many are usual
_Make = str | tuple[Callable[..., Cell], int]
# header, labels of rows, their cells, and what the reader must know
_Content = tuple[list[str], list[str], list[list[_Make]], str]


@dataclass(frozen=True)
class Roles:
    """Which cells the paper is about, and on which text: val, as published, or test.

    metric: by which a winner is called, by default the loss on that text
    """

    baseline: str = "baseline"
    dynamic: str = "dynamic"
    split: str = "val"
    metric: str = ""

    @staticmethod
    def of(settings: Mapping[str, str], results: Results) -> Roles:
        """From the head of a template, or from --set; if neither names a cell, what the spec stated first."""
        known = tuple(Roles.__annotations__)
        if unknown := sorted(set(settings) - set(known)):
            raise ConfigError(f"unknown setting '{unknown[0]}'; known: {', '.join(known)}")
        if settings.get("split", "val") not in ("val", "test"):
            raise ConfigError(f"split is '{settings['split']}'; it must be val or test")
        stated = [verdict for launch in results.launches.values() for verdict in launch.stated]
        if stated and not {"baseline", "dynamic"} & {*settings}:
            first = stated[0]
            split = "test" if first.metric.startswith("test_") else "val"
            sides = {"baseline": first.baseline, "dynamic": first.cell, "metric": first.metric}
            settings = {**sides, "split": split, **settings}
        return Roles(**settings)


@dataclass(frozen=True)
class Layer:
    """A routed layer on the chosen text: by seed, the share of tokens that gated delta reads."""

    number: int
    metric: str
    shares: Sequence[float]

    @property
    def status(self) -> str:
        """Of every seed; where they differ, how many are which."""
        found = [_as_published(status(share)) for share in self.shares]
        if len(set(found)) == 1:
            return found[0]
        return ", ".join(
            f"{found.count(one)} of {len(found)} seeds {one.lower()}" for one in dict.fromkeys(found)
        )


def _as_published(status: str) -> str:
    """collapsed to gdn: Collapsed to GDN."""
    *kind, mixer = status.capitalize().split(" ")
    return " ".join([*kind, _SPELT.get(mixer, mixer)])


class RoutingPaper:
    """What a template may call about static and dynamic choice of a layer's mixer."""

    def __init__(self, quote: Quote, roles: Roles) -> None:
        self.quote, self.roles = quote, roles
        self.loss, self.perplexity, self.accuracy = (
            f"{roles.split}_{name}" for name in ("nll", "perplexity", "accuracy")
        )
        self.metric = roles.metric or self.loss

    @cached_property
    def layers(self) -> list[Layer]:
        """Routed layers of the dynamic cell."""
        _, cell = self.quote.results.cell(self.roles.dynamic)
        pattern = re.compile(rf"{self.roles.split}_layer_(\d+)_gdn_share")
        found = []
        for metric in cell.row.metrics:
            if matched := pattern.fullmatch(metric):
                if gap := cell.gaps(metric):
                    raise ConfigError(f"{metric} of {cell.name} is not there for every seed: {gap}")
                shares = [run.row.value(metric) for run in cell.runs]
                found.append(Layer(int(matched[1]), metric, shares))
        if not found:
            raise ConfigError(
                f"{cell.name} has no routed layer (no metric {self.roles.split}_layer_N_gdn_share); name the "
                "cell that routes: --set dynamic=CELL"
            )
        return sorted(found, key=lambda layer: layer.number)

    @property
    def outcome(self) -> str:
        """won, tied or lost beyond the spread of the seeds; void where there are too few to tell."""
        return self.quote.outcome(self.roles.dynamic, self.roles.baseline, self.metric)

    def won(self) -> bool:
        """The choice rule."""
        return self.outcome == "won"

    def judged(self) -> str:
        """The outcome as a sentence without its stop."""
        return self.quote.judged(self.roles.dynamic, self.roles.baseline, self.metric, "the static baseline")

    def collapsed(self) -> bool:
        """Whether any seed sends more than 90 % of a layer's tokens one way."""
        return any("ollapsed" in layer.status for layer in self.layers)

    def balanced(self) -> bool:
        """Whether every seed splits every routed layer 40 to 60."""
        return all(layer.status == "Balanced" for layer in self.layers)

    def achieved(self) -> str:
        """For `our method ... improvements`."""
        return "achieved" if self.won() else "did not achieve"

    def share(self, layer: Layer) -> Number:
        """Percent of a layer's tokens that gated delta reads."""
        return self.quote.value(self.roles.dynamic, layer.metric, digits=1, percent=True)

    def split(self, place: int) -> str:
        """Of a routed layer, counted from 0: what gated delta reads, and what softmax."""
        if place >= len(self.layers):
            raise ConfigError(f"there are {len(self.layers)} routed layers; [Y% ...] asks for another")
        layer = self.layers[place]
        return f"{self.share(layer)} GDN, {self._softmax(layer)} softmax"

    def larger_mixer(self) -> str:
        """What most tokens of the most uneven layer take."""
        return "GDN" if fmean(self._most_uneven.shares) > 0.5 else "softmax"

    def largest_share(self) -> Number:
        """How many tokens of the most uneven layer take it."""
        layer = self._most_uneven
        return self.share(layer) if self.larger_mixer() == "GDN" else self._softmax(layer)

    @property
    def _most_uneven(self) -> Layer:
        return max(self.layers, key=lambda layer: abs(fmean(layer.shares) - 0.5))

    def abstract(self) -> str:
        """One or two sentences by the choice rule."""
        return summary(self)

    def results(self) -> str:
        """What section 5 opens with: the outcome with its spread."""
        return summary(self)

    def discussion(self) -> str:
        """Section 6 by the choice rule."""
        return discussion(self)

    def paper_table(
        self, number: int, title: str, caption: str, given: Sequence[Sequence[Sequence[str]]]
    ) -> str:
        """A table of the template with its numbers, and what they are means of."""
        makers = {1: self._main, 2: self._routing, 3: self._cost}
        if number not in makers:
            raise ConfigError(f"no table {number}; the grammar has 1 to {len(makers)}")
        header, labels, cells, about = makers[number]()
        head, rows = given[0] if given else [], given[1] if len(given) > 1 else []
        if head and len(head[0]) != len(header):
            raise ConfigError(
                f"table {number} has {len(head[0])} columns, the grammar {len(header)}: {', '.join(header)}"
            )
        if rows and len(rows) != len(labels):
            raise ConfigError(f"table {number} has {len(rows)} rows, the results fill {len(labels)}")
        labels = [row[0] for row in rows] or labels
        asked = [row[1:] for row in rows] or [[""] * len(row) for row in cells]
        filled = [
            [label, *map(_filled, own_cells, own_asked)]
            for label, own_cells, own_asked in zip(labels, cells, asked, strict=True)
        ]
        table = Table(f"table_{number}", caption or title, header, filled)
        ending = "" if not table.caption or table.caption.endswith(".") else "."
        return f"{table.markdown()}\n\n*Table {number}: {table.caption}{ending}* {about}"

    def _main(self) -> _Content:
        split = self.roles.split.capitalize()
        header = ["Model", f"{split} loss ↓", "Perplexity ↓", "Accuracy ↑", "Routing collapse?"]
        baseline, dynamic, quote = self.roles.baseline, self.roles.dynamic, self.quote
        pair = (dynamic, baseline)
        rows: list[list[_Make]] = [
            [
                (partial(quote.value, cell, self.loss), 3),
                (partial(quote.value, cell, self.perplexity), 1),
                (partial(quote.value, cell, self.accuracy, percent=True), 1),
                collapse,
            ]
            for cell, collapse in ((baseline, "N/A"), (dynamic, self._collapse()))
        ]
        rows.append(
            [
                (partial(quote.gain, *pair, self.loss), 1),
                (partial(quote.gain, *pair, self.perplexity), 1),
                (partial(quote.points, *pair, self.accuracy), 1),
                "-",
            ]
        )
        verdict = quote.verdict(dynamic, baseline, self.metric)
        about = f"Means over {quote.seeds(dynamic)} seeds; {self.metric}, dynamic less baseline: {verdict}."
        return header, ["Baseline", "Dynamic", "Δ"], rows, about

    def _collapse(self) -> str:
        if self.balanced():
            return "No"
        return "Yes" if self.collapsed() else "No, but skewed"

    def _routing(self) -> _Content:
        rows: list[list[_Make]] = [
            [
                (partial(self.quote.value, self.roles.dynamic, layer.metric, percent=True), 1),
                (partial(self._softmax, layer), 1),
                (partial(self._entropy, layer), 2),
                layer.status,
            ]
            for layer in self.layers
        ]
        labels = [f"Layer {layer.number}" for layer in self.layers]
        about = (
            f"Shares of {self.roles.split} tokens, means over {self.quote.seeds(self.roles.dynamic)} seeds."
        )
        return ["Layer", "GDN %", "Softmax %", "Entropy", "Status"], labels, rows, about

    def _cost(self) -> _Content:
        rows: list[list[_Make]] = [
            [
                (partial(self._rate, name), 0),
                (partial(self._minutes, name), 1),
                (partial(self._overhead, name), 2),
            ]
            for name in (self.roles.baseline, self.roles.dynamic)
        ]
        header = ["Model", "Tokens/s ↑", "Time ↓ (min)", "Overhead"]
        about = "Training alone, without evaluations and checkpoints."
        if (most := self._to_a_card()) > 1:
            about += f" Up to {most} runs had a card together: rates and minutes do not compare."
        return header, ["Baseline", "Dynamic"], rows, about

    def _to_a_card(self) -> int:
        cells = (self.quote.results.cell(name)[1] for name in (self.roles.baseline, self.roles.dynamic))
        return max(run.row.to_a_card for cell in cells for run in cell.runs)

    def _softmax(self, layer: Layer, digits: int = 1) -> Number:
        return self._derived(
            1 - fmean(layer.shares),
            shown(100 * (1 - fmean(layer.shares)), digits, " %"),
            f"1 - {layer.metric}",
        )

    def _entropy(self, layer: Layer, digits: int) -> Number:
        value = split_entropy(fmean(layer.shares))
        return self._derived(value, shown(value, digits), f"nats of the split {layer.metric}")

    def _derived(self, value: float, text: str, what: str) -> Number:
        launch, cell = self.quote.results.cell(self.roles.dynamic)
        what = f"{self.roles.dynamic}: {what}, {over(cell)}"
        return self.quote.trace.number(text, value, what, launch.sources(cell, METRICS))

    def _rate(self, name: str, digits: int) -> Number:
        launch, cell = self.quote.results.cell(name)
        value = median(_logged(cell, name, lambda run: run.tokens_per_s))
        what = f"{name}: tokens a second, median over seeds of the median over log records"
        return self.quote.trace.number(shown(value, digits), value, what, launch.sources(cell, TRAINING))

    def _mean_minutes(self, name: str) -> float:
        _, cell = self.quote.results.cell(name)
        return fmean(_logged(cell, name, lambda run: run.minutes_at(run.updates[-1]["step"])))

    def _minutes(self, name: str, digits: int) -> Number:
        launch, cell = self.quote.results.cell(name)
        value = self._mean_minutes(name)
        what = f"{name}: minutes of training, {over(cell)}"
        return self.quote.trace.number(
            shown(value, digits, " min"), value, what, launch.sources(cell, TRAINING)
        )

    def _overhead(self, name: str, digits: int) -> Cell:
        if self._to_a_card() > 1:
            return "void"
        if name == self.roles.baseline:
            return "1.0×"
        value = self._mean_minutes(name) / self._mean_minutes(self.roles.baseline)
        launch, dynamic = self.quote.results.cell(name)
        _, baseline = self.quote.results.cell(self.roles.baseline)
        what = f"{name}: minutes over those of {self.roles.baseline}"
        sources = sources_of(launch, TRAINING, dynamic, baseline)
        return self.quote.trace.number(shown(value, digits, "×"), value, what, sources)


def _filled(cell: _Make, asked: str) -> Cell:
    """A cell with the digits that its placeholder asks for (X.XXX: 3, X,XXX: none), else as is usual."""
    if isinstance(cell, str):
        return cell
    make, usual = cell
    found = _PATTERN.search(asked)
    return make(digits=len(found[1]) if found else 0 if "X,XXX" in asked else usual)


def _logged(cell: CellRecords, name: str, read: Callable[[RunRecords], float | None]) -> list[float]:
    values = [read(run) if run.updates else None for run in cell.runs]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise ConfigError(f"{name}: not every seed has a {TRAINING} that tells its speed")
    return known
