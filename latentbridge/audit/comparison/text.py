"""A comparison as text, in the tables of a launch's summary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from os.path import commonprefix

from latentbridge.audit.comparison.questions import QuestionRow
from latentbridge.audit.comparison.report import FinalAndPeak, Report, SeedRow
from latentbridge.audit.eval_checks import counted
from latentbridge.audit.statistics.questions import DRAWS
from latentbridge.audit.table import INTERVALS, Block, wrap
from latentbridge.audit.verdicts import TIED, UNJUDGED, difference_text, p_text

OVER_SEEDS = f"By pairs of seeds (paired t; {TIED}; p is Holm's over this table, not the interval)"
BY_QUESTION = (
    "By shared questions, each pair of trained models (McNemar's exact test, Holm's over this table)"
)
OVER_QUESTIONS = (
    f"Over shared questions drawn anew, mean of these seeds ({DRAWS:,} draws, percentile interval)"
)


# of a name, what follows its folder: a cell, a run, or a file
_LAST = re.compile(r"[:/][^:/]*$")


def render(report: Report) -> str:
    """Tables and notes, at most 150 columns wide."""
    short = _Names(row.cell for row in report.cells)
    lines = [f"{short.place}: the folder of every cell below"] if short.place else []
    for block in (
        _cells(report.cells, short),
        _seeds(report.seeds, short),
        *_questions(report.questions, short),
    ):
        lines += block.lines()
    lines += ["", "Notes", *(line for note in _notes(report) for line in wrap(f"- {note}"))]
    return "\n".join(lines).lstrip("\n") + "\n"


class _Names:
    """Names of cells without the folder, where all of them are in one."""

    def __init__(self, names: Iterable[str]) -> None:
        shared = commonprefix([_LAST.sub("/", name) for name in names])  # noqa: RUF071 - cut below
        self.place = shared[: max(shared.rfind("/"), shared.rfind(":"), 0)]

    def __call__(self, name: str) -> str:
        return name[len(self.place) + 1 :] if self.place else name

    def within(self, text: str) -> str:
        """A text with names in it, these without the folder too."""
        return text.replace(f"{self.place}/", "").replace(f"{self.place}:", "") if self.place else text


def _cells(rows: Sequence[FinalAndPeak], short: _Names) -> Block:
    header = ["cell", "metric", "seeds", "final", "peak", "the best of"]
    return Block(
        f"Cells: {INTERVALS}",
        header,
        [
            [
                short(row.cell),
                row.metric,
                str(len(row.seeds)),
                str(row.final),
                "-" if row.peak.value is None else f"{row.peak.value:.3f}",
                (row.peak.void or "")
                if row.peak.value is None
                else counted(range(row.evaluations), "evaluation"),
            ]
            for row in rows
        ],
    )


def _seeds(rows: Sequence[SeedRow], short: _Names) -> Block:
    header = ["cell", "", "baseline", "metric", "p", "d", "d_z", "for 80 %", "difference [95 % interval]"]
    shown = []
    for row in rows:
        verdict = row.verdict
        names = [short(verdict.cell), verdict.outcome, short(verdict.baseline), verdict.metric]
        numbers = [_number(row.d), _number(row.d_z), "-" if row.needed is None else f"{row.needed:,} seeds"]
        found = difference_text(verdict.difference).removeprefix(f"{verdict.cell}: ")
        shown.append([*names, p_text(verdict.p), *numbers, short.within(found)])
    return Block(OVER_SEEDS, header, shown)


def _questions(rows: Sequence[QuestionRow], short: _Names) -> Iterator[Block]:
    tables = [
        [
            short(row.cell),
            table.outcome,
            short(row.baseline),
            row.metric,
            p_text(table.p),
            "-" if table.seed is None else str(table.seed),
            *map(str, (table.both, table.only_cell, table.only_baseline, table.neither)),
        ]
        for row in rows
        for table in row.tables
    ]
    if tables:
        counts = ["seed", "both", "cell only", "baseline only", "neither"]
        yield Block(BY_QUESTION, ["cell", "", "baseline", "metric", "p", *counts], tables)
    if rows:
        header = ["cell", "baseline", "metric", "n", "h", "for 80 %", "difference [95 % interval]"]
        yield Block(
            OVER_QUESTIONS,
            header,
            [
                [
                    *(short(row.cell), short(row.baseline), row.metric, str(row.difference.n or "-")),
                    *(_number(row.h), "-" if row.needed is None else f"{row.needed:,} questions"),
                    difference_text(row.difference),
                ]
                for row in rows
            ],
        )


def _notes(report: Report) -> Iterator[str]:
    yield (
        "what is won by pairs of seeds holds for a cell, whatever its seed; what is won by questions, for "
        "these trained models and no others"
    )
    if any(row.peak.value is not None for row in report.cells):
        yield (
            "a peak is the best of k evaluations by the metric that it reports, so luck counts for it: it is "
            "biased towards the better, the more so the larger k. It is shown, and nothing is tested by it"
        )
    for metric in dict.fromkeys(row.metric for row in report.cells):
        own = [row for row in report.cells if row.metric == metric]
        numbers = {row.evaluations for row in own if row.peak.value is not None}
        if len(numbers) > 1:
            text = ", ".join(map(str, sorted(numbers)))
            yield f"peaks of {metric} are of {text} evaluations, so they do not compare"
        if chosen := {row.evaluations for row in own if row.chosen_by == metric} - {0}:
            best_of = ", ".join(map(str, sorted(chosen)))
            yield (
                f"{metric} chose the weights that were evaluated last: where evaluations in training were of "
                f"the same questions, its final value is the best of {best_of} too"
            )
    yield (
        "for 80 %: pairs of seeds, or questions of one pair of models, that would show this difference four "
        "times in five at 0.05, uncorrected, if it were exactly as seen; d and d_z of few seeds are too large"
    )
    if any(row.verdict.outcome == "-" for row in report.seeds):
        yield UNJUDGED
    yield from (f"left out: {text}" for text in report.left_out)
    yield from report.unsure
    reasons: dict[str, dict[str, None]] = {}
    compared = [(row.verdict.metric, row.verdict.difference) for row in report.seeds]
    compared += [(row.metric, row.difference) for row in report.questions]
    for metric, difference in compared:
        if difference.void:
            reasons.setdefault(difference.void, {})[metric] = None
    yield from (f"void: {', '.join(metrics)}: {reason}" for reason, metrics in reasons.items())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
