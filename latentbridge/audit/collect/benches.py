"""Benches of what routing costs, a JSONL row a setting: our capacity job's rows, and the published ones.

What a capacity limit drops and how fast it is has one name in both, as in c1.25_drop_rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentbridge.audit.collect.files import AGAIN, at_line, read_records
from latentbridge.audit.collect.rows import Row, fingerprint
from latentbridge.capacity.rows import metric_name, metrics_of
from latentbridge.errors import DamageError

# what only our rows have
OURS = {"closed_form", "iterations"}
NEEDED = ("num_experts", "top_k")
# published names of what ours measure too
SAME = {"avg_drop_rate": "drop_rate"}
# what a row was told, or says of the machine: no measurements
SETTINGS = {
    *("name", "num_tokens", "hidden_dim", "num_experts", "top_k", "capacity_factor", "dtype", "device"),
    *("strategy", "expand", "backend", "ffn_mult", "temperature", "renorm_after_drop", "soft_normalize"),
    *("seed", "warmup", "iters", "ts", "git_sha"),
}
WHEN = {"ts", "git_sha"}
# of one setting a bench has a row for each factor
BY_FACTOR = {"capacity_factor", "slots"}
COMPACT = "its buffers hold what is kept and no empty slot: more room costs nothing there"


def read_bench(path: Path, row: Row) -> Iterator[Row | DamageError]:
    """A run for each setting of experts, choices and sizes; capacity factors are metrics of their own."""
    seen: Counter[str] = Counter()
    number = 0
    for number, record in read_records(path):
        if isinstance(record, DamageError):
            yield at_line(path, number, record)
            continue
        if lacking := [key for key in NEEDED if key not in record]:
            raise at_line(path, number, DamageError(f"no row of a bench: it lacks {', '.join(lacking)}"))
        here = _setting(path, row, record, seen)
        yield from _ours(here, record) if record.keys() >= OURS else _theirs(here, record)
    if not number:
        raise DamageError(f"{path}: it holds no row; {AGAIN}")


def _setting(path: Path, row: Row, record: dict[str, Any], seen: Counter[str]) -> Row:
    """A row's run; what was measured again under one setting is another run, which `collect` calls a twin."""
    is_ours = record.keys() >= OURS
    told = {key: value for key, value in record.items() if _is_setting(key, is_ours) and key not in WHEN}
    again = fingerprint(told)
    seen[again] += 1
    told = {key: value for key, value in told.items() if key not in BY_FACTOR}
    cell = f"E{record['num_experts']}_K{record['top_k']}"
    width = record.get("width" if is_ours else "hidden_dim", "")
    name = f"{cell}_{record.get('num_tokens', '')}x{width}"
    times = f"_{seen[again]}" if seen[again] > 1 else ""
    return replace(
        row,
        layout="latentbridge" if is_ours else "moe-routing-bench",
        run=f"{row.run}/{path.name.removesuffix('.jsonl')}/{name}{times}",
        cell=cell,
        seed=record.get("seed"),
        config=fingerprint({"bench": path.name, **told}),
        label="final",
    )


def _is_setting(key: str, is_ours: bool) -> bool:
    return key in SETTINGS or (is_ours and key in ("width", "preference", "slots", "iterations"))


def _ours(row: Row, record: dict[str, Any]) -> Iterator[Row]:
    for name, found in metrics_of([record]).items():
        yield row.measured(name, found)


def _theirs(row: Row, record: dict[str, Any]) -> Iterator[Row]:
    factor = record.get("capacity_factor")
    for key, value in record.items():
        if key in SETTINGS:
            continue
        what = SAME.get(key, key)
        name = what if factor is None else metric_name(float(factor), what)
        flags = (COMPACT,) if factor is not None and key in ("tokens_per_s", "avg_ms") else ()
        yield row.having(name, value, *flags)
