from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from latentbridge.config import build, read_yaml
from latentbridge.errors import ConfigError
from latentbridge.train.config import OptimConfig, TrainConfig, backed_off


def _train(tmp_path: Path, text: str) -> TrainConfig:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return build(TrainConfig, read_yaml(path, shown_as="train.yaml"))


def test_trap_3_bf16_at_zero_0_is_refused_not_raised_to_1_silently(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.yaml:1: .*bf16 needs zero_stage: 1 or more"):
        _train(tmp_path, "{steps: 6, batch_size: 4, precision: bf16, zero_stage: 0}")


def test_bf16_on_the_reference_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="engine: deepspeed, or precision: fp32"):
        _train(tmp_path, "{steps: 6, batch_size: 4, precision: bf16, engine: torch}")


def test_an_update_is_cut_into_equal_forwards() -> None:
    whole = TrainConfig(steps=6, batch_size=12)
    cut = TrainConfig(steps=6, batch_size=12, micro_batch_size=3)

    assert whole.micro_batches(world_size=2) == (1, 6)
    assert cut.micro_batches(world_size=2) == (2, 3)
    assert cut.micro_batches(world_size=1) == (4, 3)


def test_a_batch_that_ranks_cannot_share_equally_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 5"):
        TrainConfig(steps=6, batch_size=12).micro_batches(world_size=5)
    with pytest.raises(ConfigError, match="divisor of 6"):
        TrainConfig(steps=6, batch_size=12, micro_batch_size=4).micro_batches(world_size=2)


def test_backing_off_halves_the_micro_batch_and_leaves_the_batch_as_it_is() -> None:
    cut = TrainConfig(steps=6, batch_size=24, micro_batch_size=6)

    assert [cut.micro_batches(world_size=2, backoff=n) for n in (0, 1, 2)] == [(2, 6), (4, 3), (12, 1)]


@pytest.mark.parametrize(
    ("per_rank", "micro", "sizes"),
    [(8, 8, [8, 4, 2, 1, None]), (10, 10, [10, 5, 2, 1, None]), (15, 5, [5, 1, None]), (7, 7, [7, 1, None])],
)
def test_every_back_off_really_shrinks_the_micro_batch_until_it_is_1(
    per_rank: int, micro: int, sizes: list[int | None]
) -> None:
    assert [backed_off(per_rank, micro, times) for times in range(len(sizes))] == sizes


def test_a_micro_batch_of_1_is_refused_to_back_off() -> None:
    with pytest.raises(ConfigError, match="4 cannot be halved 3 times: the micro-batch is 1 already"):
        TrainConfig(steps=6, batch_size=12, micro_batch_size=4).micro_batches(world_size=1, backoff=3)


def test_betas_are_written_as_a_yaml_list(tmp_path: Path) -> None:
    path = tmp_path / "optim.yaml"
    path.write_text("{lr: 1e-4, betas: [0.9, 0.95]}")

    assert build(OptimConfig, read_yaml(path)).betas == (0.9, 0.95)

    path.write_text("{lr: 1e-4, betas: [0.9, 1.0]}")
    with pytest.raises(ConfigError, match="below 1"):
        build(OptimConfig, read_yaml(path))


def test_reading_a_train_config_does_not_import_torch() -> None:
    code = "import sys, latentbridge.train.config; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
