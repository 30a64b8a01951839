"""Muon beside torch's own, which takes single matrices only, and what of it a checkpoint keeps."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentbridge.rundir import RunDir, read_jsonl
from latentbridge.train.config import MuonConfig, OptimConfig
from latentbridge.train.muon import MuonAdamW, orthogonalised
from latentbridge.train.optim import build_optimizer, parameter_groups

OPTIM = OptimConfig(lr=0.01, weight_decay=0.1, muon=MuonConfig(lr=0.05, momentum=0.8))


def trained(starts: list[Tensor], gradients: list[list[Tensor]]) -> list[Tensor]:
    """Parameters after an update with each of the gradients."""
    parameters = [nn.Parameter(start.clone()) for start in starts]
    optimizer = MuonAdamW([{"params": parameters, "lr": 0.05, "weight_decay": 0.1, "momentum": 0.8}])
    for update in gradients:
        for parameter, gradient in zip(parameters, update, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (3, 6, 4)])
def test_each_matrix_comes_near_its_orthogonal_factor(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonalised(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)

    assert found.dtype == torch.float32
    sizes = torch.linalg.svdvals(found)
    assert sizes.min() > 0.65
    assert sizes.max() < 1.25
    # of matrices with the same singular vectors the inner product is the sum of the values
    torch.testing.assert_close((found * (u @ v)).sum((-2, -1)), sizes.sum(-1), rtol=1e-4, atol=0)


def test_an_expert_without_a_token_is_not_moved() -> None:
    assert not orthogonalised(torch.zeros(2, 3, 5)).any()


def test_a_stack_is_trained_as_its_experts_one_by_one() -> None:
    torch.manual_seed(0)
    start = torch.randn(3, 4, 7)
    gradients = [torch.randn(3, 4, 7) * torch.tensor([1.0, 100.0, 1e-3])[:, None, None] for _ in range(3)]
    (stack,) = trained([start], [[gradient] for gradient in gradients])
    # a stack's experts are (inputs, outputs), a dense layer's matrix (outputs, inputs)
    single = trained(list(start.mT), [list(gradient.mT) for gradient in gradients])

    torch.testing.assert_close(stack, torch.stack(single).mT, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 9), (12, 3)])
def test_a_matrix_is_trained_as_torch_does_it(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    other = nn.Parameter(start.clone())
    reference = torch.optim.Muon([other], lr=0.05, weight_decay=0.1, momentum=0.8)
    for gradient in gradients:
        other.grad = gradient.clone()
        reference.step()
    (mine,) = trained([start], [[gradient] for gradient in gradients])

    # torch iterates in bf16; three updates move an entry by 0.05 and more
    torch.testing.assert_close(mine, other.detach(), rtol=0, atol=4e-3)


def test_what_is_no_matrix_is_trained_by_adamw_to_the_bit() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 5), nn.Linear(3, 5)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [
        build_optimizer(*parameter_groups(layer, optim), optim, torch.device("cpu"))
        for layer, optim in zip(layers, (OPTIM, OPTIM.model_copy(update={"muon": None})), strict=True)
    ]
    for _ in range(3):
        for layer, optimizer in zip(layers, optimizers, strict=True):
            layer(torch.ones(2, 3)).square().sum().backward()
            # of matrices both get the same, or their outputs and with them the biases' gradients differ
            layer.weight.grad = None
            optimizer.step()
            optimizer.zero_grad()

    assert torch.equal(layers[0].bias, layers[1].bias)


def _curve(folder: Path) -> list[tuple[float, float]]:
    return [(record["loss"], record["grad_norm"]) for record in read_jsonl(RunDir(folder).train_log)]


def _kill_at(moment: int) -> Any:
    def hook(now: int) -> None:
        if now == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def test_a_muon_run_killed_and_resumed_equals_an_uninterrupted_one_bit_for_bit(
    ranks: Any, toy: Any, tmp_path: Path
) -> None:
    config = toy.make_config(engine="torch").model_copy(update={"optim": OPTIM})
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    ranks(toy.run, whole, config, world_size=1)
    ranks.until_killed(toy.run, resumed, config, toy.Workload(losses=_kill_at(5)), world_size=1)
    ranks(toy.run, resumed, config, world_size=1)

    assert _curve(resumed) == _curve(whole)
    assert len(_curve(whole)) == 6


def test_deepspeed_that_cuts_nothing_trains_with_muon_as_torch_does(
    ranks: Any, toy: Any, tmp_path: Path
) -> None:
    for name, train in (("torch", {"engine": "torch"}), ("deepspeed", {"zero_stage": 0})):
        config = toy.make_config(**train).model_copy(update={"optim": OPTIM})
        (tmp_path / name).mkdir()
        ranks(toy.run, tmp_path / name, config, world_size=2)

    assert torch.tensor(_curve(tmp_path / "deepspeed")) == pytest.approx(
        torch.tensor(_curve(tmp_path / "torch")), rel=3e-6
    )
