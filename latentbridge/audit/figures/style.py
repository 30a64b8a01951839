"""How figures look: colours that all can tell apart, captions, and labels beside what they name."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# the text width of the usual conference style, and of a page
COLUMN_IN, PAGE_IN = 5.5, 7.2
# one of two columns on a page
NARROW_IN = 3.3
_widest_in: ContextVar[float] = ContextVar("widest_in", default=PAGE_IN)
# Okabe and Ito's colours stay apart for every kind of colour blindness; their yellow is too light for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#777777"
# a line among many that is there for comparison alone
FAINT: dict[str, Any] = {"color": "#C4C4C4", "linestyle": "-", "linewidth": 0.5, "zorder": 1}
SMALL = 6
# of a line that has a name before it
ROW_IN = 0.16
# a fixed salt and no date: equal results give equal bytes, so a second preserve changes nothing
RC = {
    "font.size": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.hashsalt": "0",
    "svg.fonttype": "none",
    # letters, which can be searched and which publishers accept, not drawings of them
    "pdf.fonttype": 42,
}
# a line of the caption, at its size: characters to the inch, and how high
_PER_INCH, _LINE_IN = 23, 0.1
_CAPTION_SIZE = 5.5
_PERCENT = re.compile(r"(?<=\d) %")
# of so few points each is marked: what lies between was not measured
_FEW = 8
# behind an axis, to the right: where a name's line begins and ends, and where its letters do
_SAMPLE_IN, _NAME_IN = (0.08, 0.24), 0.28


@contextmanager
def at_most(width_in: float) -> Iterator[None]:
    """Figures made meanwhile are no wider; what stands side by side in wider ones is stacked."""
    token = _widest_in.set(width_in)
    try:
        yield
    finally:
        _widest_in.reset(token)


def fitting(width: float) -> float:
    """This width, or all there is."""
    return min(width, _widest_in.get())


def new_figure(caption: str, width: float, height: float, *, stacks: bool = True) -> Figure:
    """An empty figure of this size above its caption; of less width where that is all there is.

    stacks: False where the places of panels tell something, so that it keeps its width
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = fitting(width) if stacks else width
    # a number and its sign stay in one line
    lines = textwrap.wrap(_PERCENT.sub("\N{NO-BREAK SPACE}%", caption), int(_PER_INCH * shown))
    # names at the ends of curves come out a little wider than they were measured
    layout = ConstrainedLayoutEngine(rect=(0.005, 0, 0.98, 1))
    size = (shown, height + _LINE_IN * len(lines))
    if shown < width:
        from latentbridge.audit.figures.narrow import Narrow

        figure: Figure = Narrow(width, height, figsize=size, layout=layout)
    else:
        figure = Figure(figsize=size, layout=layout)
    figure.supxlabel("\n".join(lines), fontsize=_CAPTION_SIZE, color=GREY, x=0.01, ha="left")
    return figure


def markers_of(names: Sequence[Any]) -> dict[Any, str]:
    """A mark for each; they begin again where there are none left."""
    return {name: MARKERS[place % len(MARKERS)] for place, name in enumerate(names)}


