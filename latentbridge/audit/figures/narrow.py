"""A figure for one of two columns: what stands side by side on a page is stacked."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# a stacked panel is no higher than this: three of them and their caption leave room on a page
HIGHEST_IN = 1.9
# of a legend: a letter's width, that of its mark, and the height of a row
_LETTER_IN, _MARK_IN, _ROW_IN = 0.052, 0.4, 0.13


class Narrow(Figure):
    """Answers as a figure of the width that it was made for, and draws in the one that it has."""

    def __init__(self, made_for_in: float, body_in: float, **settings: Any) -> None:
        """made_for_in, body_in: width and height without caption that its maker had in mind."""
        super().__init__(**settings)
        self._made_for_in, self._body_in = made_for_in, body_in

    def subplots(  # type: ignore[override]
        self,
        nrows: int = 1,
        ncols: int = 1,
        *,
        squeeze: bool = True,
        sharex: Any = False,
        sharey: Any = False,
    ) -> Any:
        """Axes in the shape that is asked for, (nrows, ncols), of which fewer stand beside one another."""
        # a panel may become a little narrower than it was
        across = min(ncols, max(1, int(self.get_figwidth() * ncols / self._made_for_in + 0.2)))
        lines = -(-nrows * ncols // across)
        if lines > nrows:
            body_in = lines * min(self._body_in / nrows, HIGHEST_IN)
            self.set_figheight(self.get_figheight() + body_in - self._body_in)
        made = super().subplots(lines, across, squeeze=False).ravel()
        for spare in made[nrows * ncols :]:
            spare.remove()
        panels = made[: nrows * ncols].reshape(nrows, ncols)
        _share(panels, sharex, "col", Axes.sharex)
        _share(panels, sharey, "row", Axes.sharey)
        return panels.squeeze()[()] if squeeze else panels

    def legend(self, *what: Any, ncols: int = 1, **settings: Any) -> Any:
        """In fewer columns where labels are long; the figure grows by the rows that come on top."""
        labels = what[1] if len(what) > 1 else [handle.get_label() for handle in settings["handles"]]
        column_in = _MARK_IN + _LETTER_IN * max(len(str(label)) for label in labels)
        fitting = min(ncols, max(1, int(self.get_figwidth() / column_in)))
        rows, planned = (-(-len(labels) // columns) for columns in (fitting, ncols))
        self.set_figheight(self.get_figheight() + _ROW_IN * (rows - planned))
        return super().legend(*what, ncols=fitting, **settings)


def _share(panels: np.ndarray[Any, Any], shared: Any, line: str, share: Any) -> None:
    """What Figure.subplots does by line or for all, but every panel keeps its numbers."""
    if shared in (False, "none"):
        return
    groups = [panels.ravel()] if shared in (True, "all") else panels.T if line == "col" else panels
    for first, *others in groups:
        for other in others:
            share(other, first)
