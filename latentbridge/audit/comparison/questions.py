"""Answers of two models to the same questions, matched by what was asked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from latentbridge.audit.comparison.sides import Pair
from latentbridge.audit.records import RunRecords
from latentbridge.audit.statistics.corrections import Decided, holm, outcome
from latentbridge.audit.statistics.effects import cohens_h
from latentbridge.audit.statistics.power import questions_for
from latentbridge.audit.statistics.questions import mcnemar_exact, paired_bootstrap
from latentbridge.errors import ConfigError, DamageError
from latentbridge.metric import Metric, better, void
from latentbridge.rundir import find_stored, read_jsonl

# a question, its gold answer, and the how manieth of its kind it is: some sets ask one twice
Key = tuple[str, str, int]
Answers = dict[Key, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SeedTable:
    """Right answers of one pair of runs, and McNemar's exact p, corrected by `correct`."""

    seed: int
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
    asked = [metric for metric in metrics if _reader(metric)]
    if not asked:
        return []
    files = {id(run): run.folder.eval_samples("final") for run in pair.runs}
    if lacking := [run.row.name for run in pair.runs if not find_stored(files[id(run)])]:
        if len(lacking) == len(files):
            return []
        reason = f"no eval_samples_step_final.jsonl in {', '.join(lacking)}"
        names = (pair.side.name, pair.baseline.name)
        return [
            QuestionRow(cell=names[0], baseline=names[1], metric=metric, difference=void(reason))
            for metric in asked
        ]
    answers = [read_answers(run) for run in pair.runs]
    for run, found in zip(pair.runs[1:], answers[1:], strict=True):
        _refuse_others(pair.runs[0], answers[0], run, found)
    return [_row(pair, metric, answers) for metric in asked]


def correct(rows: Sequence[QuestionRow]) -> list[QuestionRow]:
    """The rows with McNemar's p corrected by Holm over all their tables, and decided."""
    adjusted = iter(holm([table.p for row in rows for table in row.tables]))
    return [
        replace(row, tables=tuple(_decide(table, next(adjusted)) for table in row.tables)) for row in rows
    ]


def read_answers(run: RunRecords) -> Answers:
    """The final evaluation's records by question."""
    path, seen, found = run.folder.eval_samples("final"), Counter[tuple[str, str]](), {}
    for number, record in enumerate(read_jsonl(path), start=1):
        if not record.keys() >= {"question", "gold_extracted"}:
            raise DamageError(f"{path}:{number}: a record without question and gold_extracted")
        asked = (str(record["question"]), str(record["gold_extracted"]))
        found[*asked, seen[asked]] = record
        seen[asked] += 1
    if not found:
        raise DamageError(f"{path}: it holds no record")
    return found


def _reader(metric: str) -> Callable[[dict[str, Any]], float] | None:
    """How a metric is read off a record; None where it is no mean over questions."""
    if metric.endswith("_accuracy"):
        key = metric.removesuffix("_accuracy") + "_match"
        return lambda record: float(record[key])
    return (lambda record: float(record[metric])) if metric.endswith("_nll") else None


def _refuse_others(first: RunRecords, asked: Answers, run: RunRecords, found: Answers) -> None:
    names = [f"{each.folder.path.parent.name}/{each.row.name}" for each in (first, run)]
    lines = [
        f"{len(only)} of {len(whole)} questions of {name} are not among the other's, such as "
        f"'{' '.join(next(iter(only))[0].split())[:60]}'"
        for name, whole, other in ((names[0], asked, found), (names[1], found, asked))
        if (only := {key: None for key in whole if key not in other})
    ]
    if lines:
        raise ConfigError(
            f"{names[0]} and {names[1]} were not asked the same: {'; '.join(lines)}. Evaluate both on one "
            "set: `problems` and `eval` of their configs"
        )


def _row(pair: Pair, metric: str, answers: Sequence[Answers]) -> QuestionRow:
    """answers: one for each of pair.runs, of the same questions."""
    row = partial(QuestionRow, cell=pair.side.name, baseline=pair.baseline.name, metric=metric)
    read, keys = _reader(metric), list(answers[0])
    assert read is not None
    try:
        values = [[read(found[key]) for key in keys] for found in answers]
    except (KeyError, TypeError):
        return row(difference=void("not in every record of the questions"))
    for run, of_run in zip(pair.runs, values, strict=True):
        _refuse_disagreement(run, metric, math.fsum(of_run) / len(of_run))
    half = len(pair.seeds)
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


def _refuse_disagreement(run: RunRecords, metric: str, mean: float) -> None:
    """Records and metrics of one evaluation say the same, or one of the files is of another."""
    told = run.row.value(metric)
    if not math.isclose(mean, told, rel_tol=1e-9, abs_tol=1e-12):
        raise DamageError(
            f"{run.folder.eval_samples('final')}: its records give {metric} {mean:.6g}, metrics.jsonl says "
            f"{told:.6g}; they are not of one evaluation. Restore or repeat the run"
        )


def _table(seed: int, mine: Sequence[float], its: Sequence[float]) -> SeedTable:
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
