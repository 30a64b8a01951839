"""Tables of a launch as Markdown and LaTeX: main_results, ablations and compression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from latentbridge.audit.table import ACCURACY, ADAPTERS, LANGUAGE, RECOVERED
from latentbridge.audit.verdicts import TIED, p_text
from latentbridge.errors import ConfigError
from latentbridge.paper.quote import Quote
from latentbridge.paper.results import LaunchResults
from latentbridge.paper.trace import Number

Cell = str | Number

NAMES = ("main_results", "ablations", "compression")
# the first of these that a launch has any of
MAIN: tuple[dict[str, str], ...] = (
    {
        "answers through the bridge": ACCURACY["bridged"],
        "context recovered": RECOVERED["recovered"],
        "no source": RECOVERED["no source"],
        "other problem's": RECOVERED["shuffled"],
        "question cut": RECOVERED["cut text"],
    },
    {
        "test nats per answer token": ADAPTERS["test nats/token"],
        "base alone": ADAPTERS["base"],
        "% of all activated": ADAPTERS["% of all activated"],
    },
    {
        "test bits per byte": LANGUAGE["test bits/byte"],
        "test nats per token": LANGUAGE["test nats/token"],
        "perplexity": LANGUAGE["perplexity"],
        "accuracy": LANGUAGE["accuracy"],
    },
)
# what tells adapters from other language models
_TELLS = (ACCURACY["bridged"], ADAPTERS["base"], LANGUAGE["test nats/token"])
COMPRESSION = {
    "soft tokens": "soft_tokens",
    "question / soft": "compression_question",
    "prompt / soft": "compression_prompt",
    "context recovered": RECOVERED["recovered"],
    "answers": ACCURACY["bridged"],
    "answers, question cut as short": ACCURACY["cut text"],
}

# letters of a line of an article in 10 pt
_LINE = 80


@dataclass(frozen=True)
class Table:
    """Rows as long as the header; a Number keeps its link in Markdown, and its id in a comment of LaTeX."""

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def markdown(self) -> str:
        """A pipe table, without the caption."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)

    def latex(self) -> str:
        r"""A floating table; takes \usepackage{booktabs,graphicx}."""
        ids = " ".join(cell.id for row in self.rows for cell in row if isinstance(cell, Number))
        alignment = "".join(
            "r" if any(isinstance(cell, Number) for cell in column) else "l"
            for column in zip(*self.rows, strict=True)
        )
        plain = [[c.text if isinstance(c, Number) else c for c in row] for row in self.rows]
        body = [_latex_row(row) for row in plain]
        letters = sum(max(map(len, column)) + 2 for column in zip(self.header, *plain, strict=True))
        # made as wide as the page where it would be wider
        start, stop = ([r"  \resizebox{\linewidth}{!}{%"], ["  }"]) if letters > _LINE else ([], [])
        return "\n".join(
            [
                f"% {self.name}: numbers.json has run id, file and sha256 of {ids}",
                r"\begin{table}[t]",
                r"  \centering",
                rf"  \caption{{{escape(self.caption)}}}",
                rf"  \label{{tab:{self.name}}}",
                *start,
                rf"  \begin{{tabular}}{{{alignment}}}",
                r"    \toprule",
                f"    {_latex_row(self.header)}",
                r"    \midrule",
                *(f"    {line}" for line in body),
                r"    \bottomrule",
                r"  \end{tabular}",
                *stop,
                r"\end{table}",
                "",
            ]
        )


def standard(name: str, launch: LaunchResults, quote: Quote) -> Table | None:
    """One of NAMES; None where the launch has nothing for it."""
    makers = {"main_results": _main_results, "ablations": _ablations, "compression": _compression}
    if name not in makers:
        raise ConfigError(f"no table '{name}'; known: {', '.join(NAMES)}")
    return makers[name](launch, quote)


def _main_results(launch: LaunchResults, quote: Quote) -> Table | None:
    known = {metric for cell in launch.records.cells for metric in cell.row.metrics}
    columns = next((main for main, tell in zip(MAIN, _TELLS, strict=True) if tell in known), None)
    if columns is None:
        return None
    columns = {head: metric for head, metric in columns.items() if metric in known}
    rows = [
        [
            cell.name,
            *(
                _cell(quote, launch, cell.name, metric, interval=not place)
                for place, metric in enumerate(columns.values())
            ),
        ]
        for cell in launch.records.cells
    ]
    caption = f"{launch.name}: mean over seeds, the first column with its 95 % interval."
    return Table("main_results", caption, ["cell", *columns], rows)


def _ablations(launch: LaunchResults, quote: Quote) -> Table | None:
    rows: list[list[Cell]] = []
    for verdict in launch.records.summary.verdicts:
        names = (f"{launch.name}:{verdict.cell}", f"{launch.name}:{verdict.baseline}", verdict.metric)
        difference: Cell = "void" if verdict.is_void else quote.difference(*names)
        numbers = [difference, p_text(None) if verdict.p is None else quote.p(*names)]
        rows.append([verdict.cell, verdict.baseline, verdict.metric, *numbers, verdict.outcome])
    if not rows:
        return None
    caption = (
        f"{launch.name}: comparisons that the spec stated before the run. Difference with its 95 % interval; "
        f"p over seeds, by Holm over all of them; {TIED}."
    )
    return Table("ablations", caption, ["cell", "against", "metric", "difference", "p", "outcome"], rows)


def _compression(launch: LaunchResults, quote: Quote) -> Table | None:
    cells = [cell for cell in launch.records.cells if "compression_question" in cell.row.metrics]
    if not cells:
        return None
    rows: list[list[Cell]] = [
        [
            cell.name,
            str(cell.row.soft_tokens or "-"),
            *(_cell(quote, launch, cell.name, metric) for metric in list(COMPRESSION.values())[1:]),
        ]
        for cell in cells
    ]
    caption = (
        f"{launch.name}: tokens of the question, and of the whole prompt, to one soft token; below 1 nothing "
        "is compressed."
    )
    return Table("compression", caption, ["cell", *COMPRESSION], rows)


def _cell(quote: Quote, launch: LaunchResults, cell: str, metric: str, interval: bool = False) -> Cell:
    found = launch.records.summary.cells
    metrics = next(row.metrics for row in found if row.name == cell)
    if metric not in metrics:
        return "-"
    if metrics[metric].value is None:
        return "void"
    address = f"{launch.name}:{cell}"
    return quote.interval(address, metric) if interval else quote.value(address, metric)


def _plain(cell: Cell) -> str:
    return cell.markdown if isinstance(cell, Number) else cell.replace("|", r"\|")


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(escape(cell) for cell in cells) + r" \\"


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "α": r"$\alpha$",
}


def escape(text: str) -> str:
    """Text as LaTeX prints it; a minus before a digit becomes one."""
    text = "".join(_SPECIAL.get(character, character) for character in text)
    return re.sub(r"(?<![\w\]])-(?=\d)", "$-$", text)
