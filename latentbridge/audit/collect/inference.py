"""What the published translator's benchmark of inference writes: accuracy and cost of replies, by method.

No such file was published, since the benchmark never ran; it was read in the two versions of its code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentbridge.audit.collect.files import AGAIN, at_line, read_object, read_records
from latentbridge.audit.collect.latentwire import cell_of
from latentbridge.audit.collect.rows import Row
from latentbridge.errors import DamageError
from latentbridge.metric import mean, proportion
from latentbridge.rundir import find_stored

SAMPLES = "inference_per_sample.jsonl"
# of one reply
MEASURED = {
    "em": "em",
    "f1": "f1",
    "latency_sec": "latency_s",
    "input_len": "input_len",
    "output_len": "output_len",
    "total_seq_len": "total_seq_len",
    "kv_cache_mb": "kv_mib",
    "peak_mem_mb": "peak_mem_mib",
    "mem_delta_mb": "mem_delta_mib",
}
# what this project's own runs write under the same name
OURS = "hardware"
CACHE = "a constant 0.5 MB a token, not measured: the two models hold 0.125 MiB, 4 times less"
CUT = (
    "as many of the reply's first tokens were cut off as it had inputs: it was not the reply that was scored"
)
# of a reply to embeddings only the reply comes back, and the length of the input was sliced from it
SLICED = ("em", "f1", "output_len", "total_seq_len")
QUOTED = f"made of {SAMPLES}, which is beside it"


def read_aggregate(path: Path, row: Row) -> Iterator[Row]:
    """inference_aggregate.json: means over questions, and the lowest and the highest cost."""
    methods = read_object(path)
    if OURS in methods:
        raise DamageError(f"{path}: of a run of this project; collect its whole folder, with manifest.json")
    row = _place(row)
    saved = methods.pop("kv_cache_savings", {})
    if not methods or not all(isinstance(own, dict) and "num_samples" in own for own in methods.values()):
        raise DamageError(f"{path}: num_samples of each method is needed; {AGAIN}")
    flags = (QUOTED,) if find_stored(path.with_name(SAMPLES)) else ()
    for method, own in methods.items():
        here = replace(row, n=own["num_samples"])
        accuracy = own.get("accuracy") or {}
        for key in ("em", "f1"):
            if key in accuracy:
                yield here.having(f"{method}_{key}", accuracy[key], *flags, gone=_cut(method, key))
        for key in ("latency_sec", "kv_cache_mb"):
            for bound, value in (own.get(key) or {}).items():
                name = f"{method}_{MEASURED[key]}" + ("" if bound == "mean" else f"_{bound}")
                yield here.having(name, value, *flags, gone=CACHE if key == "kv_cache_mb" else "")
    yield from (row.having(f"kv_saved_{key}", value, gone=CACHE) for key, value in saved.items())


def read_samples(path: Path, row: Row) -> Iterator[Row | DamageError]:
    """inference_per_sample.jsonl: means over the questions that can be read, with their intervals."""
    row = _place(row)
    found: dict[tuple[str, str], list[float]] = {}
    line = 0
    for line, record in read_records(path):
        if isinstance(record, DamageError):
            yield at_line(path, line, record)
            continue
        methods = {name: own for name, own in record.items() if isinstance(own, dict)}
        if not methods:
            yield at_line(path, line, DamageError("a record without a method's reply"))
        elif any("kv_bytes" in own for own in methods.values()):
            raise DamageError(
                f"{path}: of a run of this project; collect its whole folder, with manifest.json"
            )
        try:
            measured = list(_measured(methods))
        except DamageError as error:
            yield at_line(path, line, error)
            continue
        for place, value in measured:
            found.setdefault(place, []).append(value)
    if not line:
        raise DamageError(f"{path}: it holds no record; {AGAIN}")
    for (method, key), values in found.items():
        name = f"{method}_{MEASURED[key]}"
        gone = CACHE if key == "kv_cache_mb" else _cut(method, key)
        metric = proportion(round(sum(values)), len(values)) if key == "em" else mean(values)
        yield row.lacking(name, gone) if gone else row.measured(name, metric)


def _measured(methods: dict[str, dict[str, Any]]) -> Iterator[tuple[tuple[str, str], float]]:
    for method, own in methods.items():
        for key in MEASURED:
            if key not in own:
                continue
            value = own[key]
            if type(value) not in (int, float, bool):
                raise DamageError(f"{key} of {method} is {value!r}; a number is needed")
            yield (method, key), float(value)


def _place(row: Row) -> Row:
    return replace(row, layout="latentwire", cell=cell_of(row.run)).at("final")


def _cut(method: str, key: str) -> str:
    return CUT if method == "latent" and key in SLICED else ""
