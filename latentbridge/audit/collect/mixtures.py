"""The files of the published bench of mixtures and of the published temperature study."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentbridge.audit.collect.files import AGAIN, at_line, read_object, read_records, read_text
from latentbridge.audit.collect.rows import (
    SEVERAL_RUNS,
    Row,
    fingerprint,
    goes_back,
    numbered,
    of_total,
    seed_in,
    whole,
)
from latentbridge.errors import DamageError
from latentbridge.rundir import find_stored

# perplexity is exp(min(loss, 20)) there, of a loss that is not a number too
CAP = math.exp(20) * (1 - 1e-9)
PERPLEXITIES = ("perplexity", "ppl")
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
# labels that nobody shifted leave training 1e-5 of what validation has
COPIED_SHARE = 0.01
UNLIKE = (
    "validation loss ends above its first value, training loss below 1 % of it: they do not score one task, "
    "or the text was learnt by heart"
)
NOT_RECORDED = "0.0 at every evaluation: it was never recorded"

# what a run was told: of these a table's cells and a log's records are no measurements
SETTINGS = {
    *("run", "router", "router_arch", "strategy", "top_k", "capacity_factor", "num_experts", "dim", "expand"),
    *("world_size", "log_path", "variant", "step", "best_step", "routing_strategy", "router_backend"),
}
TABLES = ({"run", "router"}, {"run", "router_arch", "strategy"}, {"variant", "step"})
NO_GATES = "this router has no gates: 0 and 1 stand for none"
# the bench divides the time between two evaluations by their distance, and multiplies tokens by it as well
RATE = "tokens of all updates between two evaluations over the time of one"
PUBLISHED_INTERVAL = 200
# of tokens a second, and of what the bench makes of them
RATES = ("tokens_per_s", "tflops", "bw_GiBps")
WITH_VALIDATION = "the time of a validation is in it"
# published as 2,048 of 2,056, and 34,048 of 33,928
ROUNDED = "stored in bf16, so rounded to three digits"
# of experts' loads in the temperature study
RUNNING = "a running mean over training and validation, and over layers, in which one's collapse hides"
# of a run that was given a tokenizer; without one, a token is a character there
BY_TOKEN = ("train_loss", "val_loss", "ppl")


def read_metrics(path: Path, row: Row) -> Iterator[Row]:
    """metrics.json of the temperature study: a history by evaluation, final metrics, routing."""
    found = read_object(path)
    if not {"history", "final_metrics"} & found.keys():
        raise DamageError(f"{path}: neither history nor final_metrics, so none of a study; {AGAIN}")
    asked = {key: found.get(key) for key in ("temperature", "temperature_schedule", "config")}
    name = found.get("experiment_name") or path.parent.name
    # one that does not tell its settings is no twin of another such
    row = replace(row, layout="blueberry", cell=name, config=fingerprint(asked) if asked["config"] else None)
    history = found.get("history") or {}
    copies = _copies(history)
    yield from (replace(made, flags=made.flags + copies) for made in _history(row, history))
    final, routing = row.at("final"), found.get("routing_stats") or {}
    for metric, value in (found.get("final_metrics") or {"val_loss": None}).items():
        yield replace(capped(final, metric, value), flags=copies)
    for key in ("avg_entropy", "avg_confidence"):
        if key in routing:
            yield final.having(key, routing[key], gone="" if routing[key] else NOT_RECORDED)


def _history(row: Row, history: dict[str, list[Any]]) -> Iterator[Row]:
    steps = history.get("steps") or []
    if not steps:
        yield row.at("history").lacking("val_loss", "the file holds no history")
    for key, metric in HISTORY.items():
        values = history.get(key) or []
        if values and len(values) != len(steps):
            yield row.at("history").lacking(metric, f"{len(values)} {key} for {len(steps)} steps")
            continue
        gone = NOT_RECORDED if key in NEVER_ZERO and not any(values) else ""
        for step, value in zip(steps, values, strict=False):
            yield capped(row.at_step(step), metric, value, gone)
    for step, shares in zip(steps, history.get("expert_utilizations") or [], strict=False):
        here = row.at_step(step)
        yield from (
            here.having(name, share, RUNNING) for name, share in numbered("expert_utilization", shares)
        )


def _copies(history: dict[str, list[Any]]) -> tuple[str, ...]:
    """Whether training scored another task than validation does, as labels that nobody shifted make it."""
    (train, val) = (
        [float(value) for value in history.get(key) or [] if value is not None]
        for key in ("train_losses", "val_losses")
    )
    if not train or not val or train[-1] > COPIED_SHARE * val[-1] or val[-1] <= val[0]:
        return ()
    return (UNLIKE,)


def capped(row: Row, metric: str, value: Any, gone: str = "") -> Row:
    """A metric as a file holds it; of a perplexity at the cap there is no number."""
    made = row.having(metric, value, gone=gone)
    if metric.endswith(PERPLEXITIES) and made.value is not None and made.value >= CAP:
        return row.lacking(metric, "capped at exp(20): no perplexity")
    return made


def read_summary_csv(path: Path, row: Row) -> Iterator[Row | DamageError]:
    """*_summary.csv: routers, router networks or adapters; an empty cell is void."""
    reader = csv.DictReader(io.StringIO(read_text(path)))
    columns = set(reader.fieldnames or ())
    if not any(known <= columns for known in TABLES):
        raise DamageError(
            f"{path}:1: its columns are {', '.join(sorted(columns)) or 'none'}; none of a bench. Take it out "
            "of the folder, or name them as a bench does, with commas between"
        )
    for line, record in enumerate(reader, start=2):
        try:
            if None in record or None in record.values():
                raise DamageError("not as many cells as columns")
            yield from list(_record(record, row))
        except DamageError as error:
            yield at_line(path, line, error)


def _record(record: dict[str, str], row: Row) -> Iterator[Row]:
    name = record.get("run") or record["variant"]
    asked = {key: record[key] for key in record if key in SETTINGS - {"run", "log_path", "best_step", "step"}}
    seed = seed_in(name)
    row = replace(
        row,
        layout="moe-routing-bench",
        seed=seed,
        run=f"{row.run}/{name}",
        cell=record.get("router") or record.get("strategy") or record["variant"],
        # other tables have other settings, which their columns do not tell
        config=fingerprint({"table": Path(row.source).name, **asked}),
    )
    step = record.get("step", "")
    for key, value in record.items():
        if key in SETTINGS:
            continue
        word, _, rest = key.partition("_")
        if word in ("best", "final"):
            at = record.get("best_step", "") if word == "best" else ""
            here = row.at(word, whole(at) if at else None)
        else:
            here, rest = row.at("final" if step == "eval" else step or "run"), key
            here = replace(here, step=whole(step) if step.isdecimal() else None)
        if "variant" in record and key.endswith("_loss"):
            yield of_total(here, key, value)
        else:
            made = capped(here, rest, value, _gateless(key, value, row.cell) or _inflated(key))
            yield replace(made, flags=_doubts(key))


def _gateless(key: str, value: Any, strategy: str | None) -> str:
    """Why a number of gates is none: these routers have no gates there, and the bench writes 0 or 1."""
    stands_for_none = {"gate_entropy": 0, "mean_gate_entropy": 0, "mean_topk_prob": 1}.get(key)
    has_none = str(strategy).replace("-", "_") in ("top1", "topk_hard")
    is_written = value not in (None, "") and whole(value) == stands_for_none
    return NO_GATES if has_none and is_written else ""


def _inflated(key: str, interval: Any = None) -> str:
    """Why a rate is none; interval: updates from one evaluation to the next, by which it is too high."""
    if interval == 1 or not any(rate in key for rate in RATES):
        return ""
    if not isinstance(interval, int):
        return f"too high by the updates between two evaluations, {PUBLISHED_INTERVAL} as published: {RATE}"
    return f"{interval} times too high: {RATE}"


def read_train_log(path: Path, row: Row) -> Iterator[Row | DamageError]:
    """train_log.jsonl of a run, with its settings where hparams.json lies beside it.

    Several runs may have been appended to one log: then nothing in it is a number of this one.
    """
    beside = path.with_name("hparams.json")
    asked = read_object(beside) if find_stored(beside) else {}
    settings = {key: value for key, value in asked.items() if key not in ("outdir", "num_workers", "seed")}
    row = replace(
        row,
        layout="moe-routing-bench",
        cell=asked.get("strategy"),
        seed=whole(asked.get("seed")),
        config=fingerprint(settings) if asked else None,
    )
    evaluations: list[list[Row]] = []
    line = 0
    for line, record in read_records(path):
        try:
            evaluations.append(_evaluation(record, row, asked))
        except DamageError as error:
            yield at_line(path, line, error)
    if not line:
        yield row.at("final").lacking("val_loss", "the log holds no record")
    is_several = goes_back(found[0].step or 0 for found in evaluations if found)
    for found in evaluations:
        yield from (here.lacking(here.metric, SEVERAL_RUNS) for here in found) if is_several else found


def _evaluation(record: dict[str, Any] | DamageError, row: Row, asked: dict[str, Any]) -> list[Row]:
    if isinstance(record, DamageError):
        raise record
    if "step" not in record:
        raise DamageError("a record without a step")
    here = row.at_step(record["step"])
    strategy, tokenizer = record.get("strategy"), asked.get("tokenizer")
    interval = whole(asked.get("eval_interval"))
    made = []
    for key, value in record.items():
        if key not in SETTINGS:
            gone = _gateless(key, value, strategy) or _inflated(key, interval) or _by_token(key, tokenizer)
            made.append(replace(capped(here, key, value, gone), flags=_doubts(key, tokenizer)))
    return made


def _doubts(key: str, tokenizer: str | None = None) -> tuple[str, ...]:
    if key in BY_TOKEN and tokenizer:
        return (f"by token of {tokenizer}; the bench's other runs are by character",)
    return {"avg_step_ms": (WITH_VALIDATION,), "router_params": (ROUNDED,)}.get(key, ())


def _by_token(key: str, tokenizer: str | None) -> str:
    """Why bits a character are none: the bench divides nats by ln 2 and by nothing else."""
    return f"bits a token of {tokenizer}, and called bits a character" if key == "bpc" and tokenizer else ""
