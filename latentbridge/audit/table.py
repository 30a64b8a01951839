"""A launch's summary as text: the fixed-width summary.log."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from latentbridge.audit.summary import CellRow, Summary
from latentbridge.audit.verdicts import TIED, UNJUDGED, Verdict, difference_text, p_text
from latentbridge.metric import Metric, void

MAX_WIDTH = 150
MIN_NAME, MAX_NAME = 20, 44
# cut in the middle where they must be: names of a grid begin alike, and differ at their ends
NAME_COLUMNS = ("cell", "baseline", "run")
# a launch of this many runs lists only those that are not done
MANY_RUNS = 24

INTERVALS = "mean over seeds [95 % t interval over seeds; of a single seed, over its samples]"

COMPARISONS = (
    "Comparisons by t of pairs of seeds, Welch's where cells differ in seeds "
    f"({TIED}; p is Holm's, not the interval)"
)

ACCURACY = {
    "bridged": "bridged_accuracy",
    "source alone": "source_alone_accuracy",
    "target alone": "target_alone_accuracy",
    "cut text": "cut_text_accuracy",
    "cascade": "cascade_accuracy",
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
LANGUAGE = {
    "test bits/byte": "test_bits_per_byte",
    "val": "val_bits_per_byte",
    "test nats/token": "test_nll",
    "perplexity": "test_perplexity",
    "accuracy": "test_accuracy",
}
ROUTERS = {
    "demand CV": "test_demand_cv",
    "max vio": "test_max_vio",
    "dead": "test_dead_experts",
    "gini": "test_gini",
    "experts/token": "test_experts_per_token",
    "confidence": "test_confidence",
    "entropy": "test_entropy",
    "class bits": "test_class_information",
    "token bits": "test_token_information",
}
# of adapters in a frozen base: what is reached, and what a token activates for it
ADAPTERS = {
    "test nats/token": "test_nll",
    "base": "test_base_nll",
    "trained": "trained_parameters",
    "activated": "activated_parameters",
    "% of all activated": "activated_percent",
    "load CV": "test_demand_cv",
}
COUNTS = ("trained_parameters", "activated_parameters")
# by method, and for the bridge what it saves of the target's cache
INFERENCE = {"first token s": "ttft_s", "each further ms": "tpot_s", "cache MiB": "kv_mib"}
SAVED = "kv_saved_mib"
# what the columns are made of, or say of another text; summary.json has them
ONLY_IN_JSON = {
    *(name.replace("test_", "val_") for name in (*LANGUAGE.values(), *ROUTERS.values())),
    "val_base_nll",
    "bridged_nll",
    "shuffled_source_nll",
    "no_source_nll",
    "no_context_nll",
    "full_text_nll",
    "cut_text_nll",
    "compression_prompt",
}


@dataclass(frozen=True)
class Block:
    """A titled table of text cells."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def lines(self) -> list[str]:
        """Title, header, rule and rows, at most MAX_WIDTH wide; without rows, the title alone."""
        if not self.rows:
            return ["", self.title]
        rows = self._with_names_cut()
        widths = [max(len(text) for text in column) for column in zip(*rows, strict=True)]
        body = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        rule = "-" * min(MAX_WIDTH, max(len(line) for line in body))
        return ["", self.title, _cut(body[0], MAX_WIDTH), rule, *(_cut(line, MAX_WIDTH) for line in body[1:])]

    def _with_names_cut(self) -> list[list[str]]:
        """Header and rows; names get the width that numbers leave, the last column what is left then."""
        rows = [self.header, *self.rows]
        named = [head in NAME_COLUMNS for head in self.header]
        widths = [max(len(text) for text in column) for column in zip(*rows, strict=True)]
        widths[-1] = len(self.header[-1])
        taken = sum(width + 2 for width, is_name in zip(widths, named, strict=True) if not is_name)
        room = (MAX_WIDTH - taken) // max(1, sum(named)) - 2
        limit = max(MIN_NAME, min(MAX_NAME, room))
        return [
            [_cut_middle(text, limit) if is_name else text for text, is_name in zip(row, named, strict=True)]
            for row in rows
        ]


