"""Every figure of a launch that has the data for it: PNG, SVG and the CSV that it is drawn from."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from latentbridge.audit.figures import (
    adapters,
    balance,
    capacity,
    curves,
    frontier,
    schedules,
    soft_tokens,
    specialisation,
    temperature,
    utilisation,
)
from latentbridge.audit.figures.sheet import Figure
from latentbridge.audit.figures.style import RC
from latentbridge.audit.records import read_records
from latentbridge.rundir import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

log = logging.getLogger(__name__)

FOLDER = "figures"
DPI = 300
FIGURES: tuple[Figure, ...] = (
    *soft_tokens.FIGURES,
    *frontier.FIGURES,
    *curves.FIGURES,
    *balance.FIGURES,
    *specialisation.FIGURES,
    *temperature.FIGURES,
    *schedules.FIGURES,
    *utilisation.FIGURES,
    *capacity.FIGURES,
    *adapters.FIGURES,
)


def draw(launch_folder: Path) -> list[Path]:
    """Write LAUNCH/figures/NAME.{csv,png,svg} of every figure that the launch has data for; returns them.

    Cells that lack a number are left out and named in the caption. One that cannot be drawn does not cost the
    others: what failed is raised together at the end.
    """
    records = read_records(launch_folder)
    written: list[Path] = []
    failed: list[Exception] = []
    for figure in FIGURES:
        try:
            sheet = figure.read(records)
            if not sheet.rows:
                continue
            written.append(_path(launch_folder, figure, "csv"))
            write_atomic(written[-1], sheet.as_csv())
            written += _render(launch_folder, figure, sheet.rows, sheet.caption(records.summary.launch))
        except Exception as error:
            error.add_note(f"of figure {figure.name}")
            failed.append(error)
    if failed:
        raise ExceptionGroup(f"{launch_folder}: {len(failed)} figures could not be drawn", failed)
    return written


def _path(launch_folder: Path, figure: Figure, suffix: str) -> Path:
    folder = launch_folder / FOLDER
    folder.mkdir(exist_ok=True)
    return folder / f"{figure.name}.{suffix}"


def _render(launch_folder: Path, figure: Figure, rows: list[dict[str, object]], caption: str) -> list[Path]:
    try:
        import matplotlib
    except ImportError:
        log.warning("%s: no figure: matplotlib is missing; pip install 'latentbridge[report]'", launch_folder)
        return []
    with matplotlib.rc_context(RC):
        canvas: Canvas = figure.plot(rows, caption)
        # places are decided once, for both files
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")
        written = []
        for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=suffix, dpi=DPI, metadata=metadata)
            written.append(_path(launch_folder, figure, suffix))
            write_atomic(written[-1], buffer.getvalue())
    return written
