"""What experts take: classes of tokens by expert, bits about the token, and a text in experts' colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from latentbridge.audit.figures.balance import MOST_CELLS, heat, ticks
from latentbridge.audit.figures.sheet import Figure, Row, Sheet, crowd, unique, where, without
from latentbridge.audit.figures.style import (
    COLOURS,
    GREY,
    PAGE_IN,
    ROW_IN,
    SMALL,
    looks,
    name_rows,
    new_figure,
)
from latentbridge.audit.records import Records, RunRecords

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

NOBODY = -1
NOT_KEPT = "no specialisation.json of the first seed"
# light enough for black letters on them
TINTS = (*(f"{colour}66" for colour in COLOURS[:6]), "#F0E442AA", "#77777766")
LINE_CHARACTERS, PIECE_CHARACTERS, PASSAGE_LINES = 108, 9, 3
MOST_TEXTS = 8
# names of more lie upon one another where panels are stacked
MOST_ROWS = 14
# a class that is rarer tells more of chance than of experts
FEWEST_TOKENS = 20


def _kept(records: Records, sheet: Sheet) -> list[tuple[str, RunRecords, dict[str, Any]]]:
    """The first seed of each cell that has counted: experts of other seeds are others."""
    found = []
    for cell in records.mixtures:
        run = cell.runs[0]
        if run.row.state == "DONE" and run.specialisation:
            found.append((cell.name, run, run.specialisation))
    without(records.mixtures, {name for name, _, _ in found}, NOT_KEPT, sheet)
    return found


def _read_classes(records: Records) -> Sheet:
    sheet = Sheet(
        "Share of a class's pairs of the test text that an expert takes (a row of a map adds up to 1). "
        f"Of the first seed of each cell; classes of fewer than {FEWEST_TOKENS} tokens are not drawn."
    )
    for cell, run, told in _kept(records, sheet):
        for layer, found in enumerate(told["layers"]):
            for name, tokens, load in zip(told["classes"], told["tokens"], found["load"], strict=True):
                sheet.rows += [
                    {
                        "cell": cell,
                        "seed": run.row.seed,
                        "layer": layer,
                        "class": name,
                        "tokens": tokens,
                        "expert": expert,
                        "pairs": pairs,
                        "share": pairs / sum(load) if sum(load) else None,
                        "run_id": run.row.id,
                    }
                    for expert, pairs in enumerate(load)
                ]
    known = set(unique(_common(sheet.rows), "cell"))
    sheet.rows = [row for row in sheet.rows if row["cell"] in known]
    without(records.mixtures, known, f"no class of {FEWEST_TOKENS} tokens that experts took", sheet)
    return crowd(sheet, MOST_CELLS)


def _common(rows: Sequence[Row]) -> list[Row]:
    """Rows of classes that can be drawn."""
    return [row for row in rows if row["tokens"] >= FEWEST_TOKENS and row["share"] is not None]


def _panels(rows: Sequence[Row], most: int) -> list[tuple[str, int]]:
    """The first and the last layer of each of the first so many cells."""
    found = []
    for cell in unique(rows, "cell")[:most]:
        layers = unique(where(rows, cell=cell), "layer")
        found += [(cell, layer) for layer in sorted({min(layers), max(layers)})]
    return found


def _plot_classes(rows: Sequence[Row], caption: str) -> Canvas:
    rows = _common(rows)
    panels = _panels(rows, MOST_CELLS)
    lines, columns = -(-len(panels) // 4), 4
    height = 0.14 * len(unique(rows, "class"))
    figure = new_figure(caption, PAGE_IN, 0.3 + lines * (height + 0.42))
    all_axes = figure.subplots(lines, columns, squeeze=False)
    for axes in all_axes.flat[len(panels) :]:
        axes.set_axis_off()
    at_left: list[str] = []
    for number, (cell, layer) in enumerate(panels):
        axes = all_axes.flat[number]
        own = where(rows, cell=cell, layer=layer)
        names = unique(own, "class")
        table = [[row["share"] for row in where(own, **{"class": name})] for name in names]
        drawn = heat(axes, table, 1.0)
        axes.set_title(f"{cell}, layer {layer}")
        axes.set_xticks(ticks(len(table[0])))
        is_named = number % columns == 0 or names != at_left
        axes.set_yticks(range(len(names)), names if is_named else [])
        at_left = names
        if number >= len(panels) - columns:
            axes.set_xlabel("expert")
    figure.colorbar(drawn, ax=all_axes, label="share of the class", fraction=0.02, pad=0.01)
    return figure


def _read_bits(records: Records) -> Sheet:
    sheet = Sheet(
        "Mutual information of a token's first expert with the token and with its class, on the test text, "
        "as a share of the expert's entropy, with Miller and Madow's term; crosses: of experts dealt at "
        "random, where what is above 0 is the estimate's own bias. A dot: a layer of one seed, the first "
        "layer uppermost."
    )
    for cell in records.mixtures:
        for run in cell.runs:
            if run.row.state != "DONE" or not run.specialisation:
                continue
            for layer, found in enumerate(run.specialisation["layers"]):
                for name, part in found["information"].items():
                    if part and part["share"] is not None:
                        scale = part["expert_entropy"]
                        sheet.rows.append(
                            {
                                "cell": cell.name,
                                "seed": run.row.seed,
                                "layer": layer,
                                "about": name,
                                **part,
                                "shuffled_share": part["shuffled"] / scale,
                                "run_id": run.row.id,
                            }
                        )
    without(records.mixtures, {row["cell"] for row in sheet.rows}, "nothing was counted", sheet)
    return crowd(sheet, MOST_ROWS)


def _plot_bits(rows: Sequence[Row], caption: str) -> Canvas:
    cells, layers = unique(rows, "cell")[:MOST_ROWS], sorted(unique(rows, "layer"))
    figure = new_figure(caption, PAGE_IN, 0.8 + ROW_IN * len(cells))
    look = looks(cells)
    titles = {"class": "about the class of the token", "token": "about the token"}
    for axes, (about, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for place, cell in enumerate(cells):
            for row in where(rows, cell=cell, about=about):
                shift = 0.5 * (row["layer"] / max(1, len(layers) - 1) - 0.5)
                axes.plot(
                    row["share"], place + shift, "o", color=look[cell]["color"], markersize=3, alpha=0.8
                )
                axes.plot(row["shuffled_share"], place + shift, "x", color=GREY, markersize=3)
        axes.axvline(0, color=GREY, linewidth=0.5, zorder=0)
        name_rows(axes, cells)
        axes.set_title(title, loc="left")
        axes.set_xlabel("share of the expert's entropy")
    return figure


def _read_text(records: Records) -> Sheet:
    sheet = Sheet(
        "Test text in the colour of each token's first expert, first and last layer, first seed of a cell. "
        "Windows do not follow upon one another. White: no expert took the token."
    )
    for cell, run, told in _kept(records, sheet):
        for window, passage in enumerate(told["passages"]):
            last = len(passage["experts"]) - 1
            for layer, experts in enumerate(passage["experts"]):
                if layer not in (0, last):
                    continue
                sheet.rows += [
                    {
                        "cell": cell,
                        "seed": run.row.seed,
                        "layer": layer,
                        "window": window,
                        "place": place,
                        "token": token,
                        "expert": expert,
                        "run_id": run.row.id,
                    }
                    for place, (token, expert) in enumerate(zip(passage["tokens"], experts, strict=True))
                ]
    return crowd(sheet, MOST_TEXTS)


def _plot_text(rows: Sequence[Row], caption: str) -> Canvas:
    panels = _panels(rows, MOST_TEXTS)
    line_in = 0.115
    height = 0.25 + len(panels) * (line_in * PASSAGE_LINES + 0.21)
    figure = new_figure(caption, PAGE_IN, height, stacks=False)
    colours = _tints(rows)
    all_axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    _explain(figure, colours)
    for axes, (cell, layer) in zip(all_axes, panels, strict=True):
        axes.set_axis_off()
        axes.set_xlim(0, LINE_CHARACTERS)
        axes.set_ylim(PASSAGE_LINES, 0)
        axes.set_title(f"{cell}, layer {layer}", loc="left", pad=2)
    figure.draw_without_rendering()
    for axes, (cell, layer) in zip(all_axes, panels, strict=True):
        _write(figure, axes, where(rows, cell=cell, layer=layer), colours)
    return figure


def _tints(rows: Sequence[Row]) -> dict[int, str]:
    """Of the experts with the smallest numbers; all others are grey."""
    experts = sorted({row["expert"] for row in rows} - {NOBODY})
    return {expert: TINTS[min(place, len(TINTS) - 1)] for place, expert in enumerate(experts)}


def _write(figure: Canvas, axes: Axes, rows: Sequence[Row], colours: dict[int, str]) -> None:
    """Lines of as many letters each, upon the colours of who took them."""
    from matplotlib.colors import to_rgba

    letters = _letters(rows)[: LINE_CHARACTERS * PASSAGE_LINES]
    letters += [("", NOBODY)] * (LINE_CHARACTERS * PASSAGE_LINES - len(letters))
    lines = [letters[start : start + LINE_CHARACTERS] for start in range(0, len(letters), LINE_CHARACTERS)]
    tints = [[to_rgba(colours.get(expert, "white")) for _, expert in line] for line in lines]
    extent = (0, LINE_CHARACTERS, PASSAGE_LINES, 0)
    axes.imshow(tints, extent=extent, aspect="auto", interpolation="nearest")
    size = axes.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    for number, line in enumerate(lines):
        # in short pieces: letters are rounded to whole dots, and would drift away from their colours
        for start in range(0, LINE_CHARACTERS, PIECE_CHARACTERS):
            axes.text(
                start,
                number + 0.55,
                "".join(letter for letter, _ in line[start : start + PIECE_CHARACTERS]),
                # a letter of this font is 0.602 of its size wide
                fontsize=72 * size.width / LINE_CHARACTERS / 0.602,
                family=["DejaVu Sans Mono", "monospace"],
                va="center",
                parse_math=False,
                in_layout=False,
            )


def _letters(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Each letter with its expert, a gap between windows; spaces that no viewer swallows."""
    found: list[tuple[str, int]] = []
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and row["window"] != before["window"]:
            found += [("\u00a0", NOBODY), ("\u2026", NOBODY), ("\u00a0", NOBODY)]
        for letter in row["token"]:
            shown = "\u00b6" if letter == "\n" else "\u00a0" if letter.isspace() else letter
            found.append((shown, row["expert"]))
    return found


def _explain(figure: Canvas, colours: dict[int, str]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=colour, label=f"expert {expert}")
        for expert, colour in list(colours.items())[: len(TINTS) - (len(colours) > len(TINTS))]
    ]
    if len(colours) > len(TINTS):
        handles.append(Patch(facecolor=TINTS[-1], label="any other"))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=SMALL
    )


NEEDS = "mixtures of experts that ended with specialisation.json"
FIGURES = (
    Figure("class_by_expert", _read_classes, _plot_classes, needs=NEEDS),
    Figure("information", _read_bits, _plot_bits, needs=NEEDS),
    Figure("token_colours", _read_text, _plot_text, needs=NEEDS),
)
