"""What can vary when adapters are trained beside frozen experts, and when the small frozen model is made."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from latentbridge.config import Config
from latentbridge.data.config import OWN_TOKENIZERS, ProblemsConfig
from latentbridge.lm.config import MEASURED, LmConfig
from latentbridge.train.config import EarlyStopConfig, TrainedConfig

# of the adapters, beside what is measured of the language
COUNTED = ("trained_parameters", "activated_parameters", "activated_percent")


class AdaptersConfig(Config):
    """What is added to the output of every mixture of the base: see `latentbridge.nn.adapters`.

    routed: the best top_k of num_adapters, chosen and weighted by a gate of their own (PERFT-R)
    embedded: one inside each of the base's experts, weighted by the base's router (PERFT-E)
    shared: all of num_adapters, always (PERFT-S)
    """

    variant: Literal["routed", "embedded", "shared"]
    # lora: B A x;  parallel: W2 silu(W1 x)
    kind: Literal["lora", "parallel"] = "lora"
    # inner width of one adapter
    rank: int = Field(16, ge=1)
    # None: 1 of shared; of embedded as many as the base has experts
    num_adapters: int | None = Field(None, ge=1)
    # adapters a token, of routed
    top_k: int | None = Field(None, ge=1)
    # alpha / rank, the same at every rank; with a fixed alpha a comparison of ranks is one of scales too
    scale: float = Field(2.0, gt=0)
    # share of the adapters' input
    dropout: float = Field(0.05, ge=0, lt=1)
    # of the routed adapters' Switch loss; None: 0.01
    balance_weight: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _nothing_is_set_in_vain(self) -> AdaptersConfig:
        if self.variant == "routed":
            if self.num_adapters is None or self.top_k is None:
                raise ValueError("variant is routed, which needs num_adapters and top_k; write both")
            if self.top_k > self.num_adapters:
                raise ValueError(
                    f"top_k is {self.top_k}, but num_adapters is {self.num_adapters}; lower top_k"
                )
            if self.top_k == self.num_adapters == 1:
                raise ValueError(
                    "num_adapters is 1 with variant routed, whose gate is always 1; write variant: shared"
                )
            return self
        for key in ("top_k", "balance_weight"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{key} is {getattr(self, key)}, but variant {self.variant} has no gate; leave it out"
                )
        if self.variant == "embedded" and self.num_adapters is not None:
            raise ValueError(
                f"num_adapters is {self.num_adapters}, but variant embedded has one for each expert of the "
                "base; leave it out"
            )
        return self

    @property
    def balance(self) -> float:
        """Weight of the gate's balance loss; 0 where there is no gate."""
        if self.variant != "routed":
            return 0.0
        return 0.01 if self.balance_weight is None else self.balance_weight


class FrozenConfig(Config):
    """The frozen model: a mixture that transformers knows, such as OLMoE, Mixtral or Qwen3-MoE."""

    # bundled:NAME, a folder or a hub id
    model: str


class EvalConfig(Config):
    """How held-out problems are scored."""

    # problems per rank and forward
    batch_size: int = Field(32, ge=1)


class PerftConfig(TrainedConfig):
    """Adapters in one frozen mixture of experts, trained on questions with their worked solutions."""

    frozen: FrozenConfig
    problems: ProblemsConfig = ProblemsConfig()
    adapters: AdaptersConfig
    early_stop: EarlyStopConfig = EarlyStopConfig(metric="val_nll", mode="min")
    eval: EvalConfig = EvalConfig()

    def metric_names(self) -> tuple[str, ...]:
        """Of the problems that choose the weights, of those that are reported, and of the adapters."""
        from latentbridge.lm.routing_metrics import ROUTING

        names = (*MEASURED, "base_nll", *(ROUTING if self.adapters.variant == "routed" else ()))
        return (*(f"{split}_{name}" for split in ("val", "test") for name in names), *COUNTED)

    @model_validator(mode="after")
    def _held_out_problems_make_two_parts(self) -> PerftConfig:
        if self.problems.eval_examples < 2:
            raise ValueError(
                f"problems.eval_examples is {self.problems.eval_examples}; one half chooses the weights and "
                "the other is reported, so write 2 or more"
            )
        return self


class OlmoeConfig(Config):
    """Shape of a decoder of OLMoE's family; top_k gates are probabilities among all experts."""

    width: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    num_experts: int = Field(8, ge=1)
    top_k: int = Field(2, ge=1)
    # inner width of one expert, which is gated
    expert_width: int = Field(ge=1)
    # longest text it is made for
    positions: int = Field(512, ge=1)
    balance_weight: float = Field(0.01, ge=0)

    @model_validator(mode="after")
    def _parts_fit(self) -> OlmoeConfig:
        width, rest = divmod(self.width, self.heads)
        if rest or width % 2:
            raise ValueError(
                f"width {self.width} over heads {self.heads} must be whole and even: positions turn pairs"
            )
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k is {self.top_k}, but there are {self.num_experts} experts; lower it")
        return self


class MoeBaseConfig(LmConfig):
    """A small mixture of experts, trained on a text and written as a folder that transformers loads."""

    has_fixed_shapes: ClassVar[bool] = False
    knows_its_matrices: ClassVar[bool] = False

    model: OlmoeConfig  # type: ignore[assignment]

    @model_validator(mode="after")
    def _others_can_read_it(self) -> MoeBaseConfig:
        if self.text.tokenizer in OWN_TOKENIZERS:
            raise ValueError(
                f"text.tokenizer is '{self.text.tokenizer}', which is of this text alone; the export needs "
                "that of a model, such as bundled:llama_bpe"
            )
        if self.text.context > self.model.positions:
            raise ValueError(
                f"text.context {self.text.context} exceeds model.positions {self.model.positions}; lower it"
            )
        if not self.train.steps:
            raise ValueError("train.steps is 0; a model with random weights is not worth an export")
        return self
