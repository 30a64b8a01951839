"""What can vary in how a model is trained; nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from latentbridge.config import Config, JobConfig
from latentbridge.errors import ConfigError


class MuonConfig(Config):
    """What trains matrices in AdamW's place; they follow the same schedule and decay."""

    lr: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)


class OptimConfig(Config):
    """AdamW, its schedule and its parameter groups; everything is counted in optimiser updates."""

    lr: float = Field(gt=0)
    # of matrices, whoever trains them: never of norms, biases, embeddings or gates
    weight_decay: float = Field(0.0, ge=0)
    # None: AdamW trains matrices too
    muon: MuonConfig | None = None
    # strict tuples refuse YAML lists, hence the exception
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.98)
    # gates start at 0, closed; the seed opens them three times faster than it moves the rest
    gate_lr_multiplier: float = Field(3.0, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    # the share of lr that linear and cosine fall to
    floor: float = Field(0.0, ge=0, lt=1)
    clip_norm: float | None = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _betas_are_decay_rates(self) -> OptimConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}; each must be at least 0 and below 1")
        return self

    @model_validator(mode="after")
    def _floor_is_below_something(self) -> OptimConfig:
        if self.floor and self.schedule == "constant":
            raise ValueError("schedule is constant, which falls to no floor; leave floor out")
        return self


class TrainConfig(Config):
    """How long, how much at once, and on which engine."""

    engine: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    # engine torch on a GPU: compile forward, backward and update, and record them once: many times as fast
    # where the model is small. For workloads whose batches all have one shape
    recorded: bool = False
    # optimiser updates; 0 only evaluates
    steps: int = Field(ge=0)
    # samples per update over all ranks
    batch_size: int = Field(gt=0)
    # samples per rank and forward; None: batch_size / ranks, so no accumulation. Forwards count equally,
    # so a mean over tokens is exact within one, and across ranks, but not across those of one update; and
    # a loss that compares samples (InfoNCE) compares only those of one forward, on all ranks
    micro_batch_size: int | None = Field(None, gt=0)
    log_every: int = Field(20, gt=0)
    eval_every: int = Field(250, gt=0)
    checkpoint_every: int = Field(250, gt=0)
    eval_at_start: bool = False

    @model_validator(mode="after")
    def _engine_can_do_the_precision(self) -> TrainConfig:
        if self.recorded and (self.engine, self.precision) != ("torch", "bf16"):
            raise ValueError(
                f"recorded is true with engine {self.engine} in {self.precision}; what can be recorded is "
                "engine: torch with precision: bf16"
            )
        if self.engine == "deepspeed" and self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "precision is bf16 with zero_stage 0, where DeepSpeed takes an optimiser step during set-up "
                "and the first updates come out wrong; bf16 needs zero_stage: 1 or more, on one GPU too"
            )
        return self

    def micro_batches(self, world_size: int, backoff: int = 0) -> tuple[int, int]:
        """How one update is cut up on each rank: (forwards per update, samples per forward).

        backoff: how many times to halve the samples per forward. Samples per update stay as they are, and
        updates too, to rounding, unless a loss spans the samples of a forward: InfoNCE then has fewer
        negatives, and a mean over tokens gives every forward one vote, however long its texts are.
        """
        per_rank, rest = divmod(self.batch_size, world_size)
        if rest:
            raise ConfigError(
                f"train.batch_size is {self.batch_size}, which {world_size} ranks cannot share equally; "
                f"make it a multiple of {world_size}"
            )
        micro = self.micro_batch_size or per_rank
        if per_rank % micro:
            raise ConfigError(
                f"train.micro_batch_size is {micro}, but each of {world_size} ranks has {per_rank} samples "
                f"an update; make it a divisor of {per_rank}"
            )
        found = backed_off(per_rank, micro, backoff)
        if found is None:
            raise ConfigError(
                f"train.micro_batch_size {micro} cannot be halved {backoff} times: the micro-batch is 1 "
                "already; a smaller model, shorter texts or a higher zero_stage would need less memory"
            )
        return per_rank // found, found


def backed_off(per_rank: int, micro: int, times: int) -> int | None:
    """Samples per forward after halving `micro` so often, each time down to a divisor of `per_rank`.

    per_rank: samples per rank and update;  None: it is 1 before that, and cannot shrink any more
    """
    for _ in range(times):
        if micro == 1:
            return None
        micro = next(size for size in range(micro // 2, 0, -1) if per_rank % size == 0)
    return micro


class TrainedConfig(JobConfig):
    """A job that `train.loop.fit` trains."""

    # whether all batches of such a job have one shape, as `train.recorded` needs
    has_fixed_shapes: ClassVar[bool] = False
    # whether its matrices are (outputs, inputs) and its stacks (experts, inputs, outputs), as Muon takes them
    knows_its_matrices: ClassVar[bool] = True

    optim: OptimConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _what_is_recorded_has_one_shape(self) -> TrainedConfig:
        if self.train.recorded and not self.has_fixed_shapes:
            raise ValueError(
                "train.recorded is true, but the batches of this job differ in shape; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _matrices_stay_whole(self) -> TrainedConfig:
        train = self.train
        if self.optim.muon and not self.knows_its_matrices:
            raise ValueError(
                "optim.muon is set, but transformers keeps matrices in either order; leave it out"
            )
        if self.optim.muon and train.steps and train.engine == "deepspeed" and train.zero_stage:
            raise ValueError(
                f"optim.muon is set with train.zero_stage {train.zero_stage}, which cuts matrices up: Muon "
                "needs them whole. Write train: {engine: torch}, or zero_stage: 0"
            )
        return self


class EarlyStopConfig(Config):
    """Which metric decides what is best, and how long to wait for a better one."""

    metric: str
    mode: Literal["max", "min"] = "max"
    # evaluations without a strict improvement; None: never stops, best is tracked all the same
    patience: int | None = Field(None, gt=0)