def render(summary: Summary) -> str:
    """The text of summary.log, at most 150 columns wide."""
    lines = [*wrap(f"{summary.launch}: {summary.progress}"), *wrap(summary.headline)]
    for block in blocks(summary):
        lines += block.lines()
    if found := notes(summary):
        lines += ["", "Notes", *(line for note in found for line in wrap(f"- {note}"))]
    return "\n".join(lines) + "\n"


def blocks(summary: Summary) -> list[Block]:
    """Every table of the summary, the ones people look for first."""
    found = [_cell_block(summary)]
    if any(name in cell.metrics for cell in summary.cells for name in RECOVERED.values()):
        found.append(_recovered_block(summary))
    for title, columns in (
        (f"Language: {INTERVALS}", LANGUAGE),
        ("Routers, on the test text: load before anything is dropped, means over layers and seeds", ROUTERS),
    ):
        if any(name in cell.metrics for cell in summary.cells for name in columns.values()):
            rows = [[cell.name, *_values(cell.metrics, list(columns.values()))] for cell in summary.cells]
            found.append(Block(title, ["cell", *columns], rows))
    if rates := [(cell.name, cell.tokens_per_s) for cell in summary.cells if cell.tokens_per_s]:
        rows = [[name, *(f"{rate:,.0f}" for rate in tenths.values())] for name, tenths in rates]
        title = "Training: tokens a second over log records, without evaluations and checkpoints"
        title += "; of shared cards" if any(cell.to_a_card > 1 for cell in summary.cells) else ""
        found.append(Block(title, ["cell", "p10", "p50", "p90"], rows))
    if any(ADAPTERS["trained"] in cell.metrics for cell in summary.cells):
        found.append(_adapters_block(summary))
    if inference := _inference_rows(summary):
        found.append(
            Block(
                "Inference, one problem at a time: with all that comes before the first token",
                ["cell", "method", *INFERENCE, "saved MiB"],
                inference,
            )
        )
    if others := _other_rows(summary):
        found.append(
            Block(f"Other metrics: {INTERVALS}", ["cell", "metric", "value [95 % interval]"], others)
        )
    if summary.verdicts:
        found.append(
            Block(
                COMPARISONS,
                ["cell", "", "baseline", "metric", "by", "p", "difference [95 % interval]"],
                [_verdict_row(verdict) for verdict in summary.verdicts],
            )
        )
    return [*found, _run_block(summary)]


def notes(summary: Summary) -> list[str]:
    """Flags of runs, who was chosen, and the reason of every void; what many share is told once."""
    chosen = dict.fromkeys(why for verdict in summary.verdicts for why in verdict.chosen)
    found = [*summary.flags, *(f"chosen: {why}" for why in chosen)]
    found += [UNJUDGED] if any(verdict.outcome == "-" for verdict in summary.verdicts) else []
    shared = [run.to_a_card for run in summary.runs if run.to_a_card > 1 and run.tokens_per_s]
    if shared:
        found.append(
            f"shared: {len(shared)} runs had a card, or a machine without one, with others, up to "
            f"{max(shared)} at once: their tokens a second compare with nothing"
        )
    for cell in summary.cells:
        found += _void_notes(cell)
    return found


def _cell_block(summary: Summary) -> Block:
    shown = {
        head: name for head, name in ACCURACY.items() if any(name in cell.metrics for cell in summary.cells)
    }
    rows = []
    for cell in summary.cells:
        tokens = "-" if cell.soft_tokens is None else str(cell.soft_tokens)
        labels = sorted({run.warm_start or "scratch" for run in cell.runs})
        plain = [cell.name, cell.state, tokens, _cut_middle(" ".join(labels), MIN_NAME)]
        rows.append([*plain, *_values(cell.metrics, list(shown.values()))])
    title = f"Cells: accuracy, {INTERVALS}" if shown else "Cells"
    heads = list(shown)
    if "cascade" in shown:
        # a column more than launches had before it; names keep their width this way
        heads = [head.removesuffix(" alone") for head in heads]
    return Block(title, ["cell", "seeds", "soft", "warm start", *heads], rows)


