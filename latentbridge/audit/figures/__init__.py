"""Every figure of a launch that has the data for it: PDF, PNG, SVG and the CSV that it is drawn from."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from latentbridge.audit.figures import (
    adapters,
    architecture,
    balance,
    capacity,
    curves,
    frontier,
    hybrids,
    inference,
    layer_grid,
    layer_routing,
    schedules,
    soft_tokens,
    specialisation,
    stability,
    temperature,
    utilisation,
)
from latentbridge.audit.figures.sheet import Figure
from latentbridge.audit.figures.style import PAGE_IN, RC, at_most
from latentbridge.audit.records import Records, read_records
from latentbridge.config import did_you_mean, listed
from latentbridge.errors import ConfigError
from latentbridge.rundir import write_atomic

log = logging.getLogger(__name__)

FOLDER = "figures"
SUFFIXES = ("pdf", "png", "svg")
DPI = 300
MISSING = "no figures: matplotlib is missing; pip install 'latentbridge[report]'"
# matplotlib writes the time into some of them, where equal results are to give equal bytes
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
RATE = "tokens_per_s"

FIGURES: tuple[Figure, ...] = (
    *soft_tokens.FIGURES,
    *stability.FIGURES,
    *inference.FIGURES,
    *layer_grid.FIGURES,
    *frontier.FIGURES,
    *curves.FIGURES,
    *balance.FIGURES,
    *specialisation.FIGURES,
    *temperature.FIGURES,
    *schedules.FIGURES,
    *utilisation.FIGURES,
    *capacity.FIGURES,
    *adapters.FIGURES,
    *layer_routing.FIGURES,
    *hybrids.FIGURES,
    *architecture.FIGURES,
)


def draw(
    launch_folder: Path,
    out: Path | None = None,
    only: Sequence[str] = (),
    suffixes: Sequence[str] = SUFFIXES,
    widest_in: float = PAGE_IN,
) -> list[Path]:
    """Write OUT/NAME.{csv,...} of every figure, or of some, that the launch has data for; returns them.

    out: LAUNCH/figures where not told;  widest_in: where figures are to stand
    Cells that lack a number are left out and named in the caption. One that cannot be drawn does not cost the
    others: what failed is raised together at the end. Without matplotlib there is the CSV alone.
    """
    folder = out or launch_folder / FOLDER
    chosen = [known(name) for name in only] or FIGURES
    records = read_records(launch_folder)
    written: list[Path] = []
    failed: list[Exception] = []
    for figure in chosen:
        try:
            for suffix, content in render(figure, records, suffixes, widest_in).items():
                folder.mkdir(parents=True, exist_ok=True)
                written.append(folder / f"{figure.name}.{suffix}")
                write_atomic(written[-1], content)
        except Exception as error:
            error.add_note(f"of figure {figure.name}")
            failed.append(error)
    if written and all(path.suffix == ".csv" for path in written):
        log.warning("%s: %s", records.summary.launch, MISSING)
    if failed:
        raise ExceptionGroup(f"{launch_folder}: {len(failed)} figures could not be drawn", failed)
    return written


def known(name: str) -> Figure:
    """The figure of this name; ConfigError where there is none."""
    figures = {figure.name: figure for figure in FIGURES}
    if name not in figures:
        hint = did_you_mean(name, tuple(figures))
        raise ConfigError(f"no figure '{name}'; {hint}Known: {listed(figures, len(figures))}")
    return figures[name]


def render(
    figure: Figure, records: Records, suffixes: Sequence[str] = SUFFIXES, widest_in: float = PAGE_IN
) -> dict[str, str | bytes]:
    """The CSV of one figure and its drawings, by suffix; empty where the launch has no data for it.

    The CSV alone without matplotlib.
    """
    sheet = figure.read(records)
    if not sheet.rows:
        return {}
    most = max(cell.row.to_a_card for cell in records.cells)
    if most > 1 and any(RATE in (*row, row.get("metric")) for row in sheet.rows):
        shared = f"Up to {most} runs had a card together: tokens per second compare with nothing."
        sheet.about = f"{sheet.about.strip()} {shared}"
    drawings: dict[str, str | bytes] = {"csv": sheet.as_csv()}
    try:
        import matplotlib
    except ImportError:
        return drawings
    with matplotlib.rc_context(RC), at_most(widest_in):
        canvas = figure.plot(sheet.rows, sheet.caption(records.summary.launch))
        # places are decided once, for all files
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")
        for suffix in suffixes:
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=suffix, dpi=DPI, metadata=_UNDATED.get(suffix, {}))
            drawing = buffer.getvalue()
            drawings[suffix] = number_clips(drawing) if suffix == "svg" else drawing
    return drawings


def number_clips(svg: bytes) -> bytes:
    """Clip paths under numbers in their order: matplotlib names some after addresses, new in each process."""
    numbers: dict[bytes, bytes] = {}

    def numbered(found: re.Match[bytes]) -> bytes:
        return found[1] + numbers.setdefault(found[2], b"clip%d" % len(numbers))

    return re.sub(rb'(clipPath id="|url\(#)(p[0-9a-f]{10})\b', numbered, svg)
