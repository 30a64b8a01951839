"""All that a comparison finds: cells over their seeds, verdicts by seeds, tests over questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from latentbridge.audit.ablations import judge
from latentbridge.audit.comparison.answers import is_over_questions
from latentbridge.audit.comparison.checks import check, check_questions, doubts
from latentbridge.audit.comparison.published import KNOWN_BY
from latentbridge.audit.comparison.questions import QuestionRow, correct, question_rows
from latentbridge.audit.comparison.runs import Run
from latentbridge.audit.comparison.sides import Pair, Side, pair_up
from latentbridge.audit.statistics.effects import cohens_d, cohens_d_z
from latentbridge.audit.statistics.power import seeds_for
from latentbridge.audit.statistics.seeds import seed_mean
from latentbridge.audit.verdicts import Verdict
from latentbridge.errors import ConfigError
from latentbridge.metric import Metric, better, void


@dataclass(frozen=True, kw_only=True)
class FinalAndPeak:
    """One metric of one cell, mean over seeds.

    final: of the weights that early stopping chose by `chosen_by`
    peak: the best evaluation in training by this very metric, of each seed, out of `evaluations`
    """

    cell: str
    metric: str
    seeds: tuple[int | None, ...]
    final: Metric
    peak: Metric
    evaluations: int
    chosen_by: str | None


@dataclass(frozen=True, kw_only=True)
class SeedRow:
    """A verdict by pairs of seeds with the sizes of the effect; needed: pairs of seeds for 80 % power."""

    verdict: Verdict
    d: float | None = None
    d_z: float | None = None
    needed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything, without paths or times; unsure: what could not be made certain, in words."""

    cells: list[FinalAndPeak]
    seeds: list[SeedRow]
    questions: list[QuestionRow]
    left_out: list[str]
    unsure: list[str]

    def as_record(self) -> dict[str, Any]:
        """Plain data, as `--json` prints it."""
        return {
            "cells": [
                vars(row) | {"final": row.final.as_record(), "peak": row.peak.as_record()}
                for row in self.cells
            ],
            "over_seeds": [
                row.verdict.as_record()
                | {"cohens_d": row.d, "cohens_d_z": row.d_z, "seeds_for_80_percent": row.needed}
                for row in self.seeds
            ],
            "over_questions": [
                {"cell": row.cell, "baseline": row.baseline, "metric": row.metric}
                | {
                    "difference": row.difference.as_record(),
                    "tables": [asdict(table) for table in row.tables],
                }
                | {"cohens_h": row.h, "questions_for_80_percent": row.needed}
                for row in self.questions
            ],
            "left_out": self.left_out,
            "unsure": self.unsure,
        }


def compare(texts: Sequence[str], patterns: Sequence[str] = ()) -> Report:
    """Compare sides as a person names them, the baseline first.

    patterns: metrics by name or pattern; none: those that the baseline's launch was made for, with published
    systems as far as both have them, and those that these are known by
    ConfigError for what may not be compared, with what differs and what would help.
    """
    named = pair_up(texts)
    check(named)
    pairs: list[Pair] = []
    metrics: list[list[str]] = []
    left_out: list[str] = []
    for pair in named:
        chosen, not_shared = _choose(pair, patterns)
        left_out += not_shared
        # of many published runs some have no number that means anything
        if chosen:
            pairs.append(pair)
            metrics.append(chosen)
    if not any(metrics):
        raise ConfigError(_nothing(named, left_out))
    sides = _sides(pairs, metrics)
    rows = [row for pair, chosen in zip(pairs, metrics, strict=True) for row in question_rows(pair, chosen)]
    return Report(
        cells=[_cell(side, metric) for side, chosen in sides for metric in chosen],
        seeds=_over_seeds(pairs, metrics),
        questions=correct(rows),
        left_out=list(dict.fromkeys(left_out)),
        unsure=list(
            dict.fromkeys(text for each in zip(pairs, metrics, strict=True) for text in doubts(*each))
        ),
    )


def _sides(pairs: Sequence[Pair], metrics: Sequence[Sequence[str]]) -> list[tuple[Side, list[str]]]:
    """Every side once, a baseline of several pairs too, with all that it is compared by."""
    found: dict[str, tuple[Side, dict[str, None]]] = {}
    for pair, chosen in zip(pairs, metrics, strict=True):
        for side in (pair.baseline, pair.side):
            found.setdefault(side.name, (side, {}))[1].update(dict.fromkeys(chosen))
    return [(side, list(chosen)) for side, chosen in found.values()]