def _recovered_block(summary: Summary) -> Block:
    rows = []
    for cell in summary.cells:
        claims = [run for run in cell.runs if RECOVERED["recovered"] in run.metrics]
        flagged = sum(run.flag is not None for run in claims)
        verdict = f"{flagged or len(claims)}/{len(claims)} {'FLAGGED' if flagged else 'clear both'}"
        values = _values(cell.metrics, list(RECOVERED.values()))
        rows.append([cell.name, *values, verdict if claims else "-"])
    title = (
        "Context recovered: 0 = the target sees nothing, 1 = the whole question; what the soft tokens replace"
    )
    return Block(title, ["cell", *RECOVERED, "against no source and shuffled"], rows)


def _adapters_block(summary: Summary) -> Block:
    """Cells by what a token activates, the cheapest first: down the table nats should fall."""
    rows = []
    for cell in sorted(summary.cells, key=lambda cell: _activated(cell.metrics)):
        values = _values(cell.metrics, list(ADAPTERS.values()))
        for place, name in enumerate(ADAPTERS.values()):
            metric = cell.metrics.get(name)
            if name in COUNTS and metric is not None and metric.value is not None:
                values[place] = f"{metric.value:,.0f}"
        rows.append([cell.name, *values])
    title = "Adapters: what answers cost against the share of all activated parameters that is trained"
    return Block(title, ["cell", *ADAPTERS], rows)


def _activated(metrics: dict[str, Metric]) -> float:
    value = metrics.get("activated_percent", void("not measured")).value
    return math.inf if value is None else value


def _inference_rows(summary: Summary) -> list[list[str]]:
    rows = []
    for cell in summary.cells:
        found = cell.metrics
        for method in (name.removesuffix("_ttft_s") for name in found if name.endswith("_ttft_s")):
            first, further, cache = (
                found.get(f"{method}_{quantity}", void("")) for quantity in INFERENCE.values()
            )
            # a token takes milliseconds, of which three digits of a second show little
            scaled = further if further.value is None else replace(further, value=1e3 * further.value)
            saved = found.get(SAVED) if method == "bridged" else None
            shown = [_brief(value, interval=False) for value in (first, scaled, cache)]
            rows.append([cell.name, method, *shown, "-" if saved is None else _brief(saved, interval=False)])
    return rows


def _other_rows(summary: Summary) -> list[list[str]]:
    columns = (ACCURACY, RECOVERED, LANGUAGE, ROUTERS, ADAPTERS)
    known = {SAVED, *ONLY_IN_JSON}.union(*(column.values() for column in columns))
    timed = tuple(f"_{quantity}" for quantity in INFERENCE.values())
    return [
        [cell.name, name, _brief(metric, interval=True)]
        for cell in summary.cells
        for name, metric in cell.metrics.items()
        if name not in known and not name.endswith(timed)
    ]


def _verdict_row(verdict: Verdict) -> list[str]:
    names = [verdict.cell, verdict.outcome, verdict.baseline, verdict.metric]
    return [*names, verdict.by or "-", p_text(verdict.p), difference_text(verdict.difference)]


def _run_block(summary: Summary) -> Block:
    """Every run; of many, those that are not done."""
    count = len(summary.runs)
    listed = [run for run in summary.runs if count < MANY_RUNS or run.state != "DONE"]
    title = "Runs [95 % interval over questions]"
    if len(listed) < count:
        left = f"the {len(listed)} of {count} that are not done" if listed else f"all {count} are done"
        title = f"Runs: {left}; {summary.launch}/summary.json has every run"
    shown = {
        head: name
        for head, name in {"bridged": ACCURACY["bridged"], "recovered": RECOVERED["recovered"]}.items()
        if any(name in run.metrics for run in listed)
    }
    rows = []
    for run in listed:
        values = [
            _brief(run.metrics[name], interval=True) if name in run.metrics else "-"
            for name in shown.values()
        ]
        cause = run.cause.splitlines()[0] if run.cause else ""
        rows.append([run.name, run.state, run.label or "-", *values, cause])
    return Block(title, ["run", "state", "evaluation", *shown, "cause"], rows)


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


def _cut_middle(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return text[:head] + "…" + text[head + 1 - width :]


def wrap(text: str) -> list[str]:
    """Lines of at most MAX_WIDTH, all but the first indented."""
    return textwrap.wrap(text, MAX_WIDTH, subsequent_indent="  ", break_on_hyphens=False)
