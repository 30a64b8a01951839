from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentbridge.errors import ConfigError
from latentbridge.rundir import RunDir, read_jsonl
from latentbridge.train import distributed
from latentbridge.train.config import OptimConfig, TrainConfig
from latentbridge.train.engine import build_engine

ENGINES: list[dict[str, Any]] = [{"engine": "torch"}, *({"zero_stage": stage} for stage in (0, 1, 2, 3))]


def _curve(ranks: Any, toy: Any, folder: Path, world_size: int = 1, **train: Any) -> list[list[float]]:
    """Loss and gradient norm of every update."""
    folder.mkdir()
    ranks(toy.run, folder, toy.make_config(**train), world_size=world_size)
    return [[record["loss"], record["grad_norm"]] for record in read_jsonl(RunDir(folder).train_log)]


@pytest.fixture(scope="module")
def reference(ranks: Any, toy: Any, tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    return _curve(ranks, toy, tmp_path_factory.mktemp("reference") / "run", engine="torch")


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("train", ENGINES, ids=str)
def test_every_engine_trains_as_plain_torch_on_one_rank_does(
    ranks: Any, toy: Any, tmp_path: Path, reference: Any, train: dict[str, Any], world_size: int
) -> None:
    # trap 4 is in here: at ZeRO-0 in fp32 DeepSpeed itself tells no gradient norm
    curve = _curve(ranks, toy, tmp_path / "run", world_size, **train)

    assert torch.tensor(curve) == pytest.approx(torch.tensor(reference), rel=3e-6)
    # clipping was at work, and not at every update
    assert {norm > 0.5 for _, norm in reference} == {True, False}


@pytest.mark.parametrize("train", [ENGINES[0], ENGINES[1], ENGINES[3]], ids=str)
def test_accumulating_two_micro_batches_equals_one_large_batch(
    ranks: Any, toy: Any, tmp_path: Path, reference: Any, train: dict[str, Any]
) -> None:
    curve = _curve(ranks, toy, tmp_path / "run", world_size=2, micro_batch_size=1, **train)

    assert torch.tensor(curve) == pytest.approx(torch.tensor(reference), rel=3e-6)


@pytest.mark.parametrize("train", [ENGINES[0], ENGINES[2], ENGINES[4]], ids=str)
def test_backing_off_accumulates_twice_as_often_and_trains_the_same(
    ranks: Any, toy: Any, tmp_path: Path, reference: Any, train: dict[str, Any]
) -> None:
    folder = RunDir(tmp_path / "run")
    folder.path.mkdir()
    folder.write_manifest({"backoff": 1})
    ranks(toy.run, folder.path, toy.make_config(**train))
    records = list(read_jsonl(folder.train_log))

    curve = [[record["loss"], record["grad_norm"]] for record in records]
    assert torch.tensor(curve) == pytest.approx(torch.tensor(reference), rel=3e-6)
    assert {(record["micro_batch_size"], record["accumulation"]) for record in records} == {(1, 2)}


BF16: list[dict[str, Any]] = [
    {"zero_stage": 1},
    {"engine": "torch"},
    {"engine": "torch", "micro_batch_size": 1},
]


@pytest.mark.parametrize("train", BF16, ids=str)
def test_bf16_follows_fp32_to_its_own_precision(
    ranks: Any, toy: Any, tmp_path: Path, reference: Any, train: dict[str, Any]
) -> None:
    curve = _curve(ranks, toy, tmp_path / "run", precision="bf16", **train)

    # 8 bits of mantissa; trap 3 would put the second loss off by far more
    assert torch.tensor(curve) == pytest.approx(torch.tensor(reference), rel=2e-2)


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_every_rank_starts_from_rank_0s_weights(ranks: Any, toy: Any, engine: str) -> None:
    def first_weight() -> float:
        distributed.init()
        model = toy.Model(dropout=0.0)
        nn.init.constant_(model.up.weight, 3.0 + distributed.rank())
        train = TrainConfig.model_validate({"steps": 6, "batch_size": 4, "engine": engine})
        build_engine(model, OptimConfig(lr=0.1), train)
        return model.up.weight[0, 0].item()

    assert ranks(first_weight) == [3.0, 3.0]


@pytest.mark.parametrize("train", [ENGINES[0], ENGINES[2], ENGINES[4]], ids=str)
def test_trap_5_group_settings_that_a_load_overwrote_do_not_reach_an_update(
    ranks: Any, toy: Any, train: dict[str, Any]
) -> None:
    def settings_of_an_update() -> list[tuple[float, float]]:
        distributed.init()
        config = toy.make_config(**train)
        engine = build_engine(toy.Model(dropout=0.0), config.optim, config.train)
        optimizer = engine.deepspeed.optimizer if config.train.engine == "deepspeed" else engine.optimizer
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = 7.0, 7.0
        engine.backward(engine.model(torch.ones(4, 5)).square().mean())
        engine.update(lr_factor=0.5)
        return [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]

    expected = [(0.025, 0.1), (0.025, 0.0), (pytest.approx(0.075), 0.0)]
    assert ranks(settings_of_an_update, world_size=1) == [expected]


class SeparateExperts(nn.Module):
    """Three experts, each a module of its own; rank 0 uses the first two, rank 1 the outer two."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(5, 3) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        used = [0, 1 + distributed.rank()]
        return torch.stack([self.experts[expert](inputs) for expert in used]).sum(0)


class StackedExperts(nn.Module):
    """The same experts in one tensor: every rank's gradient has every expert's rows."""

    def __init__(self) -> None:
        super().__init__()
        separate = SeparateExperts().experts
        self.weight = nn.Parameter(torch.stack([expert.weight.detach() for expert in separate]))
        self.bias = nn.Parameter(torch.stack([expert.bias.detach() for expert in separate]))

    def forward(self, inputs: Tensor) -> Tensor:
        used = torch.tensor([0, 1 + distributed.rank()])
        return torch.einsum("bd,kfd->bf", inputs, self.weight[used]) + self.bias[used].sum(0)


def _expert_losses(kind: type[nn.Module], **train: Any) -> list[float]:
    distributed.init()
    torch.manual_seed(0)
    model = kind()
    config = TrainConfig.model_validate({"steps": 3, "batch_size": 8, **train})
    engine = build_engine(model, OptimConfig(lr=0.1, clip_norm=None), config)
    losses = []
    for _ in range(4):
        loss = (engine.model(torch.arange(20.0).view(4, 5) / 20) - 1).square().mean()
        engine.backward(loss)
        engine.update(lr_factor=1.0)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("stage", [1, 2])
def test_trap_6_stacked_experts_train_right_where_separate_modules_go_wrong_unnoticed(
    ranks: Any, stage: int
) -> None:
    right = ranks(_expert_losses_of(SeparateExperts, engine="torch"))
    stacked = ranks(_expert_losses_of(StackedExperts, zero_stage=stage))
    separate = ranks(_expert_losses_of(SeparateExperts, zero_stage=stage))

    assert torch.tensor(stacked) == pytest.approx(torch.tensor(right), rel=1e-5)
    # once this fails, DeepSpeed has been repaired, and experts may be modules of their own
    assert torch.tensor(separate) != pytest.approx(torch.tensor(right), rel=1e-3)


def _averaged_weight_gradients(kind: type[nn.Module], stage: int) -> list[float]:
    """What this rank's part will be moved by, where a rank's own gradient is 1 + its number everywhere."""
    distributed.init()
    config = TrainConfig.model_validate({"steps": 3, "batch_size": 2, "zero_stage": stage})
    engine = build_engine(kind(), OptimConfig(lr=0.1, clip_norm=None), config)
    engine.backward((1 + distributed.rank()) * engine.model(torch.ones(1, 5)).sum())
    own: list[Tensor] = engine.deepspeed.optimizer.averaged_gradients[0]
    return torch.cat([part.flatten() for part in own]).tolist()


@pytest.mark.parametrize("stage", [1, 2])
def test_trap_6_is_that_gradients_of_different_experts_are_added(ranks: Any, stage: int) -> None:
    """Three experts of 15 weights; rank 0 has gradients of the first two, rank 1 of the outer two."""

    def averaged(kind: type[nn.Module]) -> list[float]:
        first, second = ranks(lambda: _averaged_weight_gradients(kind, stage))
        return [*first, *second][:45]

    assert averaged(StackedExperts) == [1.5] * 15 + [0.5] * 15 + [1.0] * 15
    # a rank puts what it has into one bucket, so that rank 0's second expert is summed with rank 1's third;
    # where ranks use different numbers of experts, buckets differ in size, and the run dies or hangs
    assert averaged(SeparateExperts) == [1.5] * 15 + [1.5] * 9 + [0.0] * 6 + [1.5] * 15


def _expert_losses_of(kind: type[nn.Module], **train: Any) -> Any:
    return lambda: _expert_losses(kind, **train)


def test_a_scalar_parameter_is_refused_before_deepspeed_stumbles_over_it(ranks: Any) -> None:
    def build() -> None:
        distributed.init()
        model = nn.Linear(2, 3)
        model.register_parameter("gate", nn.Parameter(torch.zeros(())))
        with pytest.raises(ConfigError, match=r"Linear\.gate is a scalar.*shape \(1,\)"):
            build_engine(model, OptimConfig(lr=0.1), TrainConfig(steps=6, batch_size=4))

    ranks(build, world_size=1)
