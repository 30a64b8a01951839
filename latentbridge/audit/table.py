"""A launch's summary as text: the fixed-width summary.log, and the same rows for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentbridge.audit.summary import CellRow, Summary, Verdict
from latentbridge.metric import Metric

if TYPE_CHECKING:
    from rich.table import Table

MAX_WIDTH = 150
MAX_NAME = 28  # longer cell and run names are cut here; summary.json has them whole
MAX_REASON = 48

ACCURACY = {
    "bridged": "bridged_accuracy",
    "source alone": "source_alone_accuracy",
    "target alone": "target_alone_accuracy",
    "cut text": "cut_text_accuracy",
    "no source": "no_source_accuracy",
    "shuffled": "shuffled_source_accuracy",
}
RECOVERED = {
    "recovered": "context_recovered",
    "no source": "context_recovered_no_source",
    "shuffled": "context_recovered_shuffled_source",
    "cut text": "context_recovered_cut_text",
    "question/soft": "compression_question",
}


@dataclass(frozen=True)
class Block:
    """A titled table of text cells."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def lines(self) -> list[str]:
        """Title, header, rule and rows; the last column is cut where the line would pass MAX_WIDTH."""
        columns = list(zip(self.header, *self.rows, strict=True))
        widths = [max(len(text) for text in column) for column in columns]
        body = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in (self.header, *self.rows)
        ]
        rule = "-" * min(MAX_WIDTH, max(len(line) for line in body))
        return ["", self.title, _cut(body[0], MAX_WIDTH), rule, *(_cut(line, MAX_WIDTH) for line in body[1:])]


def render(summary: Summary) -> str:
    """The text of summary.log: at most 150 columns, save for the notes at its end."""
    done = sum(run.state == "DONE" for run in summary.runs)
    lines = [f"{summary.launch}: {done} of {len(summary.runs)} runs done", summary.headline]
    for block in blocks(summary):
        lines += block.lines()
    notes = _notes(summary)
    if notes:
        lines += ["", "Notes", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def blocks(summary: Summary) -> list[Block]:
    """Every table of the summary, the ones people look for first."""
    found = [_cell_block(summary)]
    if any(name in cell.metrics for cell in summary.cells for name in RECOVERED.values()):
        found.append(_recovered_block(summary))
    if others := _other_rows(summary):
        found.append(Block("Other metrics", ["cell", "metric", "value [95 % interval]"], others))
    if summary.verdicts:
        found.append(
            Block(
                "Comparisons (Welch's t over seeds, p corrected by Holm over these rows)",
                ["cell", "", "baseline", "metric", "difference [95 % interval]", "p"],
                [_verdict_row(verdict) for verdict in summary.verdicts],
            )
        )
    return [*found, _run_block(summary)]


def terminal_table(summary: Summary) -> Table:
    """The table of cells for a rich console."""
    from rich.table import Table

    block = _cell_block(summary)
    table = Table(title=f"{summary.launch}: {summary.headline}", caption=block.title)
    for name in block.header:
        table.add_column(name)
    for row in block.rows:
        table.add_row(*row)
    return table


def _cell_block(summary: Summary) -> Block:
    shown = {
        head: name for head, name in ACCURACY.items() if any(name in cell.metrics for cell in summary.cells)
    }
    rows = []
    for cell in summary.cells:
        tokens = "-" if cell.soft_tokens is None else str(cell.soft_tokens)
        labels = sorted({run.warm_start or "scratch" for run in cell.runs})
        plain = [_cut(cell.name, MAX_NAME), cell.state, tokens, _cut(" ".join(labels), 20)]
        rows.append([*plain, *_values(cell.metrics, list(shown.values()))])
    title = "Cells: mean over seeds [95 % t interval over seeds; of a single seed, over questions]"
    return Block(title, ["cell", "seeds", "soft", "warm start", *shown], rows)


def _recovered_block(summary: Summary) -> Block:
    rows = []
    for cell in summary.cells:
        claims = [run for run in cell.runs if RECOVERED["recovered"] in run.metrics]
        flagged = sum(run.flag is not None for run in claims)
        verdict = f"{flagged or len(claims)}/{len(claims)} {'FLAGGED' if flagged else 'clear both'}"
        values = _values(cell.metrics, list(RECOVERED.values()))
        rows.append([_cut(cell.name, MAX_NAME), *values, verdict if claims else "-"])
    title = (
        "Context recovered: 0 = the target sees nothing, 1 = the whole question; what the soft tokens replace"
    )
    return Block(title, ["cell", *RECOVERED, "against no source and shuffled"], rows)


def _other_rows(summary: Summary) -> list[list[str]]:
    known = {*ACCURACY.values(), *RECOVERED.values()}
    return [
        [_cut(cell.name, MAX_NAME), name, _brief(metric, interval=True)]
        for cell in summary.cells
        for name, metric in cell.metrics.items()
        if name not in known
    ]


def _verdict_row(verdict: Verdict) -> list[str]:
    names = [_cut(verdict.cell, MAX_NAME), verdict.outcome, _cut(verdict.baseline, MAX_NAME), verdict.metric]
    if verdict.difference.value is None or verdict.p is None:
        return [*names, _cut(verdict.difference.void or "", MAX_REASON), ""]
    return [*names, f"{verdict.difference}", f"{verdict.p:.3g}"]


def _run_block(summary: Summary) -> Block:
    shown = {
        head: name
        for head, name in {"bridged": ACCURACY["bridged"], "recovered": RECOVERED["recovered"]}.items()
        if any(name in run.metrics for run in summary.runs)
    }
    rows = []
    for run in summary.runs:
        values = [
            _brief(run.metrics[name], interval=True) if name in run.metrics else "-"
            for name in shown.values()
        ]
        cause = run.cause.splitlines()[0] if run.cause else ""
        rows.append([_cut(run.name, MAX_NAME), run.state, run.label or "-", *values, cause])
    return Block("Runs (interval over questions)", ["run", "state", "evaluation", *shown, "cause"], rows)


def _values(metrics: dict[str, Metric], names: Sequence[str]) -> list[str]:
    """The first metric with its interval, the others without; "-" where a cell has no such metric."""
    return [
        _brief(metrics[name], interval=position == 0) if name in metrics else "-"
        for position, name in enumerate(names)
    ]


def _brief(metric: Metric, interval: bool) -> str:
    if metric.value is None:
        return "void"
    return str(metric) if interval else f"{metric.value:.3f}"


def _notes(summary: Summary) -> list[str]:
    """Flagged claims, and the reason of every void; a reason that many metrics share is told once."""
    notes = summary.flags
    for cell in summary.cells:
        notes += _void_notes(cell)
    return notes


def _void_notes(cell: CellRow) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, metric in cell.metrics.items():
        if metric.void:
            by_reason.setdefault(metric.void, []).append(name)
    notes = []
    for reason, names in by_reason.items():
        subject = "every metric" if len(names) == len(cell.metrics) else ", ".join(names)
        notes.append(f"void: {cell.name}: {subject}: {reason}")
    return notes


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
