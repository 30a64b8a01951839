"""Answers of two models to the same questions, matched by what was asked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from latentbridge.audit.comparison.answers import is_over_questions
from latentbridge.audit.comparison.checks import check_questions
from latentbridge.audit.comparison.runs import Run
from latentbridge.audit.comparison.sides import Pair
from latentbridge.audit.statistics.corrections import Decided, holm, outcome
from latentbridge.audit.statistics.effects import cohens_h
from latentbridge.audit.statistics.power import questions_for
from latentbridge.audit.statistics.questions import mcnemar_exact, paired_bootstrap
from latentbridge.errors import DamageError
from latentbridge.metric import Metric, better, void


@dataclass(frozen=True, kw_only=True)
class SeedTable:
    """Right answers of one pair of runs, and McNemar's exact p, corrected by `correct`.

    seed: None where it is not told, or not one
    """

    seed: int | None
    both: int
    only_cell: int
    only_baseline: int
    neither: int
    p: float
    outcome: Decided = "tied"


@dataclass(frozen=True, kw_only=True)
class QuestionRow:
    """One metric over the questions that both sides were asked.

    difference: mean over seeds, then over questions that are drawn anew; n counts questions
    tables, h, needed: of right answers only, and none of a control's, by which nobody wins
    """

    cell: str
    baseline: str
    metric: str
    difference: Metric
    tables: tuple[SeedTable, ...] = ()
    h: float | None = None
    needed: int | None = None


def question_rows(pair: Pair, metrics: Sequence[str]) -> list[QuestionRow]:
    """A row for every metric that is a mean over questions; none where nothing was asked."""
    asked = [metric for metric in metrics if is_over_questions(metric)]
    if not asked:
        return []
    row = partial(QuestionRow, cell=pair.side.name, baseline=pair.baseline.name)
    if lacking := [run.name for run in pair.runs if run.answers is None]:
        if len(lacking) == len(pair.runs):
            return []
        reason = f"no eval_samples_step_*.jsonl in {', '.join(lacking)}"
        return [row(metric=metric, difference=void(reason)) for metric in asked]
    check_questions(pair)
    if same := [f"{name} of {mine.name}" for mine, its in pair.matched if (name := mine.shares(its))]:
        reason = f"identical files: {', '.join(same)} and that of its partner are one, byte for byte"
        return [row(metric=metric, difference=void(reason)) for metric in asked]
    return [_row(pair, metric) for metric in asked]


def correct(rows: Sequence[QuestionRow]) -> list[QuestionRow]:
    """The rows with McNemar's p corrected by Holm over all their tables, and decided."""
    adjusted = iter(holm([table.p for row in rows for table in row.tables]))
    return [
        replace(row, tables=tuple(_decide(table, next(adjusted)) for table in row.tables)) for row in rows
    ]


def _row(pair: Pair, metric: str) -> QuestionRow:
    row = partial(QuestionRow, cell=pair.side.name, baseline=pair.baseline.name, metric=metric)
    keys = list(pair.runs[0].asked.records)
    try:
        values = [run.asked.values(metric, keys) for run in pair.runs]
    except DamageError as error:
        return row(difference=void(str(error)))
    for run, of_run in zip(pair.runs, values, strict=True):
        _refuse_disagreement(run, metric, math.fsum(of_run) / len(of_run))
    half = len(pair.matched)
    mine, its = values[:half], values[half:]
    # by question over seeds: it is questions that are drawn anew
    means = [[math.fsum(column) / half for column in zip(*part, strict=True)] for part in (mine, its)]
    difference = paired_bootstrap(means[0], means[1])
    if not metric.endswith("_accuracy") or better(metric) is None:
        return row(difference=difference)
    tables = tuple(_table(*of_seed) for of_seed in zip(pair.seeds, mine, its, strict=True))
    asked = half * len(keys)
    rates = [sum(getattr(table, only) for table in tables) / asked for only in ("only_cell", "only_baseline")]
    shares = [math.fsum(part) / len(keys) for part in means]
    return row(difference=difference, tables=tables, h=cohens_h(*shares), needed=questions_for(*rates))


def _refuse_disagreement(run: Run, metric: str, mean: float) -> None:
    """Records and metrics of one evaluation say the same, or one of the files is of another."""
    told = run.value(metric)
    if not math.isclose(mean, told, rel_tol=1e-9, abs_tol=1e-12):
        raise DamageError(
            f"{run.answers}: its records give {metric} {mean:.6g}, metrics.jsonl says "
            f"{told:.6g}; they are not of one evaluation. Restore or repeat the run"
        )


def _table(seed: int | None, mine: Sequence[float], its: Sequence[float]) -> SeedTable:
    counts = Counter(zip(mine, its, strict=True))
    only_cell, only_baseline = counts[1.0, 0.0], counts[0.0, 1.0]
    return SeedTable(
        seed=seed,
        both=counts[1.0, 1.0],
        only_cell=only_cell,
        only_baseline=only_baseline,
        neither=counts[0.0, 0.0],
        p=mcnemar_exact(only_cell, only_baseline),
    )


def _decide(table: SeedTable, p: float) -> SeedTable:
    ahead = table.only_cell - table.only_baseline
    return replace(table, p=p, outcome=outcome(ahead, p, lower_is_better=False))
