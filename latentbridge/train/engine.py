"""One face for DeepSpeed and for plain torch, its reference: same config, same losses to rounding."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.errors import ConfigError, RunError
from latentbridge.nn.exchange import peers_of
from latentbridge.train import distributed, shards
from latentbridge.train.adamw import WideAdamW
from latentbridge.train.config import OptimConfig, TrainConfig
from latentbridge.train.optim import apply_settings, build_optimizer, parameter_groups, with_settings
from latentbridge.train.recorded import Recorded

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
        self.optimizer = build_optimizer(groups, self.settings, optim, distributed.device())

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
    """Plain torch with gradients averaged over ranks; in fp32 the reference for the other.

    In bf16 its arithmetic is DeepSpeed's: bf16 weights, activations and gradients, float32 master weights and
    moments; sums over micro-batches are float32.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, train: TrainConfig, backoff: int = 0) -> None:
        model.to(distributed.device())
        shards.start_alike(model)
        super().__init__(model, optim, train, backoff)
        self.model = self.module
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.wide: WideAdamW | None = None
        if train.precision == "bf16":
            groups = [group["params"] for group in self.optimizer.param_groups]
            self.wide = WideAdamW(with_settings(groups, self.settings), optim.betas)
            self.optimizer = self.wide  # type: ignore[assignment]
        self.gradients: list[Tensor] = []
        if self.accumulation > 1 and self.wide is not None:
            self.gradients = self.wide.make_sums()
        elif self.accumulation > 1:
            self.gradients = [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters]
        self._step = Recorded(self._clip_and_step) if train.recorded else self._clip_and_step

    def backward(self, loss: Tensor) -> None:
        found = torch.autograd.grad(loss / self.accumulation, self.parameters, allow_unused=True)
        # unused on this rank is a gradient of 0: another rank may have used it
        pairs = zip(found, self.parameters, strict=True)
        gradients = [torch.zeros_like(p) if gradient is None else gradient for gradient, p in pairs]
        if self.accumulation == 1:
            self.gradients = gradients
        else:
            torch._foreach_add_(self.gradients, [gradient.float() for gradient in gradients])

    def update(self, lr_factor: float) -> Tensor:
        apply_settings(self.optimizer.param_groups, self.settings, lr_factor)
        if self.wide is not None:
            self.wide.prepare()
        return self._step()

    def _clip_and_step(self) -> Tensor:
        gradients = self.gradients
        shards.average_over_ranks(self.parameters, gradients)
        norm_of = torch.nn.utils.get_total_norm if self.wide is None else self.wide.norm
        norm = shards.total_norm(self.parameters, gradients, norm_of)
        scale = (math.inf if self.clip_norm is None else self.clip_norm) / (norm + 1e-6)
        scale = scale.clamp(max=1.0)
        if self.wide is not None:
            self.wide.apply(gradients, scale)
        else:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient * scale
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.accumulation > 1:
            torch._foreach_zero_(self.gradients)
        return norm

    def save(self, folder: Path) -> None:
        if distributed.rank() == self._part():
            state = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, folder / self._file())

    def load(self, folder: Path) -> None:
        state = torch.load(folder / self._file(), map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _file(self) -> str:
        return f"{_FOLDER}-{self._part()}.pt" if self._part() else f"{_FOLDER}.pt"

    def _part(self) -> int:
        """Which part of the experts is here; 0 also where that is all of them."""
        peers = shards.peers_in(self.module)
        return 0 if peers is None else peers.rank


def _refuse_zero_dimensional(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        # DeepSpeed 0.19 sends parameters between ranks as bytes, and a scalar tensor has no such view
        if parameter.ndim == 0:
            raise ConfigError(
                f"{type(model).__name__}.{name} is a scalar, which DeepSpeed cannot send to other ranks; "
                "give it shape (1,)"
            )


class DeepSpeedEngine(Engine):
    """DeepSpeed driven natively, with our AdamW and our schedule; ZeRO stage from the config."""

    def __init__(self, model: nn.Module, optim: OptimConfig, train: TrainConfig, backoff: int = 0) -> None:
        super().__init__(model, optim, train, backoff)
        _refuse_zero_dimensional(model)
        import deepspeed

        self.zero_stage = train.zero_stage
        with _experts_declared(self.module, self.optimizer):
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
            # at stage 0 it tells no norm, and its own is wrong where ranks hold parts; see `update`
            "gradient_clipping": (self.clip_norm or 0.0) if train.zero_stage else 0.0,
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
        # trap 4: at stage 0 DeepSpeed does not tell the norm; gradients are averaged by now
        norm = self._clipped() if self.zero_stage == 0 else None
        self.deepspeed.step()
        return self.deepspeed.get_global_grad_norm() if norm is None else norm

    def _clipped(self) -> Tensor:
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = shards.total_norm(parameters, [p.grad for p in parameters if p.grad is not None])
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        return norm

    def save(self, folder: Path) -> None:
        self.deepspeed.save_checkpoint(str(folder), tag=_FOLDER, save_latest=False)
        # of a stack of experts it saves what rank 0 holds
        shards.save_parts(self.module, folder)

    def load(self, folder: Path) -> None:
        path, _ = self.deepspeed.load_checkpoint(str(folder), tag=_FOLDER)
        if path is None:
            raise RunError(
                f"{folder / _FOLDER}: DeepSpeed found no checkpoint there; remove checkpoints/last"
            )
        shards.load_parts(self.module, folder)


@contextmanager
def _experts_declared(module: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """While DeepSpeed looks at a model of shared experts, it sees which they are, and whose.

    It averages what is marked so over the ranks that hold the same, but only in a model that has a layer of
    its own class. An empty one is lent for as long; left there, checkpoints would look for its experts.
    """
    peers = shards.peers_in(module)
    if peers is None:
        yield
        return
    from deepspeed.moe.layer import MoE

    class Sign(MoE):  # type: ignore[misc]
        num_experts = 0

        def __init__(self) -> None:
            nn.Module.__init__(self)

        def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
            """The groups are there."""

    for group in optimizer.param_groups:
        if peers_of(group["params"][0]) is not None:
            group |= {"moe": True, "name": peers.name}
            for parameter in group["params"]:
                parameter.allreduce, parameter.group_name = False, peers.name
    module.add_module("_deepspeed_experts", Sign())
    try:
        yield
    finally:
        del module._deepspeed_experts