def explain_markers(axes: Axes, markers: dict[Any, str], title: str) -> None:
    """A legend of what marks mean, whatever their colour."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=marker, color=GREY, markersize=4, label=str(name))
        for name, marker in markers.items()
    ]
    axes.legend(handles=handles, title=title, frameon=False, fontsize=SMALL, title_fontsize=SMALL)


def looks(names: Sequence[Any], *, may_coincide: bool = False) -> dict[Any, dict[str, str]]:
    """Colour and line of each; lines change where colours begin again.

    may_coincide: lines change each time, so that one shows through the gaps of another that lies upon it
    """
    every = 1 if may_coincide else len(COLOURS)
    return {
        name: {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": LINES[number // every % len(LINES)],
        }
        for number, name in enumerate(names)
    }


def dots(names: Sequence[Any]) -> dict[Any, dict[str, str]]:
    """Colour and mark of each; marks change where colours begin again."""
    return {
        name: {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number // len(COLOURS) % len(MARKERS)],
        }
        for number, name in enumerate(names)
    }


def warm(values: Sequence[float]) -> dict[float, Any]:
    """A colour of each temperature, dark to light by its logarithm."""
    import matplotlib

    low, high = (math.log(bound(values)) for bound in (min, max))
    return {
        value: matplotlib.colormaps["viridis"](0.9 * (math.log(value) - low) / (high - low or 1.0))
        for value in values
    }


def draw_band(axes: Axes, rows: Sequence[dict[str, Any]], **look: Any) -> None:
    """A mean and the range about it, by step; of a faint line the mean alone."""
    steps = [row["step"] for row in rows]
    marks: dict[str, Any] = {"marker": "o", "markersize": 2} if len(steps) <= _FEW else {}
    axes.plot(steps, [row["mean"] for row in rows], **({"linewidth": 1} | marks | look))
    if look["color"] == FAINT["color"]:
        return
    low, high = ([row[bound] for row in rows] for bound in ("low", "high"))
    axes.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)


def draw_interval(axes: Axes, rows: Sequence[dict[str, Any]], x: str, y: str, **look: Any) -> None:
    """Points with the intervals that their rows have, in both directions where x has one too."""
    bars: dict[str, Any] = {}
    for direction, name in (("xerr", x), ("yerr", y)):
        if rows and f"{name}_low" in rows[0]:
            bars[direction] = [
                # a mean of equal values may differ from them in its last digit
                [max(0.0, row[name] - _or(row[f"{name}_low"], row[name])) for row in rows],
                [max(0.0, _or(row[f"{name}_high"], row[name]) - row[name]) for row in rows],
            ]
    settings: dict[str, Any] = {
        "linestyle": "",
        "marker": "o",
        "markersize": 4,
        "linewidth": 1,
        "elinewidth": 0.7,
        "capsize": 1.5,
    }
    axes.errorbar([row[x] for row in rows], [row[y] for row in rows], **bars, **(settings | look))


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _laid_out(axes: Axes) -> Figure:
    """The figure of these axes, with every place decided."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    return figure


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, dict[str, str]]]) -> None:
    """Names at the right of curves, apart from one another, each behind a piece of its line.

    labels: height of the end, name, look
    """
    from matplotlib.lines import Line2D

    figure = _laid_out(axes)
    frame = axes.get_window_extent()
    gap = 1.15 * SMALL / 72 / (frame.height / figure.dpi)
    begins, ends, letters = (1 + inches * figure.dpi / frame.width for inches in (*_SAMPLE_IN, _NAME_IN))
    places = [
        (float(axes.transAxes.inverted().transform(axes.transData.transform((0, y)))[1]), name, look)
        for y, name, look in labels
    ]
    places.sort(key=lambda place: place[0])
    heights = _within(_spread([place[0] for place in places], gap), gap)
    for height, (at, name, look) in zip(heights, places, strict=True):
        lead = {"color": look["color"], "linewidth": 0.4}
        for x, y, own in (
            ((1.0, begins), (at, height), lead),
            ((begins, ends), (height, height), look | {"linewidth": 1}),
        ):
            axes.add_artist(Line2D(x, y, transform=axes.transAxes, clip_on=False, **own))
        axes.annotate(
            name,
            (letters, height),
            xycoords="axes fraction",
            color=look["color"],
            fontsize=SMALL,
            va="center",
            annotation_clip=False,
        )


