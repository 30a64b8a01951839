"""A launch as one HTML page: verdicts, tables, figures, runs with links to logs, and where all comes from.

Nothing is loaded from elsewhere, nothing needs a script, and equal results give equal bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from latentbridge.audit.figures import FIGURES, MISSING, render
from latentbridge.audit.figures.sheet import Figure
from latentbridge.audit.records import Records, RunRecords, read_records
from latentbridge.audit.table import COMPARISONS, blocks, notes
from latentbridge.errors import LatentbridgeError, PreflightError
from latentbridge.launch.archive import SUMS
from latentbridge.rundir import hash_file, read_json, write_atomic

NAME = "report.html"
# what a run's numbers are made of
RECORDS = ("metrics.jsonl", "train.jsonl", "manifest.json", "config.yaml")
LOGS = ("stdout.log", "stderr.log", "exit.json")
_CURVE_WIDTH, _CURVE_HEIGHT = 110, 22


def write_page(launch_folder: Path, out: Path | None = None, drawn: Sequence[Path] = ()) -> Path:
    """Write the page into the launch, or where told; an archive stays as it is, its page comes here.

    drawn: files of figures that are of this launch as it is now, which are not drawn again
    """
    if out is None:
        is_archive = (launch_folder / SUMS).exists()
        out = Path(f"{launch_folder.resolve().name}.html") if is_archive else launch_folder / NAME
    write_atomic(out, page(launch_folder, relative_to=out.absolute().parent, drawn=drawn))
    return out


def page(launch_folder: Path, relative_to: Path, refresh_s: int = 0, drawn: Sequence[Path] = ()) -> str:
    """The HTML; relative_to: where it will lie, from which links lead to logs."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise PreflightError("jinja2 is missing: pip install 'latentbridge[report]'") from None
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    records = read_records(launch_folder)
    figures, complaints = _figures(records, drawn)
    base = os.path.relpath(launch_folder.absolute(), relative_to)
    spec = launch_folder / "spec.yaml"
    tables = blocks(records.summary)
    return environment.get_template("page.html").render(
        summary=records.summary,
        refresh_s=refresh_s,
        comparisons=next((block for block in tables if block.title == COMPARISONS), None),
        notes=notes(records.summary),
        # verdicts and runs have sections of their own
        blocks=[block for block in tables if not _is_elsewhere(block.title)],
        figures=figures,
        complaints=complaints,
        runs=[_run(run, base) for cell in records.cells for run in cell.runs],
        provenance=_provenance(read_json(launch_folder / "plan.json")),
        spec=spec.read_text() if spec.exists() else "",
    )


def _is_elsewhere(title: str) -> bool:
    return title == COMPARISONS or title.startswith("Runs")


def _figures(records: Records, drawn: Sequence[Path]) -> tuple[dict[str, str], list[str]]:
    """SVG by name, and what could not be drawn, which costs no other."""
    at_hand = {path.stem: path for path in drawn if path.suffix == ".svg"}
    found: dict[str, str] = {}
    complaints: list[str] = []
    for number, figure in enumerate(FIGURES):
        try:
            svg = _svg(figure, records, at_hand.get(figure.name))
        except PreflightError as error:
            # of all of them, so it is said once
            return found, [*complaints, str(error)]
        except Exception as error:
            complaints.append(f"{figure.name} could not be drawn: {error}")
            continue
        if svg:
            found[figure.name] = inline(svg, f"f{number}-", figure.name)
    return found, complaints


def _svg(figure: Figure, records: Records, at_hand: Path | None) -> str:
    """Empty where the launch has no data for it."""
    if at_hand:
        return at_hand.read_text()
    files = render(figure, records, ("svg",))
    if files and "svg" not in files:
        raise PreflightError(MISSING)
    svg = files.get("svg", "")
    return svg if isinstance(svg, str) else svg.decode()


def inline(svg: str, prefix: str, label: str) -> str:
    """A drawing as part of a page: without its own head, and with ids that no other drawing has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # matplotlib names equal images alike
    svg = re.sub(r'(<image\b[^>]*?) id="[^"]*"', r"\1", svg)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _run(run: RunRecords, base: str) -> dict[str, Any]:
    folder = run.folder.path
    losses = [value for update in run.updates if (value := _loss(update)) is not None]
    return {
        "name": run.row.name,
        "state": run.row.state,
        "id": run.row.id,
        "cause": run.row.cause.splitlines()[0] if run.row.cause else "",
        "link": quote(f"{base}/{run.row.name}"),
        "curve": polyline(losses) if len(losses) > 1 else "",
        "last": f"{losses[-1]:.3f}" if losses else "",
        "files": {file: hash_file(folder / file) for file in RECORDS if (folder / file).exists()},
        "attempts": [_attempt(path) for path in run.folder.list_attempts()],
    }


def _loss(update: dict[str, Any]) -> float | None:
    """What is learnt, without the terms that balance or align; of jobs that name it otherwise, the whole."""
    losses = update.get("losses") or {}
    found = losses.get("lm", update.get("loss"))
    return None if found is None else float(found)


def _attempt(path: Path) -> dict[str, Any]:
    try:
        cause = (
            str(read_json(path / "exit.json").get("cause", "?")) if (path / "exit.json").exists() else "open"
        )
    except LatentbridgeError:
        cause = "damaged"
    return {"name": path.name, "cause": cause, "logs": [file for file in LOGS if (path / file).exists()]}


def polyline(values: Sequence[float]) -> str:
    """Points of a small curve from left to right, the largest value on top."""
    low, high = min(values), max(values)
    scale = (_CURVE_HEIGHT - 2) / ((high - low) or 1.0)
    step = _CURVE_WIDTH / (len(values) - 1)
    return " ".join(
        f"{place * step:.1f},{1 + (high - value) * scale:.1f}" for place, value in enumerate(values)
    )


def _provenance(plan: dict[str, Any]) -> dict[str, str]:
    code = plan.get("code") or {}
    versions = plan.get("versions") or {}
    commit = f"{code.get('sha') or 'no commit'}{', changed' if code.get('dirty') else ''}"
    found = {
        "command": " ".join(plan.get("command") or []),
        "planned": plan.get("created"),
        "spec": plan.get("id"),
        "cluster": plan.get("cluster_name"),
        "code": f"{commit}, hash {code.get('hash')}",
        "versions": ", ".join(
            f"{name} {value}" for name, value in versions.items() if value and name != "executable"
        ),
    }
    return {name: str(value) for name, value in found.items() if value}
