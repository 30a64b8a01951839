"""A launch of mixtures in the files of the two published benches, so that their numbers load beside ours.

LAUNCH/<name>_summary.csv has the columns of one, RUN/metrics.json the keys of the other. What we do not
measure, or measure as something else, is empty there and null here; never 0.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentbridge.audit.records import RunRecords, read_records, shares
from latentbridge.lm.mixture_config import TemperatureConfig, temperature_at
from latentbridge.rundir import read_json, write_atomic, write_json

COLUMNS = (
    "run",
    "router",
    "top_k",
    "capacity_factor",
    "num_experts",
    "dim",
    # empty there too
    "expand",
    "world_size",
    "best_step",
    "best_val_ppl",
    "best_val_loss",
    "best_tokens_per_s",
    # theirs are of one layer's forward and of nominal bytes; ours are `mfu` in train.jsonl
    "best_eff_tflops",
    "final_val_ppl",
    "final_val_loss",
    "median_tokens_per_s",
    "median_eff_tflops",
    "median_bw_GiBps",
    "mean_drop_rate",
    "mean_load_cv",
    # theirs is of the gates that are kept, ours of the softmax over all experts
    "mean_gate_entropy",
    "log_path",
)


def export(launch_folder: Path) -> list[Path]:
    """Write both kinds of files of a launch, and return them; none where it has no mixtures."""
    records = read_records(launch_folder)
    runs = [run for cell in records.mixtures for run in cell.runs if run.row.config]
    if not runs:
        return []
    written = [launch_folder / f"{_spec_name(launch_folder)}_summary.csv"]
    write_atomic(written[0], _as_csv([summary_row(run) for run in runs]))
    for run in runs:
        written.append(run.folder.path / "metrics.json")
        write_json(written[-1], metrics_record(run))
    return written


def _spec_name(launch_folder: Path) -> str:
    return str(read_json(launch_folder / "plan.json")["name"])


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def summary_row(run: RunRecords) -> dict[str, Any]:
    """A row of *_summary.csv: losses are nats per token of validation text, rates are of all ranks together.

    Final is the last evaluation in training, best the one with the lowest loss of trained weights. Load is
    what routers ask for, before any token is dropped, where theirs is what is kept.
    """
    trained = [found for found in run.evaluations if found.step > 0 and found.value("val_nll") is not None]
    best = min(trained, key=lambda found: (found.value("val_nll"), found.step), default=None)
    last = run.evaluations[-1] if run.evaluations else None
    update = run.update_at(best.step) if best else None
    mixture = run.setting("mixture")
    padded = mixture["dispatch"]["kind"] == "padded"
    drops = [found["losses"]["drop_rate"] for found in run.updates if "drop_rate" in found["losses"]]
    return {
        "run": run.row.name,
        "router": mixture["router"]["strategy"],
        "top_k": mixture["router"]["top_k"],
        "capacity_factor": mixture["dispatch"]["capacity_factor"] if padded else None,
        "num_experts": mixture["num_experts"],
        "dim": run.setting("model", "dim"),
        "world_size": _world_size(run),
        "best_step": best and best.step,
        "best_val_ppl": best and best.value("val_perplexity"),
        "best_val_loss": best and best.value("val_nll"),
        "best_tokens_per_s": update and update.get("tokens_per_s"),
        "final_val_ppl": last and last.value("val_perplexity"),
        "final_val_loss": last and last.value("val_nll"),
        "median_tokens_per_s": run.tokens_per_s,
        # dropless dispatch drops nothing: that is known, not measured
        "mean_drop_rate": _mean(drops) if padded else 0.0,
        "mean_load_cv": _mean([found.value("val_demand_cv") for found in trained]),
        "log_path": f"{run.row.name}/{run.folder.train_log.name}",
    }


def _world_size(run: RunRecords) -> int | None:
    resources = run.folder.read_manifest().get("resources") or {}
    nodes, each = resources.get("nodes"), resources.get("gpus_per_node")
    return nodes * each if nodes and each else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def metrics_record(run: RunRecords) -> dict[str, Any]:
    """RUN/metrics.json: a history by evaluation; minutes are of training alone, T is of the update.

    Hash routers have no logits, so no temperature.
    load_balancing_losses are theirs: the sum over layers, times the weight. Their selection confidence is the
    larger of two gates' share, as ours is for two experts a token. Utilisation is of the best weights.
    """
    mixture = run.setting("mixture")
    is_tempered = mixture["router"]["strategy"] != "hash"
    temperature = TemperatureConfig(**mixture["router"]["temperature"]) if is_tempered else None
    schedule = temperature and temperature.schedule
    steps, layers = run.setting("train", "steps"), run.setting("model", "layers")
    last = run.evaluations[-1] if run.evaluations else None
    load = run.loads("val")
    return {
        "experiment_name": run.row.name,
        "description": None,
        "temperature": temperature and temperature.start,
        "temperature_schedule": None if schedule == "constant" else schedule,
        "final_metrics": {
            "val_loss": last and last.value("val_nll"),
            "val_accuracy": last and last.value("val_accuracy"),
            "val_perplexity": last and last.value("val_perplexity"),
        },
        "history": _history(run, temperature, steps, layers),
        "routing_stats": {
            "avg_entropy": last and last.value("val_entropy"),
            "avg_confidence": last and last.value("val_confidence"),
            "expert_utilization": _utilisation(load),
            "num_layers": layers,
        },
        "config": {
            "max_steps": steps,
            "batch_size": run.setting("train", "batch_size"),
            "num_experts": mixture["num_experts"],
            "expert_top_k": mixture["router"]["top_k"],
        },
    }


def _history(
    run: RunRecords, temperature: TemperatureConfig | None, steps: int, layers: int
) -> dict[str, list[Any]]:
    evaluations = run.evaluations
    weight = layers * run.setting("mixture", "balance", "weight")
    # the evaluation of untrained weights has no update before it
    updates = [run.update_at(found.step) if found.step else None for found in evaluations]
    balance = [update and update["losses"].get("balance") for update in updates]
    return {
        "steps": [found.step for found in evaluations],
        "train_losses": [update and update["losses"]["lm"] for update in updates],
        "val_losses": [found.value("val_nll") for found in evaluations],
        "val_accuracies": [found.value("val_accuracy") for found in evaluations],
        "val_perplexities": [found.value("val_perplexity") for found in evaluations],
        "elapsed_times": [run.minutes_at(found.step) for found in evaluations],
        "learning_rates": [_logged(run, found.step, "lr") for found in evaluations],
        "temperatures": [
            temperature and temperature_at(temperature, max(1, found.step), steps) for found in evaluations
        ],
        "routing_entropies": [found.value("val_entropy") for found in evaluations],
        "selection_confidences": [found.value("val_confidence") for found in evaluations],
        "expert_utilizations": [_utilisation_at(run, found.step) for found in evaluations],
        "load_balancing_losses": [None if value is None else weight * value for value in balance],
    }


def _logged(run: RunRecords, step: int, key: str) -> Any:
    """Of this very update, where it was logged."""
    return next((record[key] for record in run.updates if record["step"] == step), None)


def _utilisation_at(run: RunRecords, step: int) -> list[float] | None:
    found = next((record for record in run.experts if record["label"] == str(step)), {})
    return _utilisation(found.get("load", {}).get("val", []))


def _utilisation(load: Sequence[Sequence[float]]) -> list[float] | None:
    """Mean over layers of the experts' shares, which is what theirs is; a layer's collapse hides in it."""
    layers = [shares(layer) for layer in load]
    if not load or not all(layers):
        return None
    return [statistics.fmean(column) for column in zip(*layers, strict=True)]