def _within(heights: Sequence[float], gap: float) -> list[float]:
    """Moved to lie between 0 and 1, where so many at that distance have room; ascending."""
    count = len(heights)
    if count * gap > 1:
        return list(heights)
    lowest = [gap * (number + 0.5) for number in range(count)]
    return [
        min(max(height, low), 1 - lowest[count - 1 - number])
        for number, (height, low) in enumerate(zip(heights, lowest, strict=True))
    ]


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places at least a gap apart, near where they are wanted: neighbours share a middle."""
    groups: list[list[float]] = []
    for place in wanted:
        groups.append([place])
        while len(groups) > 1 and _first(groups[-1], gap) < _last(groups[-2], gap) + gap:
            top = groups.pop()
            groups[-1] += top
    return [_first(group, gap) + gap * number for group in groups for number in range(len(group))]


def _first(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _last(group: Sequence[float], gap: float) -> float:
    return _first(group, gap) + gap * (len(group) - 1)


def label_points(axes: Axes, points: Sequence[Mark]) -> None:
    """Names beside points where they cover no other point, bar or name; a point may have none."""
    scale = _laid_out(axes).dpi / 72
    place = axes.transData.transform
    spots = [tuple(place((mark.x, mark.y))) for mark in points]
    taken = [_box(spot, spot, 3 * scale) for spot in spots]
    for mark in points:
        for x, y in ((mark.x_bar, (mark.y, mark.y)), ((mark.x, mark.x), mark.y_bar)):
            taken.append(_box(tuple(place((x[0], y[0]))), tuple(place((x[1], y[1]))), scale))
    frame = axes.get_window_extent()
    for (px, py), mark in zip(spots, points, strict=True):
        if not mark.name:
            continue
        width, height = 0.58 * SMALL * len(mark.name) * scale, 1.15 * SMALL * scale
        dx, dy, box = _free_place(px, py, width, height, scale, taken, (frame.x0, frame.x1))
        taken.append(box)
        axes.annotate(
            mark.name,
            (mark.x, mark.y),
            (dx / scale, dy / scale),
            textcoords="offset points",
            color=mark.colour,
            fontsize=SMALL,
            va="center",
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.3},
            arrowprops={
                "arrowstyle": "-",
                "color": mark.colour,
                "linewidth": 0.3,
                "shrinkA": 0,
                "shrinkB": 2,
            },
        )


class Mark(NamedTuple):
    """A point to be named, and the ends of its bars."""

    x: float
    y: float
    x_bar: tuple[float, float]
    y_bar: tuple[float, float]
    name: str
    colour: Any

    @classmethod
    def of(cls, row: dict[str, Any], x: str, y: str, name: str, colour: Any) -> Mark:
        """The point of a row whose columns have bounds beside them."""
        bars = [(_or(row[f"{key}_low"], row[key]), _or(row[f"{key}_high"], row[key])) for key in (x, y)]
        return cls(row[x], row[y], bars[0], bars[1], name, colour)


def _box(one: tuple[float, ...], two: tuple[float, ...], margin: float) -> Box:
    (left, right), (low, high) = (sorted(ends) for ends in zip(one, two, strict=True))
    return left - margin, low - margin, right + margin, high + margin


Box = tuple[float, float, float, float]


def _free_place(
    x: float,
    y: float,
    width: float,
    height: float,
    scale: float,
    taken: Sequence[Box],
    sides: tuple[float, float],
) -> tuple[float, float, Box]:
    """Where a name's left end goes from its point, and the box it fills: the nearest of some free places."""
    best: tuple[float, float, float, Box] | None = None
    for distance in (5, 10, 16, 24, 34, 46):
        reach = distance * scale
        for up in (0.0, 1.0, -1.0, 0.5, -0.5):
            for left in (reach, -reach - width, -width / 2):
                dy = up * reach if left != -width / 2 else (reach if up >= 0 else -reach)
                box = (x + left, y + dy - height / 2, x + left + width, y + dy + height / 2)
                cost = sum(_overlap(box, other) for other in taken)
                cost += 1e3 * (max(0.0, sides[0] - box[0]) + max(0.0, box[2] - sides[1]))
                if best is None or cost < best[0]:
                    best = (cost, left, dy, box)
                if cost == 0:
                    return left, dy, box
    assert best is not None
    return best[1:]


def _overlap(one: Box, two: Box) -> float:
    return max(0.0, min(one[2], two[2]) - max(one[0], two[0])) * max(
        0.0, min(one[3], two[3]) - max(one[1], two[1])
    )


def evenly(values: Sequence[Any], most: int) -> list[Any]:
    """Of many the first, the last, and some between."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def grid(count: int, columns: int) -> tuple[int, int]:
    """Rows and columns for so many panels."""
    return math.ceil(count / columns), min(count, columns)


def thousands(axis: Axis) -> None:
    """Ticks as 20k and 3M."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def short(value: float, _: int) -> str:
        for unit, letter in ((1e6, "M"), (1e3, "k")):
            if abs(value) >= unit:
                return f"{value / unit:g}{letter}"
        return f"{value:g}"

    axis.set_major_formatter(FuncFormatter(short))
    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """A line of the axes for each name, from the top."""
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.set_ylim(len(names) - 0.5, -0.5)


def by_update(axes: Axes) -> None:
    """The axis of whole updates."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("update")
