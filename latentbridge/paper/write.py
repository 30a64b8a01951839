"""A filled paper as files.

OUT/ paper.md paper.pdf numbers.json   figures/NAME.{csv,png}
OUT/tables/[LAUNCH_]{main_results,ablations,compression}.{md,tex}
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from latentbridge.paper.tables import NAMES, standard
from latentbridge.paper.template import Filled
from latentbridge.paper.typeset import to_pdf
from latentbridge.rundir import write_atomic


def write(filled: Filled, out: Path) -> list[Path]:
    """Everything of a paper; the PDF comes last, for it needs the figures, and typst."""
    files: dict[str, str | bytes] = {"paper.md": filled.markdown}
    for drawing in filled.drawings:
        files |= {f"figures/{drawing.name}.{suffix}": content for suffix, content in drawing.files.items()}
    files |= tables(filled)
    # after the tables: it has their numbers too
    record = filled.quote.trace.as_record()
    files["numbers.json"] = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    written = []
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
        written.append(path)
    written.append(out / "paper.pdf")
    write_atomic(written[-1], to_pdf(filled.markdown, out))
    return written


def tables(filled: Filled) -> dict[str, str]:
    """The standard tables of every launch that has results for them, by file."""
    launches = filled.quote.results.launches
    found = {}
    for launch in launches.values():
        prefix = f"{launch.name}_" if len(launches) > 1 else ""
        for name in NAMES:
            if table := standard(name, launch, filled.quote):
                table = replace(table, name=prefix + name)
                found[f"tables/{table.name}.md"] = f"{table.markdown()}\n\n*{table.caption}*\n"
                found[f"tables/{table.name}.tex"] = table.latex()
    return found
