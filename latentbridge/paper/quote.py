"""Numbers of results as text, each noted in the trace with the files that it was made of."""

from __future__ import annotations

from dataclasses import replace

from latentbridge.audit.comparison.report import compare
from latentbridge.audit.records import CellRecords
from latentbridge.audit.verdicts import WORDS, difference_text, p_text
from latentbridge.errors import ConfigError
from latentbridge.metric import Metric, better
from latentbridge.paper.results import Found, LaunchResults, Results, measured
from latentbridge.paper.trace import Number, Source, Trace

# of every run: one record an evaluation, one a log step
METRICS, TRAINING = "metrics.jsonl", "train.jsonl"


def shown(value: float, digits: int, unit: str = "", signed: bool = False) -> str:
    """A value with so many digits behind the point, thousands apart."""
    return f"{value:{'+' if signed else ''},.{digits}f}{unit}"


class Quote:
    """The vocabulary of numbers that templates and tables share; cells are named as in `Results`."""

    def __init__(self, results: Results, trace: Trace) -> None:
        self.results, self.trace = results, trace

    def value(self, cell: str, metric: str, digits: int = 3, percent: bool = False) -> Number:
        """Mean over seeds; percent: of a share."""
        _, metric_of, what, sources = self._measured(cell, metric)
        assert metric_of.value is not None
        text = shown(100 * metric_of.value, digits, " %") if percent else shown(metric_of.value, digits)
        return self.trace.number(text, metric_of.value, what, sources)

    def interval(self, cell: str, metric: str, digits: int = 3) -> Number:
        """Mean with its 95 % interval, over seeds, or of a single seed over its samples."""
        found, metric_of, what, sources = self._measured(cell, metric)
        assert metric_of.value is not None
        text = shown(metric_of.value, digits)
        if metric_of.low is not None and metric_of.high is not None:
            text += f" [{shown(metric_of.low, digits)}, {shown(metric_of.high, digits)}]"
            what += f" [95 % over {found.row.interval_over}]"
        return self.trace.number(text, metric_of.value, what, sources)

    def each(self, cell: str, metric: str, digits: int = 3) -> str:
        """A value a seed, where there are too few for an interval."""
        launch, records = self.results.cell(cell)
        measured(records, metric)  # refuses what is void
        numbers = []
        for run in records.runs:
            value, sources = run.row.value(metric), launch.sources(replace(records, runs=[run]), METRICS)
            what = f"{cell}: {metric}, seed {run.row.seed}"
            numbers.append(self.trace.number(shown(value, digits), value, what, sources))
        return ", ".join(map(str, numbers))

    def gain(self, cell: str, baseline: str, metric: str, digits: int = 1) -> Number:
        """By how many percent of the baseline's mean a cell is better; negative: worse."""
        ours, theirs, what, sources = self._pair(cell, baseline, metric)
        if not theirs:
            raise ConfigError(f"{metric} of {baseline} is 0, of which nothing is a percentage; use points()")
        direction = better(metric)
        if direction is None:
            raise ConfigError(
                f"neither less nor more of {metric} is better, so nothing is gained by it; use difference()"
            )
        gained = (theirs - ours if direction == "lower" else ours - theirs) / abs(theirs)
        return self.trace.number(
            shown(100 * gained, digits, " %", signed=True), gained, f"gain: {what}, of the second", sources
        )

    def points(self, cell: str, baseline: str, metric: str, digits: int = 1) -> Number:
        """The difference of two shares in percentage points; positive: the cell's is larger."""
        ours, theirs, what, sources = self._pair(cell, baseline, metric)
        text = shown(100 * (ours - theirs), digits, " pp", signed=True)
        return self.trace.number(text, ours - theirs, f"points: {what}", sources)

    def difference(self, cell: str, baseline: str, metric: str, digits: int = 3) -> Number:
        """Cell minus baseline with its 95 % interval, as its verdict has it."""
        _, metric_of, what, sources = self._verdict(cell, baseline, metric)
        assert metric_of.value is not None and metric_of.low is not None and metric_of.high is not None
        value, low, high = (
            shown(bound, digits, signed=True) for bound in (metric_of.value, metric_of.low, metric_of.high)
        )
        return self.trace.number(f"{value} [{low}, {high}]", metric_of.value, f"difference: {what}", sources)

    def p(self, cell: str, baseline: str, metric: str) -> Number:
        """Of no difference, as its verdict has it."""
        found, _, what, sources = self._verdict(cell, baseline, metric)
        p = found.verdict.p
        if p is None:
            raise ConfigError(
                f"neither less nor more of {metric} is better, so no p was made for it; use difference()"
            )
        correction = "by Holm over the spec's comparisons" if found.stated else "not stated before the run"
        return self.trace.number(p_text(p), p, f"p: {what}, {correction}", sources)

    def outcome(self, cell: str, baseline: str, metric: str) -> str:
        """won, tied or lost beyond the spread of the seeds; void where they cannot tell; "-": nobody can."""
        return self.found(cell, baseline, metric).verdict.outcome

    def judged(self, cell: str, baseline: str, metric: str, called: str) -> str:
        """The outcome as a sentence without its stop; called: what readers know the baseline as."""
        return self.found(cell, baseline, metric).verdict.sentence(called)

    def verdict(self, cell: str, baseline: str, metric: str) -> str:
        """The outcome in words, with difference and p."""
        found = self.found(cell, baseline, metric)
        brief = WORDS[found.verdict.outcome].brief
        if found.verdict.is_void:
            return f"{brief} ({difference_text(found.verdict.difference)})"
        difference = self.difference(cell, baseline, metric)
        if found.verdict.p is None:
            return f"{brief} ({difference})"
        unstated = "" if found.stated else ", not stated before the run"
        return f"{brief} ({difference}, p = {self.p(cell, baseline, metric)}{unstated})"

    def seeds(self, cell: str) -> Number:
        """How many seeds a cell has."""
        launch, records = self.results.cell(cell)
        count = len(records.runs)
        return self.trace.number(str(count), count, f"{cell}: seeds", launch.sources(records, METRICS))

    def found(self, cell: str, baseline: str, metric: str) -> Found:
        """The verdict between two cells; those of two launches must stand the rules of `compare`."""
        launch, ours = self.results.cell(cell)
        other, theirs = self.results.cell(baseline)
        if launch is other:
            return launch.verdict(ours.name, theirs.name, metric)
        # refuses a pattern, of which `compare` finds the first that fits
        measured(ours, metric)
        report = compare([f"{other.folder}:{theirs.name}", f"{launch.folder}:{ours.name}"], [metric])
        if report.unsure:
            raise ConfigError(
                f"{cell} and {baseline} are not compared in a paper: {'; '.join(report.unsure)}"
            )
        return Found(report.seeds[0].verdict, stated=False)

    def _measured(self, cell: str, metric: str) -> tuple[CellRecords, Metric, str, list[Source]]:
        launch, records = self.results.cell(cell)
        found = measured(records, metric)
        what = f"{cell}: {metric}, {over(records)}"
        return records, found, what, launch.sources(records, METRICS)

    def _pair(self, cell: str, baseline: str, metric: str) -> tuple[float, float, str, list[Source]]:
        _, ours, _, sources = self._measured(cell, metric)
        _, theirs, _, other_sources = self._measured(baseline, metric)
        assert ours.value is not None and theirs.value is not None
        return ours.value, theirs.value, f"{cell} against {baseline}, {metric}", sources + other_sources

    def _verdict(self, cell: str, baseline: str, metric: str) -> tuple[Found, Metric, str, list[Source]]:
        found = self.found(cell, baseline, metric)
        if found.verdict.is_void:
            reason = difference_text(found.verdict.difference)
            raise ConfigError(
                f"{cell} against {baseline} on {metric} is void ({reason}); "
                "run what is missing, or leave the comparison out"
            )
        sources = self._pair(cell, baseline, metric)[3]
        return found, found.verdict.difference, f"{cell} minus {baseline}, {metric}", sources


def over(cell: CellRecords) -> str:
    """What a mean ranges over, in words."""
    count = len(cell.runs)
    return f"mean of {count} seeds" if count > 1 else "one seed"


def sources_of(launch: LaunchResults, file: str, *cells: CellRecords) -> list[Source]:
    """A file of every run of these cells."""
    return [source for cell in cells for source in launch.sources(cell, file)]
