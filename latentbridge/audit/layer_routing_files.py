"""A launch of layer routing in the files of the published experiment, so that its numbers load beside ours.

RUN/training_results.json, train_history.json and val_history.json have its keys, LAUNCH/hybrids_summary.json
those of the published ranking of static hybrids. Losses here are of the text alone, where theirs hold the
balance loss too; shares are of validation text, where theirs are of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentbridge.audit.records import CellRecords, RunRecords, read_records
from latentbridge.layer_routing.config import mixer_pattern
from latentbridge.rundir import write_json


def export(launch_folder: Path) -> list[Path]:
    """Write the three files of every run that has gated-delta, softmax or routed layers, and the ranking.

    One without a config, which has never started, has none.
    """
    written = []
    records = read_records(launch_folder)
    static = [cell for cell in records.layer_routing if not _routed(cell)]
    if static:
        written.append(launch_folder / "hybrids_summary.json")
        write_json(written[-1], hybrids_summary(static))
    for cell in records.layer_routing:
        for run in (run for run in cell.runs if run.row.config):
            files = {
                "training_results.json": training_results(run, cell.name),
                "train_history.json": train_history(run),
                "val_history.json": val_history(run),
            }
            for name, content in files.items():
                written.append(run.folder.path / name)
                write_json(written[-1], content)
    return written


def training_results(run: RunRecords, cell: str) -> dict[str, Any]:
    """Seconds are of training alone; final_val_metrics is what the published guide reads and no file had.

    Of a run that did not end well, losses and metrics are null.
    """
    routed = _routed(run)
    minutes = run.minutes_at(run.updates[-1]["step"]) if run.updates else None
    return {
        "experiment": "layer_routing",
        "config_name": cell,
        "config": {
            "use_dynamic_routing": bool(routed),
            "routed_layers": routed,
            "hidden_size": run.setting("model", "dim"),
            "num_layers": run.setting("model", "layers"),
            "learning_rate": run.setting("optim", "lr"),
            "load_balance_alpha": run.setting("routing", "balance_weight") if routed else None,
        },
        "results": {
            "total_time": None if minutes is None else 60 * minutes,
            "best_val_loss": _best(run),
            "final_val_metrics": {
                "loss": _last(run, "val_nll"),
                "accuracy": _last(run, "val_accuracy"),
                "perplexity": _last(run, "val_perplexity"),
            },
        },
    }


def train_history(run: RunRecords) -> list[dict[str, Any]]:
    """loss: nats of the text alone;  aux_loss: balance, without its weight; null where no layer is routed."""
    return [
        {
            "step": update["step"],
            "loss": update["losses"]["lm"],
            "aux_loss": update["losses"].get("balance"),
            "lr": update["lr"],
        }
        for update in run.updates
    ]


def val_history(run: RunRecords) -> list[dict[str, Any]]:
    """Of every evaluation in training; percentages are of the tokens of validation text."""
    history = []
    for found in run.evaluations:
        record = {
            "step": found.step,
            "loss": found.value("val_nll"),
            "accuracy": found.value("val_accuracy"),
            "perplexity": found.value("val_perplexity"),
        }
        for layer in _routed(run):
            share = found.value(f"val_layer_{layer}_gdn_share")
            record[f"layer_{layer}_gdn_pct"] = None if share is None else 100 * share
            record[f"layer_{layer}_attn_pct"] = None if share is None else 100 * (1 - share)
        history.append(record)
    return history


def hybrids_summary(cells: Sequence[CellRecords]) -> dict[str, Any]:
    """Cells without routed layers by their best validation loss, each a mean over its seeds.

    A cell that lacks a number of any seed has null and no rank; learning rates are cells of their own.
    """
    results = [_hybrid(cell) for cell in cells]
    ranked = sorted(
        (found for found in results if found["best_val_loss"] is not None), key=lambda it: it["best_val_loss"]
    )
    for rank, found in enumerate(ranked, start=1):
        found["rank"] = rank
    minutes = [found["training_time_minutes"] for found in results]
    first = cells[0]
    tokens = [found["tokens_processed"] for found in results]
    return {
        "config": {
            "training_steps": first.setting("train", "steps"),
            "hidden_size": first.setting("model", "dim"),
            "num_layers": first.setting("model", "layers"),
            "batch_size": first.setting("train", "batch_size"),
            "max_seq_len": first.setting("text", "context"),
            "total_tokens_processed": None if None in tokens else sum(tokens),
        },
        "architectures_tested": len(cells),
        "total_training_time_minutes": None if None in minutes else sum(minutes),
        "results": [*ranked, *(found for found in results if found["rank"] is None)],
        "winner": ranked[0] if ranked else {},
        # theirs multiplied losses by times
        "insights": {},
    }


def _hybrid(cell: CellRecords) -> dict[str, Any]:
    pattern = mixer_pattern(cell.setting("mixers"))
    read = {
        "best_val_loss": _best,
        "final_val_loss": lambda run: _last(run, "val_nll"),
        "final_val_accuracy": lambda run: _last(run, "val_accuracy"),
        "final_val_perplexity": lambda run: _last(run, "val_perplexity"),
        "training_time_minutes": lambda run: run.minutes_at(run.updates[-1]["step"]) if run.updates else None,
        "tokens_processed": _tokens,
        "throughput_tokens_per_sec": lambda run: run.tokens_per_s,
    }
    found = {name: cell.over_seeds(of_run) for name, of_run in read.items()}
    return {
        "rank": None,
        "architecture": cell.name,
        # of its layers, where theirs looked for "8" in the name of 83 %
        "attention_percentage": 100 * pattern.count("softmax") / len(pattern),
        "learning_rate": cell.setting("optim", "lr"),
        **{name: metric and metric.value for name, metric in found.items()},
    }


def _trained(run: RunRecords, metric: str) -> list[float | None]:
    """Of every evaluation after the first update; none of a run that did not end well."""
    if run.row.state != "DONE":
        return []
    return [found.value(metric) for found in run.evaluations if found.step > 0]


def _best(run: RunRecords) -> float | None:
    return min((loss for loss in _trained(run, "val_nll") if loss is not None), default=None)


def _last(run: RunRecords, metric: str) -> float | None:
    return next(reversed(_trained(run, metric)), None)


def _tokens(run: RunRecords) -> float | None:
    """Of all updates that were made."""
    parts = [run.setting("train", "batch_size"), run.setting("text", "context")]
    if not run.updates or None in parts:
        return None
    return float(run.updates[-1]["step"] * parts[0] * parts[1])


def _routed(of: RunRecords | CellRecords) -> list[int]:
    return [n for n, mixer in enumerate(mixer_pattern(of.setting("mixers"))) if mixer == "routed"]