def _choose(pair: Pair, patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Metrics to compare, and why others that a pattern matches are not; one that is named is not let go."""
    measured = dict.fromkeys(metric for run in pair.runs for metric in run.metrics)
    wanted = patterns or pair.baseline.about
    is_named = bool(patterns) or pair.is_ours
    if not is_named:
        wanted = [metric for metric in dict.fromkeys((*wanted, *KNOWN_BY)) if metric in measured]
    chosen: dict[str, None] = {}
    left_out = []
    for text in wanted:
        named = text in measured
        found = [text] if named else [metric for metric in measured if fnmatchcase(metric, text)]
        if not found:
            raise ConfigError(f"no run has measured '{text}'; there are {', '.join(measured)}")
        for metric in found:
            if why := _uneven(pair, metric):
                if named and is_named:
                    raise ConfigError(f"{metric} is not averaged over uneven coverage: {why}")
                left_out.append(f"{metric}: {why}")
            else:
                chosen[metric] = None
    if not chosen and is_named:
        raise ConfigError(_nothing([pair], left_out))
    return list(chosen), left_out


def _nothing(pairs: Sequence[Pair], left_out: Sequence[str]) -> str:
    measured = dict.fromkeys(metric for pair in pairs for run in pair.runs for metric in run.metrics)
    untold = "neither spec has a `compare` or an `early_stop`, nor are these runs known by one metric"
    found = "; ".join(left_out) or untold
    return f"nothing to compare: {found}. --metric names one of {', '.join(measured)}"


def _uneven(pair: Pair, metric: str) -> str | None:
    """Why the runs do not all have this metric of as many samples; None: they do, or do not tell."""
    if gaps := [f"{run.name} {why}" for run in pair.runs if (why := run.lacks(metric))]:
        return "; ".join(gaps)
    counts = {n: run.name for run in reversed(pair.runs) if (n := run.metrics[metric].n)}
    if len(counts) > 1:
        if is_over_questions(metric) and pair.has_answers:
            check_questions(pair)
        return "; ".join(f"{name} measured it on {n:,} samples" for n, name in counts.items())
    # two single runs of other lengths are compared, with that said
    for side in (pair.side, pair.baseline):
        labels = {run.labels.get(metric, "final"): run.name for run in reversed(side.runs)}
        if len(labels) > 1:
            return "; ".join(f"{name} has it of {_place(label)}" for label, name in labels.items())
    return None


def _place(label: str) -> str:
    return f"step {int(label):,}" if label.isdecimal() else f"the {label} evaluation"


def _cell(side: Side, metric: str) -> FinalAndPeak:
    counts = [len(run.in_training(metric)) for run in side.runs]
    return FinalAndPeak(
        cell=side.name,
        metric=metric,
        seeds=tuple(run.seed for run in side.runs),
        final=side.cell([metric]).metrics[metric],
        peak=_peak(side.runs, metric, counts),
        evaluations=counts[0] if len(set(counts)) == 1 else 0,
        chosen_by=side.runs[0].chosen_by,
    )


def _peak(runs: Sequence[Run], metric: str, counts: Sequence[int]) -> Metric:
    if not any(counts):
        return void("not evaluated in training")
    if len(set(counts)) > 1:
        return void(f"seeds have {', '.join(map(str, counts))} evaluations")
    direction = better(metric)
    if direction is None:
        return void("neither less nor more is better")
    best = min if direction == "lower" else max
    peaks = [best(run.in_training(metric)) for run in runs]
    return Metric(value=seed_mean(peaks).value, n=len(peaks))


def _over_seeds(pairs: Sequence[Pair], metrics: Sequence[Sequence[str]]) -> list[SeedRow]:
    """Verdicts as a launch's summary has them, corrected over all of this report."""
    asked = [
        {"baseline": pair.baseline.name, "against": [pair.side.name], "metric": metric}
        for pair, chosen in zip(pairs, metrics, strict=True)
        for metric in chosen
    ]
    sides = _sides(pairs, metrics)
    samples = {
        (side.name, metric): [run.value(metric) for run in side.runs]
        for side, chosen in sides
        for metric in chosen
    }
    rows = []
    for verdict in judge(asked, [side.cell(chosen) for side, chosen in sides]):
        if verdict.difference.value is None:
            rows.append(SeedRow(verdict=verdict))
            continue
        both = [samples[name, verdict.metric] for name in (verdict.cell, verdict.baseline)]
        d_z = cohens_d_z(*both)
        needed = None if d_z is None else seeds_for(d_z)
        rows.append(SeedRow(verdict=verdict, d=cohens_d(*both), d_z=d_z, needed=needed))
    return rows
