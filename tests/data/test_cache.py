"""The cache computes once, keys by content, and outlives whoever was killed while holding it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from latentbridge.data.cache import cached_json, cached_tensors
from latentbridge.errors import RunError


def test_equal_keys_are_computed_once_whatever_their_order(tmp_path):
    calls = []

    def compute() -> list[int]:
        calls.append(1)
        return [3, 1]

    first = cached_json(tmp_path / "cache", {"model": "a", "cut": 5}, compute)
    second = cached_json(tmp_path / "cache", {"cut": 5, "model": "a"}, compute)

    assert first == second == [3, 1]
    assert len(calls) == 1


def test_a_different_key_is_a_different_entry(tmp_path):
    values = [cached_json(tmp_path, {"cut": cut}, lambda cut=cut: cut * 2) for cut in (5, 6)]

    assert values == [10, 12]


def test_tensors_come_back_bit_for_bit_with_their_type(tmp_path):
    made = {"states": torch.randn(2, 5, 8).bfloat16(), "mask": torch.tensor([[True, False, True]])}
    cached_tensors(tmp_path, {"k": 1}, lambda: made)
    read = cached_tensors(tmp_path, {"k": 1}, lambda: pytest.fail("computed again"))

    assert read["states"].dtype == torch.bfloat16
    assert all(torch.equal(read[name], made[name]) for name in made)


def test_a_failed_computation_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cached_json(tmp_path, {"k": 1}, lambda: 1 // 0)

    assert cached_json(tmp_path, {"k": 1}, lambda: "well") == "well"


def test_a_damaged_entry_is_named_with_its_remedy(tmp_path):
    cached_tensors(tmp_path, {"k": 1}, lambda: {"x": torch.zeros(3)})
    (entry,) = tmp_path.glob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:20])

    with pytest.raises(RunError, match=rf"{entry.name}.*delete it"):
        cached_tensors(tmp_path, {"k": 1}, lambda: {"x": torch.zeros(3)})


def _compute_slowly(folder: Path, value: str, started: str) -> None:
    def compute() -> str:
        (folder / started).touch()
        time.sleep(0.4)
        return value

    cached_json(folder, {"k": 1}, compute)


def _start(folder: Path, value: str) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(
        target=_compute_slowly, args=(folder, value, f"started_{value}")
    )
    process.start()
    deadline = time.monotonic() + 20
    while not (folder / f"started_{value}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_one_process_computes_while_the_other_waits(tmp_path):
    first = _start(tmp_path, "first")

    assert cached_json(tmp_path, {"k": 1}, lambda: "second") == "first"
    first.join()


def test_the_lock_of_a_killed_holder_blocks_nobody(tmp_path):
    victim = _start(tmp_path, "victim")
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()

    assert cached_json(tmp_path, {"k": 1}, lambda: "survivor") == "survivor"
