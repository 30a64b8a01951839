"""Hidden states of the frozen source: read anew for each batch, or once for all runs of a launch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from latentbridge.data.assets import resolve_model
from latentbridge.data.cache import cached_tensors
from latentbridge.data.language_model import FrozenLM, hidden_states
from latentbridge.errors import RunError
from latentbridge.train import distributed
from latentbridge.translator.prompts import Padded, Tokens, to_device

_CHUNK = 64


class SourceStates(Protocol):
    """States of a split's prompts."""

    def take(self, indices: Sequence[int]) -> Padded:
        """Vectors (B, S, Ds) of these problems' prompts, padded on the right."""


class LiveStates:
    """Runs the source on each batch."""

    def __init__(self, lm: FrozenLM, layer: int, prompts: Tokens) -> None:
        self._lm, self._layer, self._prompts = lm, layer, prompts

    def take(self, indices: Sequence[int]) -> Padded:
        ids, mask = self._prompts.take(indices, "right")
        return Padded(hidden_states(self._lm, ids, mask, self._layer), mask)


class StoredStates:
    """Runs the source once on all prompts, in fp16 on disk; ranks and runs that meet share the work."""

    def __init__(
        self,
        live: LiveStates,
        prompts: Tokens,
        folder: Path,
        key: dict[str, Any],
        progress: Callable[[int, int], None],
    ) -> None:
        """key: what the states depend on beside the token ids;  progress: is told (done, all) problems."""
        self._live, self._prompts, self._folder, self._key = live, prompts, folder, key
        count = len(prompts.lengths)
        chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
        # each rank computes its share first, and then finds the others' on disk
        for chunk in distributed.shard(chunks):
            self._read(chunk)
            progress(chunk.stop, count)
        self._rows: list[Tensor] = []
        for chunk in chunks:
            self._rows += self._read(chunk)
            progress(chunk.stop, count)

    def _read(self, chunk: range) -> Sequence[Tensor]:
        key = {**self._key, "what": "source_states", "text": digest(self._prompts.take(chunk, "right"))}
        states = cached_tensors(self._folder, key, lambda: self._compute(chunk))["states"]
        rows: Sequence[Tensor] = torch.split(states, [self._prompts.lengths[index] for index in chunk])
        return rows

    def _compute(self, chunk: range) -> dict[str, Tensor]:
        values, mask = self._live.take(chunk)
        states = values[mask].half()  # (tokens, Ds)
        if not bool(states.isfinite().all()):
            raise RunError(
                "source states do not fit fp16 (largest 65,504); write cache_source_states: false, "
                "or read another source.layer"
            )
        return {"states": states}

    def take(self, indices: Sequence[int]) -> Padded:
        lengths = torch.tensor([self._prompts.lengths[index] for index in indices])
        width = int(lengths.max())
        block = torch.zeros(len(indices), width, self._rows[0].shape[1], dtype=torch.float16)
        for row, index in enumerate(indices):
            block[row, : len(self._rows[index])] = self._rows[index]
        mask = torch.arange(width) < lengths[:, None]
        return Padded(to_device(block, self._prompts.device), to_device(mask, self._prompts.device))


def digest(ids: Padded) -> str:
    """Short hash of token ids and their mask, for cache keys."""
    return hashlib.sha256(repr([block.tolist() for block in ids]).encode()).hexdigest()[:32]


def model_key(name: str, lm: FrozenLM) -> dict[str, Any]:
    """What identifies a frozen model's weights in a cache key: commit of a hub model, files of a folder."""
    path = Path(resolve_model(name))
    files = sorted(path.iterdir()) if path.is_dir() else []
    return {
        "model": name,
        "commit": getattr(lm.model.config, "_commit_hash", None),
        "files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "dtype": str(lm.embedding.dtype),
    }
