"""What is computed once: results under the hash of what they depend on, for all runs of a launch."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from latentbridge.errors import RunError
from latentbridge.rundir import read_json, sync_folder, write_json

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def cached_json(folder: Path, key: dict[str, Any], compute: Callable[[], T]) -> T:
    """A JSON value; `key` names all that it depends on, in plain data."""

    def save(path: Path, value: T) -> None:
        write_json(path, {"key": key, "value": value})

    def load(path: Path) -> T:
        value: T = read_json(path)["value"]
        return value

    return cached(folder, key, ".json", compute, save, load)


def cached_tensors(
    folder: Path, key: dict[str, Any], compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Named tensors, on the CPU; `key` names all that they depend on, in plain data."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    def save(path: Path, tensors: dict[str, Tensor]) -> None:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(whole, temporary, metadata={"key": _canonical(key)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)

    def load(path: Path) -> dict[str, Tensor]:
        try:
            tensors: dict[str, Tensor] = load_file(path)
        except SafetensorError as error:
            raise RunError(f"{path}: damaged ({error}); delete it, and it is computed again") from None
        return tensors

    return cached(folder, key, ".safetensors", compute, save, load)


def cached(
    folder: Path,
    key: dict[str, Any],
    suffix: str,
    compute: Callable[[], T],
    save: Callable[[Path, T], None],
    load: Callable[[Path], T],
) -> T:
    """Load the entry of `key`, or compute and save it; one process computes, the others wait for it.

    save must replace the file in one step. What is returned is always what `load` reads back, so the first
    run sees exactly what later runs see.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (hashlib.sha256(_canonical(key).encode()).hexdigest()[:32] + suffix)
    if not path.exists():
        with _only_one(path.with_suffix(".lock")):
            if not path.exists():
                save(path, compute())
    return load(path)


def _canonical(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel drops with its holder, so a killed process blocks nobody."""
    with open(path, "ab") as file:
        # some file systems have no locks; there several processes compute the same, and the last one wins
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
