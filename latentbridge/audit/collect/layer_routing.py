"""The files of the published layer routing study: training_results.json and the two histories beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentbridge.audit.collect.files import AGAIN, read_document, read_object
from latentbridge.audit.collect.rows import Row, fingerprint, goes_back, of_total
from latentbridge.errors import DamageError
from latentbridge.rundir import find_stored

RESULTS = "training_results.json"
HISTORIES = ("train_history.json", "val_history.json")
UNTOLD = f"no {RESULTS} beside it says whether it holds the balance loss"
SEVERAL_RUNS = "steps start again: the history is of several runs, which nothing tells apart"
SAMPLED = "of tokens trained on since the evaluation before, with the router's noise"
TRAINED = {"loss": "train_loss", "aux_loss": "balance_loss"}
VALIDATED = {"loss": "val_loss", "accuracy": "val_accuracy", "perplexity": "val_perplexity"}
# of a loss, and of what is made of one
_HELD = ("train_loss", "val_loss", "val_perplexity")


def read_training_results(path: Path, row: Row) -> Iterator[Row]:
    """What a run was told, its time, and its best loss."""
    row, results, holds_balance = _told(path, row)
    for name, value in results.items():
        label = "best" if name.startswith("best") else "final"
        # final_val_metrics of the study of hybrids
        is_group = isinstance(value, dict)
        group = {VALIDATED.get(key, key): each for key, each in value.items()} if is_group else {name: value}
        for metric, each in group.items():
            is_held = holds_balance and ("loss" in metric or "perplexity" in metric)
            yield (of_total if is_held else Row.having)(row.at(label), metric, each)


def read_train_history(path: Path, row: Row) -> Iterator[Row]:
    """train_history.json: loss, balance loss and learning rate of every update that was logged."""
    return _history(path, row, lambda key: TRAINED.get(key, key))


def read_val_history(path: Path, row: Row) -> Iterator[Row]:
    """val_history.json: loss, accuracy and perplexity of every evaluation, and percent of tokens by layer."""
    return _history(path, row, lambda key: VALIDATED.get(key, key))


def _history(path: Path, row: Row, named: Callable[[str], str]) -> Iterator[Row]:
    records = read_document(path)
    if not isinstance(records, list):
        raise DamageError(f"{path}: a list of records is needed, not a {type(records).__name__}; {AGAIN}")
    if not all(isinstance(record, dict) and "step" in record for record in records):
        raise DamageError(f"{path}: a record without a step; {AGAIN}")
    beside = path.with_name(RESULTS)
    row, holds_balance = replace(row, layout="blueberry"), None
    if find_stored(beside):
        row, _, holds_balance = _told(beside, row)
    if not records:
        yield row.at("final").lacking(named("loss"), "the history holds no record")
    places = [row.at_step(record["step"]) for record in records]
    gone = SEVERAL_RUNS if goes_back(here.step or 0 for here in places) else ""
    for here, record in zip(places, records, strict=True):
        for key, value in record.items():
            # null where no layer is routed: there is no such loss
            if key == "step" or (key == "aux_loss" and value is None):
                continue
            metric = named(key)
            if metric in _HELD and holds_balance:
                yield of_total(here, metric, value, gone)
            else:
                untold = (UNTOLD,) if metric in _HELD and holds_balance is None else ()
                sampled = (SAMPLED,) if metric.endswith("_pct") else ()
                yield here.having(metric, value, *untold, *sampled, gone=gone)


def _last_step(path: Path) -> int:
    """0 where there is no history, or one that its own reader refuses."""
    try:
        records = read_document(path) if find_stored(path) else []
        return int(records[-1]["step"]) if records else 0
    except (DamageError, KeyError, TypeError, ValueError):
        return 0


def _told(path: Path, row: Row) -> tuple[Row, dict[str, Any], bool]:
    """The run with its name and settings, its results, and whether its losses hold the balance loss."""
    found = read_object(path, "config", "results")
    config, results = found["config"], found["results"]
    if not (isinstance(config, dict) and isinstance(results, dict)):
        raise DamageError(f"{path}: config and results must be objects of names and values; {AGAIN}")
    name = found.get("config_name") or found.get("experiment")
    holds_balance = bool(config.get("use_dynamic_routing") and config.get("load_balance_alpha"))
    # the config does not say how long the run was
    lengths = [_last_step(path.with_name(name)) for name in HISTORIES]
    row = replace(row, layout="blueberry", cell=name, config=fingerprint({**config, "steps": max(lengths)}))
    return row, results, holds_balance
