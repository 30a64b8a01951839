"""The published translator's files: train.log, summary.log and ablation_results.json."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentbridge.audit.collect.files import AGAIN, read_log, read_object
from latentbridge.audit.collect.rows import SEVERAL_RUNS, Row, fingerprint, goes_back, whole
from latentbridge.errors import DamageError
from latentbridge.metric import proportion
from latentbridge.rundir import find_stored
from latentbridge.stamps import unstamped

# up to the next heading, since other ranks print in between; of a log that ends before it, what is whole
_CONFIG = re.compile(r"^==== Config ====\n((?:(?!====).*\n)*?(?=====)|(?:\w+:.*\n)+)", re.MULTILINE)
_SETTING = re.compile(r"^(\w+):(.*)$", re.MULTILINE)
_LOSS = re.compile(
    r"^Step (\d+)/\d+ \| Loss \(avg over last \d+\): (-?\d+\.\d{4}|nan|inf)"
    r"(?: \| TokenAlign: (-?\d+\.\d{4}|nan|inf))?",
    re.MULTILINE,
)
_SHARE = r"(\d\.\d{3}|nan)"
_ACCURACIES = rf"(?:Source-alone acc: {_SHARE} \| )?Target-alone acc: {_SHARE} \| Bridged acc: {_SHARE}"
# anchored: prompts and generations, which may hold anything, stand in the log as they are
_EVAL = re.compile(rf"^\[(?:Final )?Eval\](?: Step (\d+))?(?: \|)? {_ACCURACIES}", re.MULTILINE)
_NO_SAMPLES = re.compile(r"^\[Eval\] No sample outputs to save for (?:step[_ ])?(\w+)", re.MULTILINE)
_SHARDED = re.compile(r"^\[Distributed Eval\] Sharding (\d+) samples", re.MULTILINE)
METRICS = ("source_alone_accuracy", "target_alone_accuracy", "bridged_accuracy")

NAMES = {"log_dir", "save_path", "show_eval_samples"}
# parsed there and without effect
INERT = {
    *("dit_steps_train", "dit_dropout", "dit_drop_cond", "dit_cond_dim", "dit_loss_weight"),
    *("dit_loss_warmup", "format_loss_weight"),
}
NO_RECORDS = "no record was kept: 0.000 there stands for an evaluation of nothing"
TYPED = "no evaluation stands behind it: it was typed in"
INVALID_IS_RIGHT = "HotpotQA's answers were never extracted: none counted as right where gold was none too"
QUOTED = "quoted from the run's train.log"


def cell_of(run: str) -> str:
    """A run folder's name without its stamp."""
    return unstamped(run.rsplit("/", 1)[-1])


def read_train_log(path: Path, row: Row) -> Iterator[Row]:
    """Losses and accuracies as logged, to 4 and 3 decimals; intervals are Wilson's, from the logged n.

    Several runs may have been appended to one log: then nothing in it is a number of this one.
    """
    text = read_log(path)
    block = _CONFIG.search(text)
    losses, evals = list(_LOSS.finditer(text)), list(_EVAL.finditer(text))
    if not (block or losses or evals):
        raise DamageError(f"{path}: no config, no step and no evaluation, so no training log; {AGAIN}")
    config = {key: value.strip() for key, value in _SETTING.findall(block[1])} if block else {}
    row = replace(
        row,
        layout="latentwire",
        cell=cell_of(row.run),
        seed=whole(config["seed"]) if config.get("seed", "").isdecimal() else None,
        config=fingerprint(effective(config)) if block else None,
    )
    rows = [*_losses(row, losses), *_evaluations(row, text, evals, config)]
    if _holds_several(losses, evals):
        yield from (replace(here.lacking(here.metric, SEVERAL_RUNS), config=None) for here in rows)
        return
    yield from rows
    if not evals or evals[-1][1]:
        last = max((int(found[1]) for found in losses), default=0)
        yield row.at("final").lacking(
            "bridged_accuracy", f"the log ends at step {last} without a final evaluation"
        )


def _holds_several(losses: Sequence[re.Match[str]], evals: Sequence[re.Match[str]]) -> bool:
    """Whether updates or evaluations start again, or go on after the final one."""
    labels = [found[1] for found in evals]
    goes_on = None in labels[:-1]
    return (
        goes_on
        or goes_back(int(found[1]) for found in losses)
        or goes_back(int(label) for label in labels if label is not None)
    )


