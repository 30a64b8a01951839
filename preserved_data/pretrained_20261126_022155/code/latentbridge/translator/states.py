"""Hidden states of the frozen source: read anew for each batch, or once for all runs of a launch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from latentbridge.data.assets import resolve_model
from latentbridge.data.cache import cached_tensors
from latentbridge.data.language_model import (
    TOKENS_AT_ONCE,
    FrozenLM,
    hidden_states,
    refuse_missing_layer,
    to_device,
)
from latentbridge.data.prefix import WORTH_SHARING, Prefix
from latentbridge.errors import RunError
from latentbridge.train import distributed
from latentbridge.translator.prompts import Padded, Tokens

_CHUNK = 64


class SourceStates(Protocol):
    """States of a split's prompts."""

    def take(self, indices: Sequence[int]) -> Padded:
        """Vectors (B, S, Ds) of these problems' prompts, padded on the right."""


class LiveStates:
    """Runs the source on each batch; what all prompts begin with, it reads once."""

    def __init__(self, lm: FrozenLM, layer: int, prompts: Tokens) -> None:
        refuse_missing_layer(lm, layer)
        self._lm, self._layer, self._prompts = lm, layer, prompts

    @cached_property
    def prefix(self) -> Prefix | None:
        """The shared beginning; None where it is too short to save anything."""
        shared = self._prompts.shared
        return Prefix(self._lm, shared) if len(shared) >= WORTH_SHARING else None

    @property
    def shared(self) -> Tensor | None:
        """States of the shared beginning, (P, Ds)."""
        return None if self.prefix is None else self.prefix.states[self._layer]

    def take(self, indices: Sequence[int]) -> Padded:
        return _behind(self.shared, self.own(indices))

    def own(self, indices: Sequence[int]) -> Padded:
        """States of what is a prompt's own, (B, S - P, Ds)."""
        prefix = self.prefix
        ids, mask = self._prompts.take(indices, "right", skip=0 if prefix is None else prefix.length)
        # a few rows at a time: without gradient no speed is lost, and memory does not depend on the batch
        rows = max(1, TOKENS_AT_ONCE // ids.shape[1])
        parts = [
            self._read(ids[start : start + rows], mask[start : start + rows])
            for start in range(0, len(ids), rows)
        ]
        return Padded(torch.cat(parts), mask)

    @torch.no_grad()
    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        if self.prefix is None:
            return hidden_states(self._lm, ids, mask, self._layer)
        states: Tensor = self.prefix.read(self._lm.embed(ids), mask, every_layer=True).hidden_states[
            self._layer
        ]
        return states


class StoredStates:
    """Runs the source once on all prompts, in fp16 on disk; ranks and runs that meet share the work.

    What is read back is mapped from the files: memory holds what was used last, and gives it up when asked.
    """

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
        self._shared = 0 if live.prefix is None else live.prefix.length
        if live.shared is not None:
            _refuse_overflow(live.shared.half())
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
        text = digest(self._prompts.take(chunk, "right"))
        key = {**self._key, "what": "source_states", "text": text, "shared": self._shared}
        states = cached_tensors(self._folder, key, lambda: self._compute(chunk))["states"]
        lengths = [self._prompts.lengths[index] - self._shared for index in chunk]
        rows: Sequence[Tensor] = torch.split(states, lengths)
        return rows

    def _compute(self, chunk: range) -> dict[str, Tensor]:
        values, mask = self._live.own(chunk)
        states = values[mask].half()  # (tokens, Ds)
        _refuse_overflow(states)
        return {"states": states}

    def take(self, indices: Sequence[int]) -> Padded:
        lengths = torch.tensor([self._prompts.lengths[index] - self._shared for index in indices])
        width = int(lengths.max())
        block = torch.zeros(len(indices), width, self._rows[0].shape[1], dtype=torch.float16)
        for row, index in enumerate(indices):
            block[row, : len(self._rows[index])] = self._rows[index]
        mask = torch.arange(width) < lengths[:, None]
        device = self._prompts.device
        return _behind(self._live.shared, Padded(to_device(block, device), to_device(mask, device)))


def _refuse_overflow(states: Tensor) -> None:
    if not bool(states.isfinite().all()):
        raise RunError(
            "source states do not fit fp16 (largest 65,504); write cache_source_states: false, "
            "or read another source.layer"
        )


def _behind(shared: Tensor | None, own: Padded) -> Padded:
    if shared is None:
        return own
    values, mask = own
    before = shared.to(values.dtype).expand(len(values), -1, -1)
    return Padded(
        torch.cat([before, values], dim=1), torch.cat([mask.new_ones(before.shape[:2]), mask], dim=1)
    )


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
