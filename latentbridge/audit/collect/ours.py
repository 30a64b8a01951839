"""Our own run folders: metrics.jsonl, with what config, manifest and marker say about the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from latentbridge.audit.collect.rows import Row
from latentbridge.errors import DamageError
from latentbridge.metric import Metric
from latentbridge.rundir import RunDir, read_jsonl


def is_run(folder: Path) -> bool:
    """Whether a folder is one of our runs."""
    return (folder / "manifest.json").exists() and (folder / "config.yaml").exists()


def read_run(path: Path, row: Row) -> Iterator[Row]:
    """Every metric of every evaluation; a run without a final one has a void row that says how it ended."""
    folder = RunDir(path.parent)
    manifest, final = folder.read_manifest(), False
    row = Row(
        source=row.source,
        layout="latentbridge",
        run=row.run,
        cell=manifest.get("cell"),
        seed=manifest.get("seed"),
        config=manifest.get("id"),
    )
    for record in read_jsonl(path):
        try:
            here = row.at(str(record["label"]), record["step"])
            metrics = {name: Metric.from_record(found) for name, found in record["metrics"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise DamageError(f"{path}: no record of an evaluation ({error!r})") from None
        final = final or here.label == "final"
        yield from (here.measured(name, metric) for name, metric in metrics.items())
    if not final:
        yield row.at("final").lacking("evaluation", f"no final evaluation: {folder.state or 'unfinished'}")
