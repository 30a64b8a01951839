"""The published translator's files: train.log, summary.log and ablation_results.json."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentbridge.audit.collect.rows import Row, fingerprint, read_object, read_text
from latentbridge.errors import DamageError
from latentbridge.metric import proportion

_STAMP = re.compile(r'_?"?\d{8}_\d{6}"?$')
_CONFIG = re.compile(r"^==== Config ====\n((?:\w+:.*\n)+)", re.MULTILINE)
_LOSS = re.compile(
    r"^Step (\d+)/\d+ \| Loss \(avg over last \d+\): (-?\d+\.\d{4}|nan|inf)"
    r"(?: \| TokenAlign: (-?\d+\.\d{4}|nan|inf))?",
    re.MULTILINE,
)
_ACCURACIES = (
    r"(?:Source-alone acc: (\d\.\d{3}) \| )?Target-alone acc: (\d\.\d{3}) \| Bridged acc: (\d\.\d{3})"
)
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
QUOTED = "quoted from the run's train.log"


def cell_of(run: str) -> str:
    """A run folder's name without its stamp."""
    return _STAMP.sub("", run.rsplit("/", 1)[-1])


def read_train_log(path: Path, row: Row) -> Iterator[Row]:
    """Losses and accuracies as logged, to 4 and 3 decimals; intervals are Wilson's, from the logged n."""
    text = read_text(path)
    block = _CONFIG.search(text)
    losses, evals = list(_LOSS.finditer(text)), list(_EVAL.finditer(text))
    if not (block or losses or evals):
        raise DamageError(f"{path}: named like a training log, but holds no config, no step, no evaluation")
    config = _settings(block[1]) if block else {}
    seed = config.get("seed", "")
    row = replace(
        row,
        layout="latentwire",
        cell=cell_of(row.run),
        seed=int(seed) if seed.isdecimal() else None,
        config=fingerprint(effective(config)) if block else None,
    )
    for found in losses:
        here = row.at(found[1], int(found[1]))
        yield here.having("train_loss", found[2])
        if found[3]:
            yield here.having("token_alignment", found[3])
    sharded = _SHARDED.search(text)
    told = sharded[1] if sharded else config.get("eval_samples", "")
    kept_none = set(_NO_SAMPLES.findall(text))
    skipped = config.get("skip_source_baseline") == "True"
    for found in evals:
        label = found[1] or "final"
        here = row.at(label, int(found[1]) if found[1] else None)
        gone = NO_RECORDS if skipped or label in kept_none else ""
        yield from _accuracies(here, found.groups()[1:], int(told) if told.isdecimal() else None, gone)
    if not evals or evals[-1][1]:
        last = max((int(found[1]) for found in losses), default=0)
        yield row.at("final").lacking(
            "bridged_accuracy", f"the log ends at step {last} without a final evaluation"
        )


def _settings(block: str) -> dict[str, str]:
    parts = (line.partition(":") for line in block.splitlines())
    return {key: value.strip() for key, _, value in parts}


def effective(config: dict[str, str]) -> dict[str, str]:
    """The settings that change what is computed: no names, nothing that is without effect."""
    left_out = NAMES | INERT
    if float(config.get("decode_loss_weight", "1") or 1) == 0:
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
    text = read_text(path)
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
    for name, found in read_object(path).items():
        here = replace(row, layout="latentwire", run=f"{row.run}/{name}", cell=name)
        if not isinstance(found, dict) or not isinstance(found.get("evals"), list):
            raise DamageError(f"{path}: {name} has no list of evals")
        evals: list[dict[str, Any]] = found["evals"]
        for record in evals:
            at = here.at(str(record.get("step")), record.get("step"))
            for metric, key in zip(METRICS, ("source", "target", "bridged"), strict=True):
                if key in record:
                    yield at.having(metric, record[key], QUOTED)
        typed = "" if evals else "no evaluation stands behind it: it was typed in"
        for metric, key in zip(METRICS, ("final_source", "final_target", "final_bridged"), strict=True):
            if key in found:
                absent = not found[key] and not found.get("final_target")
                gone = typed or ("0 stands for a missing final evaluation" if absent else "")
                yield here.at("final").having(metric, found[key], QUOTED, gone=gone)
