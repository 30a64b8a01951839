from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latentbridge.rundir import RunDir, read_jsonl
from latentbridge.train import distributed, flops, loop
from latentbridge.train.flops import matrix_size, peak_flops, utilisation


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        # other cards of the name, which are slower, a slice of one, and a stranger
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_peak_is_known_of_whole_cards_by_their_exact_name(name: str, expected: float | None) -> None:
    assert peak_flops(name) == expected


def test_tables_norms_and_biases_are_no_matrices_that_tokens_are_multiplied_with() -> None:
    parts = nn.Sequential(nn.Embedding(11, 5), nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3, bias=False))

    assert matrix_size(parts) == 5 * 7 + 7 * 3
    assert matrix_size(parts, "3") == 7 * 3


def test_mfu_is_of_all_ranks_and_only_of_a_known_card_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    assert utilisation(10**15, 2.0, "bf16") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(distributed, "world_size", lambda: 4)

    # 0.312e15 a second on each of four
    assert utilisation(10**15, 2.0, "bf16") == pytest.approx(1 / (2 * 4 * 0.312))
    assert utilisation(10**15, 2.0, "fp32") is None
    assert utilisation(0, 2.0, "bf16") is None
    monkeypatch.setattr(flops, "peak_flops", lambda name: None)
    assert utilisation(10**15, 2.0, "bf16") is None


def test_a_record_counts_the_flops_of_all_ranks_since_the_one_before(
    ranks: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(toy.Workload):  # type: ignore[misc, name-defined]
        def flops(self, batch: Any, step: int) -> int:
            return 10**step * len(batch)

    monkeypatch.setattr(loop, "utilisation", lambda found, seconds, precision: float(found))
    config = toy.make_config(log_every=2, micro_batch_size=1)
    ranks(lambda: toy.run(tmp_path, config, Counting()))

    # four samples an update, whoever has them
    found = [record["mfu"] for record in read_jsonl(RunDir(tmp_path).train_log)]
    assert found == [440, 44_000, 4_400_000]
