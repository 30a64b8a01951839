"""One face for DeepSpeed and for plain torch, its reference: same config, same losses to rounding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentbridge.errors import ConfigError, RunError
from latentbridge.train import distributed
from latentbridge.train.config import OptimConfig, TrainConfig
from latentbridge.train.optim import apply_settings, build_adamw, parameter_groups

_FOLDER = "engine"


class Engine(ABC):
    """Forward through `model`, `backward` once a micro-batch, then `update` once."""

    model: nn.Module
    module: nn.Module
    zero_stage = 0

    def __init__(self, model: nn.Module, optim: OptimConfig, train: TrainConfig, backoff: int = 0) -> None:
        """model: moved to this rank's device; every rank starts from rank 0's weights."""
        self.module = model.to(distributed.device())
        self.clip_norm = optim.clip_norm
        self.accumulation, self.micro_batch_size = train.micro_batches(distributed.world_size(), backoff)
        groups, self.settings = parameter_groups(model, optim)
        self.optimizer = build_adamw(groups, self.settings, optim, distributed.device())

    def set_training(self, training: bool) -> None:
        """Switch dropout and the like on or off."""
        self.module.train(training)
        # DeepSpeed's own wrapper does not follow its module
        self.model.training = training

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch's loss."""

    @abstractmethod
    def update(self, lr_factor: float) -> Tensor | float:
        """Average gradients over ranks, clip, step; returns the gradient norm before clipping."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write model and optimiser into `folder`; all ranks together."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, bit for bit; all ranks together, before the first update."""


def build_engine(model: nn.Module, optim: OptimConfig, train: TrainConfig, backoff: int = 0) -> Engine:
    """The engine that the config asks for; backoff: how many times to halve the micro-batch."""
    if train.steps == 0:
        return FixedEngine(model)
    return (DeepSpeedEngine if train.engine == "deepspeed" else TorchEngine)(model, optim, train, backoff)


class FixedEngine(Engine):
    """A model that is only evaluated: there is nothing to update or to save."""

    def __init__(self, model: nn.Module) -> None:
        self.model = self.module = model.to(distributed.device())
        self.accumulation, self.micro_batch_size = 1, 1

    def backward(self, loss: Tensor) -> None:
        raise AssertionError("train.steps is 0")

    def update(self, lr_factor: float) -> Tensor:
        raise AssertionError("train.steps is 0")

    def save(self, folder: Path) -> None:
        pass

    def load(self, folder: Path) -> None:
        pass


class TorchEngine(Engine):
    """Plain torch with gradients averaged over ranks; in fp32 the reference for the other."""

    def __init__(self, model: nn.Module, optim: OptimConfig, train: TrainConfig, backoff: int = 0) -> None:
        super().__init__(model, optim, train, backoff)
        self.model = self.module
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if distributed.world_size() > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.detach(), src=0)

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss / self.accumulation)

    def update(self, lr_factor: float) -> Tensor:
        for parameter in self.parameters:
            # unused on this rank is a gradient of 0: another rank may have used it
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters]
        if distributed.world_size() > 1:
            _average_over_ranks(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        apply_settings(self.optimizer.param_groups, self.settings, lr_factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def save(self, folder: Path) -> None:
        if distributed.rank() == 0:
            state = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, folder / f"{_FOLDER}.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / f"{_FOLDER}.pt", map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def _refuse_zero_dimensional(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        # DeepSpeed 0.19 sends parameters between ranks as bytes, and a scalar tensor has no such view
        if parameter.ndim == 0:
            raise ConfigError(
                f"{type(model).__name__}.{name} is a scalar, which DeepSpeed cannot send to other ranks; "
                "give it shape (1,)"
            )


def _average_over_ranks(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= distributed.world_size()
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class DeepSpeedEngine(Engine):
    """DeepSpeed driven natively, with our AdamW and our schedule; ZeRO stage from the config."""

    def __init__(self, model: nn.Module, optim: OptimConfig, train: TrainConfig, backoff: int = 0) -> None:
        super().__init__(model, optim, train, backoff)
        _refuse_zero_dimensional(model)
        import deepspeed

        self.zero_stage = train.zero_stage
        self.model, *_ = deepspeed.initialize(
            model=self.module,
            optimizer=self.optimizer,
            config=self._deepspeed_config(train),
            dist_init_required=False,
        )
        self.deepspeed: Any = self.model

    def _deepspeed_config(self, train: TrainConfig) -> dict[str, Any]:
        numel = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        return {
            "train_batch_size": train.batch_size,
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": self.clip_norm or 0.0,
            "zero_optimization": {
                "stage": train.zero_stage,
                # the whole bucket is allocated, 2 GB by default, however small the model is
                "reduce_bucket_size": min(numel, 500_000_000),
            },
            # the loop looks for values that are not finite; DeepSpeed's check makes the host wait each update
            "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": False},
            # it makes the host wait as well
            "timers": {"throughput": {"enabled": False}},
        }

    def backward(self, loss: Tensor) -> None:
        self.deepspeed.backward(loss)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()  # counts the micro-batch, updates nothing

    def update(self, lr_factor: float) -> Tensor | float:
        apply_settings(self.deepspeed.optimizer.param_groups, self.settings, lr_factor)
        # trap 4: at stage 0 DeepSpeed clips but does not tell the norm; gradients are averaged by now
        norm = torch.nn.utils.get_total_norm(self._gradients()) if self.zero_stage == 0 else None
        self.deepspeed.step()
        return self.deepspeed.get_global_grad_norm() if norm is None else norm

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.module.parameters() if p.grad is not None]

    def save(self, folder: Path) -> None:
        self.deepspeed.save_checkpoint(str(folder), tag=_FOLDER, save_latest=False)

    def load(self, folder: Path) -> None:
        path, _ = self.deepspeed.load_checkpoint(str(folder), tag=_FOLDER)
        if path is None:
            raise RunError(
                f"{folder / _FOLDER}: DeepSpeed found no checkpoint there; remove checkpoints/last"
            )
