"""The files of the two published benches of mixtures and of the layer routing study."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from latentbridge.audit.collect.rows import Row, fingerprint, numbered, read_object
from latentbridge.errors import DamageError
from latentbridge.rundir import read_json, read_jsonl

# perplexity is exp(min(loss, 20)) there
CAP = math.exp(20) * (1 - 1e-9)
SEVERAL_RUNS = "the log holds several runs, which nothing tells apart"
HISTORY = {
    "train_losses": "train_loss",
    "val_losses": "val_loss",
    "val_accuracies": "val_accuracy",
    "val_perplexities": "val_perplexity",
    "elapsed_times": "elapsed_min",
    "learning_rates": "lr",
    "temperatures": "temperature",
    "routing_entropies": "routing_entropy",
    "selection_confidences": "selection_confidence",
    "load_balancing_losses": "balance_loss",
}
# a share of at least 1/2 and an entropy of noisy softmaxes: exactly 0 at every evaluation was never recorded
NEVER_ZERO = ("routing_entropies", "selection_confidences")
NOT_RECORDED = "0.0 at every evaluation: it was never recorded"

# what a run was told: of these a table's cells and a log's records are no measurements
SETTINGS = {
    *("run", "router", "router_arch", "strategy", "top_k", "capacity_factor", "num_experts", "dim", "expand"),
    *("world_size", "log_path", "variant", "step", "best_step", "routing_strategy", "router_backend"),
}
TABLES = ({"run", "router"}, {"run", "router_arch", "strategy"}, {"variant", "step"})
# as our own runs are called
_SEED = re.compile(r"-s(\d+)$")
RATE = "published rates are of all updates between two evaluations, over the time of one"
WITH_BALANCE = "holds the balance loss: no language loss"


def read_metrics(path: Path, row: Row) -> Iterator[Row]:
    """metrics.json of the temperature study: a history by evaluation, final metrics, routing."""
    found = read_object(path, "experiment_name", "final_metrics", "history", "config")
    asked = {key: found.get(key) for key in ("temperature", "temperature_schedule", "config")}
    row = replace(row, layout="blueberry", cell=found["experiment_name"], config=fingerprint(asked))
    history: dict[str, list[Any]] = found["history"]
    steps = history.get("steps", [])
    for key, metric in HISTORY.items():
        values = history.get(key, [])
        if len(values) not in (0, len(steps)):
            raise DamageError(f"{path}: {len(values)} {key} for {len(steps)} steps")
        gone = NOT_RECORDED if key in NEVER_ZERO and not any(values) else ""
        for step, value in zip(steps, values, strict=False):
            yield _capped(row.at(str(step), step), metric, value, gone)
    for step, shares in zip(steps, history.get("expert_utilizations", []), strict=False):
        here = row.at(str(step), step)
        yield from (here.having(name, value) for name, value in numbered("expert_utilization", shares))
    final, routing = row.at("final"), found.get("routing_stats") or {}
    for metric, value in found["final_metrics"].items():
        yield _capped(final, metric, value)
    for key in ("avg_entropy", "avg_confidence"):
        if key in routing:
            yield final.having(key, routing[key], gone="" if routing[key] else NOT_RECORDED)


def _capped(row: Row, metric: str, value: Any, gone: str = "") -> Row:
    if metric.endswith("perplexity") and isinstance(value, float) and value >= CAP:
        gone = "capped at exp(20): no perplexity"
    return row.having(metric, value, gone=gone)


def read_training_results(path: Path, row: Row) -> Iterator[Row]:
    """training_results.json of the layer routing study, with val_history.json where that lies beside it."""
    found = read_object(path, "config", "results")
    config, results = found["config"], found["results"]
    name = found.get("config_name") or found.get("experiment")
    row = replace(row, layout="blueberry", cell=name, config=fingerprint(config))
    is_dynamic = bool(config.get("use_dynamic_routing"))
    flags = (WITH_BALANCE,) if is_dynamic and config.get("load_balance_alpha") else ()
    for metric, value in results.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                yield row.at("final").having(key, inner)
        else:
            label = "best" if metric.startswith("best") else "final"
            yield row.at(label).having(metric, value, *(flags if "loss" in metric else ()))
    beside = path.with_name("val_history.json")
    for record in read_json(beside) if beside.exists() else []:
        here = replace(
            row.at(str(record.get("step")), record.get("step")), source=f"{row.source}, {beside.name}"
        )
        for key, value in record.items():
            if key != "step":
                metric = f"val_{key}" if key in ("loss", "accuracy", "perplexity") else key
                yield here.having(metric, value, *(flags if key in ("loss", "perplexity") else ()))


def read_summary_csv(path: Path, row: Row) -> Iterator[Row]:
    """*_summary.csv: routers, router networks or adapters; an empty cell is void."""
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        if not any(known <= columns for known in TABLES):
            raise DamageError(
                f"{path}: its columns are {', '.join(sorted(columns)) or 'none'}; none of a bench"
            )
        for line, record in enumerate(reader, start=2):
            if None in record or None in record.values():
                raise DamageError(f"{path}:{line}: not as many cells as columns")
            yield from _record(record, row)


def _record(record: dict[str, str], row: Row) -> Iterator[Row]:
    name = record.get("run") or record["variant"]
    asked = {key: record[key] for key in record if key in SETTINGS - {"run", "log_path", "best_step", "step"}}
    seed = _SEED.search(name)
    row = replace(
        row,
        layout="moe-routing-bench",
        seed=int(seed[1]) if seed else None,
        run=f"{row.run}/{name}",
        cell=record.get("router") or record.get("strategy") or record["variant"],
        # other tables have other settings, which their columns do not tell
        config=fingerprint({"table": Path(row.source).name, "seed": seed and seed[1], **asked}),
    )
    step = record.get("step", "")
    for key, value in record.items():
        if key in SETTINGS:
            continue
        word, _, rest = key.partition("_")
        if word in ("best", "final"):
            at = record.get("best_step", "") if word == "best" else ""
            here = row.at(word, int(float(at)) if at else None)
        else:
            here, rest = row.at("final" if step == "eval" else step or "run"), key
            here = replace(here, step=int(step) if step.isdecimal() else None)
        flags = (*_rate(key), *((WITH_BALANCE,) if key == "eval_loss" else ()))
        yield here.having(rest, value, *flags)


def _rate(key: str) -> tuple[str, ...]:
    return (RATE,) if "tokens_per_s" in key or "tflops" in key else ()


def read_train_log(path: Path, row: Row) -> Iterator[Row]:
    """train_log.jsonl of a run, with its settings where hparams.json lies beside it.

    Several runs may have been appended to one log: then nothing in it is a number of this one.
    """
    beside = path.with_name("hparams.json")
    asked = read_object(beside) if beside.exists() else {}
    settings = {key: value for key, value in asked.items() if key not in ("outdir", "num_workers")}
    row = replace(
        row,
        layout="moe-routing-bench",
        cell=asked.get("strategy"),
        seed=asked.get("seed"),
        config=fingerprint(settings) if asked else None,
    )
    records = list(read_jsonl(path))
    if not all("step" in record for record in records):
        raise DamageError(f"{path}: a record without a step")
    if not records:
        yield row.at("final").lacking("val_loss", "the log holds no record")
    starts_again = any(later["step"] <= earlier["step"] for earlier, later in pairwise(records))
    for record in records:
        here = row.at(str(record["step"]), record["step"])
        for key, value in record.items():
            if key not in SETTINGS:
                yield here.having(key, value, *_rate(key), gone=SEVERAL_RUNS if starts_again else "")