def _losses(row: Row, losses: Sequence[re.Match[str]]) -> Iterator[Row]:
    for found in losses:
        here = row.at_step(found[1])
        yield here.having("train_loss", found[2])
        if found[3]:
            yield here.having("token_alignment", found[3])


def _evaluations(
    row: Row, text: str, evals: Sequence[re.Match[str]], config: dict[str, str]
) -> Iterator[Row]:
    sharded = _SHARDED.search(text)
    told = sharded[1] if sharded else config.get("eval_samples", "")
    kept_none = set(_NO_SAMPLES.findall(text))
    skipped = config.get("skip_source_baseline") == "True"
    unscored = INVALID_IS_RIGHT if config.get("dataset") == "hotpotqa" else ""
    for found in evals:
        here = row.at_step(found[1]) if found[1] else row.at("final")
        gone = NO_RECORDS if skipped or here.label in kept_none else unscored
        yield from _accuracies(here, found.groups()[1:], int(told) if told.isdecimal() else None, gone)


def effective(config: dict[str, str]) -> dict[str, str]:
    """The settings that change what is computed, beside the seed: no names, nothing without effect."""
    left_out = NAMES | INERT | {"seed"}
    # 0 by default, so off where a log does not tell it
    if config.get("decode_loss_weight", "0") in ("0", "0.0"):
        left_out |= {key for key in config if key.startswith("decode_")}
    return {key: value for key, value in config.items() if key not in left_out}


def _accuracies(row: Row, values: tuple[str | None, ...], n: int | None, gone: str = "") -> Iterator[Row]:
    for metric, value in zip(METRICS, values, strict=True):
        if value is None:
            continue
        made = row.having(metric, value, gone=gone)
        if made.value is not None and n:
            interval = proportion(round(made.value * n), n)
            made = replace(made, n=n, low=interval.low, high=interval.high)
        yield made


def read_summary_log(path: Path, row: Row) -> Iterator[Row]:
    """Peak and final of each experiment of a suite; of a single run, whether it came to its end.

    The table at the end of a suite's is not read: its baseline row was typed in.
    """
    text = read_log(path)
    row = replace(row, layout="latentwire", cell=cell_of(row.run))
    blocks = re.split(r"^Experiment: *(?=\S+$)", text, flags=re.MULTILINE)
    for block in blocks[1:]:
        name = block.split("\n", 1)[0].strip()
        here = replace(row, run=f"{row.run}/{name}", cell=name)
        if peak := re.search(r"^ *Peak bridged: (\d+\.\d)%", block, re.MULTILINE):
            pattern = "its pattern takes the final evaluation for a peak too"
            yield here.at("peak").having("bridged_accuracy", float(peak[1]) / 100, QUOTED, pattern)
        if final := re.search(rf"^ *\[Final Eval\](?: \|)? {_ACCURACIES}", block, re.MULTILINE):
            rows = _accuracies(here.at("final"), final.groups(), None)
            yield from (replace(found, flags=(QUOTED,)) for found in rows)
        else:
            yield here.at("final").lacking("bridged_accuracy", "the summary quotes no final evaluation")
    if len(blocks) == 1 and not re.search(r"^End time:", text, re.MULTILINE):
        yield row.at("final").lacking("bridged_accuracy", "no end time: the run died")


def read_ablations(path: Path, row: Row) -> Iterator[Row]:
    """ablation_results.json: what its analyser took for missing, 0, is void here."""
    experiments = read_object(path)
    ran = {name for name in experiments if find_stored(path.parent / name / "train.log")}
    for name, found in experiments.items():
        here = replace(row, layout="latentwire", run=f"{row.run}/{name}", cell=name)
        if not isinstance(found, dict) or not isinstance(found.get("evals"), list):
            raise DamageError(f"{path}: {name} has no list of evals")
        evals: list[dict[str, Any]] = found["evals"]
        typed = TYPED if not evals or (ran and name not in ran) else ""
        for record in evals:
            at = here.at_step(record.get("step"))
            for metric, key in zip(METRICS, ("source", "target", "bridged"), strict=True):
                if key in record:
                    yield at.having(metric, record[key], QUOTED, gone=typed)
        for metric, key in zip(METRICS, ("final_source", "final_target", "final_bridged"), strict=True):
            if key in found:
                absent = not found[key] and not found.get("final_target")
                gone = typed or ("0 stands for a missing final evaluation" if absent else "")
                yield here.at("final").having(metric, found[key], QUOTED, gone=gone)
