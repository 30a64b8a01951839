"""Diagrams of boxes, arrows and frames: rows that tell them, and their drawing; knows of no model."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from latentbridge.audit.figures.sheet import Row, where
from latentbridge.audit.figures.style import COLOURS, GREY, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# a diagram's width, and what its parts take of the height
WIDTH_IN = 3.3
_LINE_IN, _PAD_IN, _GAP_IN = 0.115, 0.09, 0.17
# letters to the inch, with some room
_PER_INCH = 19
# outlines differ too, for eyes and prints without colour
ROLES: dict[str, tuple[str, str, str]] = {
    "data": (GREY, ":", "grey, dotted: what is passed on"),
    "frozen": (COLOURS[5], "--", "blue, dashed: frozen"),
    "trained": (COLOURS[4], "-", "orange: trained"),
    "other": (COLOURS[3], "-.", "pink: trained, of the other kind"),
    "chooses": (COLOURS[2], "-", "green: trained, and chooses"),
}
# one that stands alone: the 3 of Llama-3 is part of a name
_NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:\.\d+)?(?![\w-])(?!\.\d)")


@dataclass
class Diagram:
    """elements: rows of equal keys;  level: counted from the bottom;  x, width: shares of the whole."""

    elements: list[Row] = field(default_factory=list)

    def box(self, name: str, level: int, text: str, role: str, x: float = 0.5, width: float = 0.94) -> None:
        """x: of its middle."""
        self._add("box", name, level, text, role=role, x=x, width=width)

    def arrow(self, start: str, *ends: str, always: bool = True) -> None:
        """From one box to others; not always: dashed, what only some tokens take."""
        for end in ends:
            self._add("arrow", start, 0, "always" if always else "some", to=end)

    def frame(self, name: str, first: int, last: int, text: str) -> None:
        """Around all levels from the first to the last, with its text on top."""
        self._add("frame", name, first, text, to=str(last))

    def _add(self, element: str, name: str, level: int, text: str, **more: Any) -> None:
        blank = {"role": "", "x": "", "width": "", "to": ""}
        self.elements.append({"element": element, "name": name, "level": level, "text": text} | blank | more)

    def shape(self) -> str:
        """Equal where diagrams differ in numbers of their texts alone."""
        return "\n".join(str(row | {"text": _NUMBER.sub("#", row["text"])}) for row in self.elements)


def merged(diagrams: Sequence[Diagram]) -> Diagram:
    """One for several of one shape, whose texts tell all their numbers: `8/16 soft tokens`."""
    first, *_ = diagrams
    together = zip(*(diagram.elements for diagram in diagrams), strict=True)
    return Diagram(
        [
            row | {"text": _all_numbers([r["text"] for r in rows])}
            for row, rows in zip(first.elements, together, strict=True)
        ]
    )


def _all_numbers(texts: Sequence[str]) -> str:
    found = iter(zip(*(_NUMBER.findall(text) for text in texts), strict=True))
    return _NUMBER.sub(lambda _: "/".join(dict.fromkeys(next(found))), texts[0])


def legend(rows: Sequence[Row]) -> str:
    """What the looks of these boxes and arrows mean."""
    roles, arrows = {row["role"] for row in rows}, {row["text"] for row in where(rows, element="arrow")}
    parts = [meaning for role, (*_, meaning) in ROLES.items() if role in roles]
    parts += ["dashed arrow: what only some tokens take"] * ("some" in arrows)
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def height_in(rows: Sequence[Row]) -> float:
    """How high a diagram is drawn."""
    return _places(rows)[1]


def draw_boxes(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the rows of one diagram at its true size, where axes are so large."""
    spans, height = _places(rows)
    axes.set_axis_off()
    axes.set(xlim=(0, WIDTH_IN), ylim=(0, height), aspect="equal", anchor="N")
    for row in where(rows, element="frame"):
        _draw_frame(axes, row, spans)
    boxes = {row["name"]: _Box.of(row, spans[row["level"]]) for row in where(rows, element="box")}
    for row in where(rows, element="arrow"):
        _draw_arrow(axes, boxes[row["name"]], boxes[row["to"]], row["text"] == "always")
    for row in where(rows, element="box"):
        _draw_box(axes, boxes[row["name"]], row)


