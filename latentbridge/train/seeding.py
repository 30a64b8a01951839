"""Randomness as a function of where a run is, so a resumed run needs no generator states to go on exactly."""

from __future__ import annotations

import hashlib
import random

import numpy
import torch


def reseed(*position: int | str) -> None:
    """Seed every generator from a position such as (seed, "update", 17, rank).

    Done before each update and evaluation: neither depends on how many random numbers were drawn before.
    """
    number = _number_of(position)
    random.seed(number)
    numpy.random.seed(number % 2**32)
    # torch.manual_seed would, in a process without CUDA, keep a traceback of every call
    torch.default_generator.manual_seed(number % 2**63)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(number % 2**63)


def seeded_normal(shape: tuple[int, ...], *position: int | str) -> torch.Tensor:
    """Normal noise that depends on the position alone, such as (seed, "evaluate", example); on the CPU."""
    generator = torch.Generator().manual_seed(_number_of(position) % 2**63)
    return torch.randn(shape, generator=generator)


def _number_of(position: tuple[int | str, ...]) -> int:
    text = "/".join(str(part) for part in position)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class SampleOrder:
    """Which examples each update sees: seeded permutations of the training set, one after the other."""

    def __init__(self, seed: int, num_examples: int) -> None:
        self._seed = seed
        self._num_examples = num_examples
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def take(self, start: int, count: int) -> list[int]:
        """Example indices at positions start..start+count of the endless order; it may cross epochs."""
        indices: list[int] = []
        while len(indices) < count:
            epoch, offset = divmod(start + len(indices), self._num_examples)
            indices += self._epoch_order(epoch)[offset : offset + count - len(indices)].tolist()
        return indices

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
            self._permutation = torch.randperm(self._num_examples, generator=generator)
            self._epoch = epoch
        return self._permutation


class PassOrder(SampleOrder):
    """As `SampleOrder`, where an index also tells the pass: pass * num_examples + example."""

    def take(self, start: int, count: int) -> list[int]:
        """Indices at positions start..start+count of the endless order."""
        examples = super().take(start, count)
        passes = [(start + number) // self._num_examples for number in range(count)]
        return [number * self._num_examples + index for number, index in zip(passes, examples, strict=True)]
