"""What can vary in a mixture of experts; nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from latentbridge.config import Config
from latentbridge.lm.config import LmConfig

Strategy = Literal["top1", "topk", "topk_hard", "softk", "hash", "expert_choice", "bias_balanced"]
Schedule = Literal["constant", "linear", "cosine", "exponential", "step"]

# of the three stretches of a stepped temperature
_STEPS_AT = (0.2, 0.6)


class TemperatureConfig(Config):
    """The routing temperature of each update, from `start` to `end`, which the last update reaches.

    step: start, then their geometric middle after a fifth of the updates, then end after three fifths
    """

    schedule: Schedule = "constant"
    start: float = Field(1.0, gt=0)
    # None: as start
    end: float | None = Field(None, gt=0)
    # weights: gates are softmax(logits / T), which never changes who is chosen (the seed's);
    # choice: training draws experts with Gumbel noise times T, gates stay at T = 1
    acts_on: Literal["weights", "choice"] = "weights"

    @model_validator(mode="after")
    def _ends_are_told(self) -> TemperatureConfig:
        if self.schedule == "constant" and self.end not in (None, self.start):
            raise ValueError(
                f"schedule is constant, but end {self.end} is not start {self.start}; leave end out"
            )
        if self.schedule != "constant" and self.end is None:
            raise ValueError(f"schedule is {self.schedule}, which needs an end; write what T comes to")
        return self


def temperature_at(config: TemperatureConfig, step: int, steps: int) -> float:
    """Of update `step`, from 1 to `steps`; the first has `start`, the last has `end`."""
    start, end = config.start, config.start if config.end is None else config.end
    done = (step - 1) / (steps - 1) if steps > 1 else 1.0
    match config.schedule:
        case "linear":
            return start + (end - start) * done
        case "cosine":
            return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
        case "exponential":
            return float(start * (end / start) ** done)
        case "step":
            values: Sequence[float] = (start, math.sqrt(start * end), end)
            return values[sum(done >= place for place in _STEPS_AT)]
    return start


class RouterConfig(Config):
    """How a token's experts are chosen and weighted; see `latentbridge.nn.routers.Router`."""

    strategy: Strategy = "softk"
    # experts a token; of expert_choice, on average
    top_k: int = Field(2, ge=1)
    network: Literal["linear", "mlp", "mlp_hadamard"] = "linear"
    # deviation of what is added to the logits in training
    noise: float = Field(0.0, ge=0)
    temperature: TemperatureConfig = TemperatureConfig()

    @model_validator(mode="after")
    def _choices_make_sense(self) -> RouterConfig:
        if self.strategy == "top1" and self.top_k != 1:
            raise ValueError(f"strategy is top1 with top_k {self.top_k}; write top_k: 1")
        if self.strategy == "softk" and self.top_k == 1:
            raise ValueError(
                "strategy is softk with top_k 1, whose gate is always 1 and teaches the router nothing; "
                "write strategy: top1, or top_k: 2"
            )
        if self.strategy == "hash" and (
            self.noise or self.network != "linear" or self.temperature != TemperatureConfig()
        ):
            raise ValueError(
                "strategy is hash, which has no network; leave network, noise and temperature out"
            )
        return self


class DispatchConfig(Config):
    """How training brings tokens to experts; evaluation never drops any."""

    kind: Literal["dropless", "padded", "loop"] = "dropless"
    # padded: slots of an expert, in units of an even share
    capacity_factor: float = Field(1.25, gt=0)
    # padded: who is seated first
    priority: Literal["choice", "probability", "position"] = "choice"

    @model_validator(mode="after")
    def _nothing_is_set_in_vain(self) -> DispatchConfig:
        if self.kind != "padded" and (self.capacity_factor != 1.25 or self.priority != "choice"):
            raise ValueError(
                f"kind is {self.kind}, which drops nothing; "
                "leave capacity_factor and priority out, or write padded"
            )
        return self


class BalanceConfig(Config):
    """What evens out the load of experts; both losses are means over layers."""

    # Switch: E sum(f P), 1 when balanced; f over the micro-batches of all ranks. Beside a bias too, unless 0
    weight: float = Field(0.01, ge=0)
    # mean square of the router's logsumexp
    z_weight: float = Field(0.0, ge=0)
    # bias_balanced: how far a bias moves in an update
    bias_rate: float = Field(1e-3, gt=0)