def wrapped(text: str, width: float) -> list[str]:
    """Lines of a box of this share of the width."""
    return textwrap.wrap(text, max(1, int(_PER_INCH * width * WIDTH_IN)), break_on_hyphens=False)


def _places(rows: Sequence[Row]) -> tuple[dict[int, tuple[float, float]], float]:
    """By level its lower and upper end, and the height of all, in inches."""
    boxes, frames = where(rows, element="box"), where(rows, element="frame")
    spans, top = {}, 0.02
    for level in sorted({row["level"] for row in boxes}):
        lines = max(len(wrapped(row["text"], row["width"])) for row in where(boxes, level=level))
        # the lower line of a frame needs room, and so does what stands under its upper one
        top += 0.6 * _GAP_IN * any(row["level"] == level for row in frames)
        spans[level] = (top, top + _PAD_IN + _LINE_IN * lines)
        top = spans[level][1] + _GAP_IN
        for row in frames:
            if int(row["to"]) == level:
                top += _LINE_IN * len(wrapped(row["text"], 1.0)) + 0.5 * _GAP_IN
    return spans, top - _GAP_IN + 0.02


@dataclass(frozen=True)
class _Box:
    """A box in inches."""

    left: float
    right: float
    low: float
    high: float

    @classmethod
    def of(cls, row: Row, span: tuple[float, float]) -> _Box:
        middle, half = row["x"] * WIDTH_IN, row["width"] * WIDTH_IN / 2
        return cls(middle - half, middle + half, *span)

    @property
    def x(self) -> float:
        return (self.left + self.right) / 2

    @property
    def y(self) -> float:
        return (self.low + self.high) / 2


def _draw_box(axes: Axes, box: _Box, row: Row) -> None:
    from matplotlib.patches import FancyBboxPatch

    colour, line, _ = ROLES[row["role"]]
    size = (box.right - box.left, box.high - box.low)
    look: dict[str, Any] = {
        "facecolor": f"{colour}33",
        "edgecolor": colour,
        "linestyle": line,
        "linewidth": 0.8,
    }
    patch = FancyBboxPatch((box.left, box.low), *size, boxstyle="round,pad=0,rounding_size=0.05", **look)
    patch.set_gid(row["name"])
    axes.add_patch(patch)
    text = "\n".join(wrapped(row["text"], row["width"]))
    axes.text(box.x, box.y, text, ha="center", va="center", fontsize=SMALL, gid=row["name"], linespacing=1.15)


def _draw_frame(axes: Axes, row: Row, spans: dict[int, tuple[float, float]]) -> None:
    from matplotlib.patches import Rectangle

    lines = wrapped(row["text"], 1.0)
    low, high = spans[row["level"]][0] - 0.45 * _GAP_IN, spans[int(row["to"])][1] + 0.3 * _GAP_IN
    height = high - low + _LINE_IN * len(lines)
    look: dict[str, Any] = {"fill": False, "edgecolor": GREY, "linewidth": 0.5}
    axes.add_patch(Rectangle((0.01, low), WIDTH_IN - 0.02, height, **look))
    at = (0.06, low + height - 0.03)
    # an arrow that leaves the frame passes behind its text
    behind = {"facecolor": "white", "linewidth": 0, "pad": 0.5}
    text = "\n".join(lines)
    axes.text(
        *at, text, ha="left", va="top", fontsize=SMALL, color=GREY, linespacing=1.15, bbox=behind, zorder=5
    )


def _draw_arrow(axes: Axes, start: _Box, end: _Box, always: bool) -> None:
    """Upright wherever one box reaches above the middle of the other; along a level from side to side."""
    if start.low == end.low:
        tail, head = (start.right, start.y), (end.left, end.y)
        if start.left > end.right:
            tail, head = (start.left, start.y), (end.right, end.y)
    else:
        tail_x, head_x = start.x, end.x
        if start.left <= end.x <= start.right:
            tail_x = end.x
        elif end.left <= start.x <= end.right:
            head_x = start.x
        tail, head = (tail_x, start.high), (head_x, end.low)
    look: dict[str, Any] = {
        "arrowstyle": "-|>",
        "color": "#444444",
        "linewidth": 0.6,
        "mutation_scale": 5,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    if not always:
        look["linestyle"] = "--"
    axes.annotate("", head, tail, arrowprops=look)
