from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from latentbridge.config import build, read_yaml
from latentbridge.errors import ConfigError
from latentbridge.train.config import OptimConfig, TrainConfig, TrainedConfig, backed_off

MUON = {"lr": 0.007, "muon": {"lr": 0.07}}


def _train(tmp_path: Path, text: str) -> TrainConfig:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return build(TrainConfig, read_yaml(path, shown_as="train.yaml"))


def test_trap_3_bf16_at_zero_0_is_refused_not_raised_to_1_silently(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.yaml:1: .*bf16 needs zero_stage: 1 or more"):
        _train(tmp_path, "{steps: 6, batch_size: 4, precision: bf16, zero_stage: 0}")


@pytest.mark.parametrize("rest", ["", ", engine: torch", ", precision: bf16"])
def test_only_bf16_on_the_torch_engine_is_recorded(tmp_path: Path, rest: str) -> None:
    with pytest.raises(ConfigError, match="engine: torch with precision: bf16"):
        _train(tmp_path, f"{{steps: 6, batch_size: 4, recorded: true{rest}}}")


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


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_muon_is_refused_where_zero_cuts_matrices_up(stage: int) -> None:
    train = {"steps": 6, "batch_size": 4, "zero_stage": stage}
    with pytest.raises(ValueError, match="engine: torch}, or zero_stage: 0"):
        TrainedConfig.model_validate({"optim": MUON, "train": train})

    for whole in ({"engine": "torch"}, {"zero_stage": 0}, {"steps": 0}):
        TrainedConfig.model_validate({"optim": MUON, "train": train | whole})


def test_a_floor_of_a_schedule_that_does_not_fall_is_refused() -> None:
    with pytest.raises(ValueError, match="falls to no floor"):
        OptimConfig(lr=1.0, schedule="constant", floor=0.1)


def test_reading_a_train_config_does_not_import_torch() -> None:
    code = "import sys, latentbridge.train.config; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