class MixtureConfig(Config):
    """The experts that take the place of every feed-forward layer."""

    num_experts: int = Field(8, ge=1)
    # neighbouring ranks that share one set of experts, each holding an equal run; 1: every rank holds all
    expert_parallel: int = Field(1, ge=1)
    # two products in, one of them through the activation
    gated: bool = False
    router: RouterConfig = RouterConfig()
    dispatch: DispatchConfig = DispatchConfig()
    balance: BalanceConfig = BalanceConfig()

    @model_validator(mode="after")
    def _experts_suffice(self) -> MixtureConfig:
        if self.router.top_k > self.num_experts:
            raise ValueError(
                f"router.top_k is {self.router.top_k}, but there are {self.num_experts} experts; lower it"
            )
        if self.num_experts % self.expert_parallel:
            raise ValueError(
                f"expert_parallel is {self.expert_parallel}, by which {self.num_experts} experts cannot be "
                "shared equally; make it a divisor of num_experts"
            )
        if self.expert_parallel > 1 and self.dispatch.kind == "loop":
            raise ValueError(
                "dispatch.kind is loop, which computes experts of its own rank alone; "
                "write dropless or padded, or expert_parallel: 1"
            )
        strategy, balance = self.router.strategy, self.balance
        if strategy != "bias_balanced" and balance.bias_rate != BalanceConfig().bias_rate:
            raise ValueError(f"balance.bias_rate is set, but strategy {strategy} has no bias; leave it out")
        if strategy == "hash" and (balance.weight or balance.z_weight):
            raise ValueError("strategy is hash, which learns nothing; write balance: {weight: 0.0}")
        if strategy == "expert_choice" and balance.weight:
            raise ValueError(
                "strategy is expert_choice, which is balanced by itself; write balance: {weight: 0.0}"
            )
        if strategy == "expert_choice" and self.router.noise:
            raise ValueError(
                "strategy is expert_choice, whose threshold noise would mislead; write noise: 0.0"
            )
        if strategy == "expert_choice" and self.dispatch.kind == "padded":
            raise ValueError(
                "strategy is expert_choice, whose experts take what they have room for; write dropless"
            )
        return self


class MixtureLmConfig(LmConfig):
    """A language model whose feed-forward layers are mixtures of experts."""

    mixture: MixtureConfig = MixtureConfig()

    @model_validator(mode="after")
    def _what_is_recorded_reads_nothing_back(self) -> MixtureLmConfig:
        if not self.train.recorded:
            return self
        if self.mixture.dispatch.kind == "loop":
            raise ValueError(
                "mixture.dispatch.kind is loop with train.recorded, but a loop reads back who goes where; "
                "write recorded: false, or dropless"
            )
        if self.mixture.dispatch.kind == "dropless" and self.model.dim % 8:
            raise ValueError(
                f"model.dim is {self.model.dim} with train.recorded, but what multiplies uneven groups on a "
                "GPU takes multiples of 8; write such a one, or recorded: false"
            )
        return self

    @model_validator(mode="after")
    def _experts_are_split_once(self) -> MixtureLmConfig:
        train = self.train
        if self.expert_parallel > 1 and train.engine == "deepspeed" and train.zero_stage == 3:
            raise ValueError(
                f"mixture.expert_parallel is {self.expert_parallel} with train.zero_stage 3, where DeepSpeed "
                "would take a rank's own experts for those of all; write zero_stage: 2, or expert_parallel: 1"
            )
        if self.expert_parallel > 1 and train.recorded:
            raise ValueError(
                f"mixture.expert_parallel is {self.expert_parallel} with train.recorded, but how many tokens "
                "ranks exchange is not fixed; write recorded: false, or expert_parallel: 1"
            )
        return self

    @property
    def expert_parallel(self) -> int:
        """Ranks that share one set of experts."""
        return self.mixture.expert_parallel

    def metric_names(self) -> tuple[str, ...]:
        """Those of the language model, of its routers in either text, and of what experts take in test."""
        from latentbridge.lm.routing_metrics import ROUTING, UNTAUGHT
        from latentbridge.lm.specialisation import SPECIALISATION

        hashed = self.mixture.router.strategy == "hash"
        names = [name for name in ROUTING if not (hashed and name in UNTAUGHT)]
        routed = (f"{split}_{name}" for split in ("val", "test") for name in names)
        return (*super().metric_names(), *routed, *(f"test_{name}" for name in SPECIALISATION))
