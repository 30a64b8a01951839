"""The published comparison of static hybrids: its summary of architectures, and that of learning rates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentbridge.audit.collect.files import AGAIN, read_object
from latentbridge.audit.collect.mixtures import capped
from latentbridge.audit.collect.rows import Row, fingerprint
from latentbridge.errors import DamageError

# at which of the two evaluations a number is, and what it is called here
KEYS = {
    "best_val_loss": ("best", "val_loss"),
    "final_val_loss": ("final", "val_loss"),
    "final_val_accuracy": ("final", "val_accuracy"),
    "final_val_perplexity": ("final", "val_perplexity"),
    "training_time_minutes": ("final", "elapsed_min"),
    "elapsed_time": ("final", "elapsed_s"),
    "tokens_processed": ("final", "tokens"),
    "throughput_tokens_per_sec": ("final", "tokens_per_s"),
    "attention_percentage": ("final", "attention_percent"),
}
OWN_SEED = "each architecture had a seed, a size and a data order of its own: one run is no comparison"
WITH_ALL = "over the whole time, evaluations included"
# an architecture's name ends in it, with or without brackets
_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")


def read_architectures(path: Path, row: Row) -> Iterator[Row]:
    """architecture_comparison_summary.json; the winner and the insights, made of these rows, are not read."""
    found = read_object(path, "config", "results")
    for result in _results(path, found["results"]):
        config = {**found["config"], "lr": result.get("learning_rate")}
        for made in _result(row, result, config):
            own_seed = (OWN_SEED,) if made.metric.startswith("val_") else ()
            yield replace(made, flags=made.flags + own_seed)


def read_learning_rates(path: Path, row: Row) -> Iterator[Row]:
    """lr_ablation*_summary.json: of one architecture, or several by name."""
    found = read_object(path, "config", "learning_rates_tested")
    groups = found.get("results_by_architecture") or {"": found.get("results")}
    for name, results in groups.items():
        for result in _results(path, results):
            cell = f"{name} lr={result.get('lr')}".strip()
            yield from _result(row, {"architecture": cell, **result}, found["config"])


def _results(path: Path, results: Any) -> list[dict[str, Any]]:
    if not (isinstance(results, list) and all(isinstance(result, dict) for result in results)):
        raise DamageError(f"{path}: results must be a list of objects, one a run; {AGAIN}")
    return results


def _result(row: Row, result: dict[str, Any], config: dict[str, Any]) -> Iterator[Row]:
    name = result["architecture"]
    row = replace(
        row,
        layout="blueberry",
        run=f"{row.run}/{name}",
        cell=name,
        config=fingerprint({**config, "architecture": name}),
    )
    for key, value in result.items():
        if key not in KEYS:
            continue
        label, metric = KEYS[key]
        gone = _misread(name, value) if key == "attention_percentage" else ""
        made = capped(row.at(label), metric, value, gone)
        yield replace(made, flags=(WITH_ALL,)) if metric == "tokens_per_s" else made


def _misread(name: str, value: Any) -> str:
    """Why a percentage is none: it was searched for in a name, where 8% is found in 83% too."""
    told = _PERCENT.search(name)
    if not told or value is None or abs(float(told[1]) - float(value)) < 1:
        return ""
    return f"the name says {told[1]} %: another's percentage was found in it"
