"""What can vary in a small decoder language model; workloads that train one add their own settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from latentbridge.config import Config
from latentbridge.data.config import TextConfig
from latentbridge.train.config import EarlyStopConfig, TrainedConfig

MEASURED = ("nll", "bits_per_byte", "perplexity", "accuracy")


class DecoderConfig(Config):
    """Shape of a pre-norm causal decoder; its feed-forward layers are ffn_mult * dim wide."""

    dim: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    ffn_mult: int = Field(4, ge=1)
    activation: Literal["gelu", "silu"] = "gelu"
    positions: Literal["learned", "rope"] = "rope"
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    # the output layer is the embedding; untied, neither has more than the other
    tied: bool = True
    # of attention, and of a dense feed-forward layer
    bias: bool = False
    # embeddings times sqrt(dim)
    scale_embeddings: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)
    # of embeddings, attention weights and last states too, not of the two branches of each block alone
    dropout_everywhere: bool = False
    # matrices and embeddings start as N(0, init_std); None: as torch starts each of them
    init_std: float | None = Field(0.02, gt=0)

    @model_validator(mode="after")
    def _heads_fit(self) -> DecoderConfig:
        width, rest = divmod(self.dim, self.heads)
        if rest:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.positions == "rope" and width % 2:
            raise ValueError(f"dim / heads is {width}; positions rope turns pairs, so it must be even")
        return self


class EvalConfig(Config):
    """How held-out windows are scored; which and how many is told by `text`."""

    # windows per rank and forward
    batch_size: int = Field(32, ge=1)


class LmConfig(TrainedConfig):
    """One language model on one text."""

    has_fixed_shapes: ClassVar[bool] = True

    text: TextConfig = TextConfig()
    model: DecoderConfig
    early_stop: EarlyStopConfig = EarlyStopConfig(metric="val_nll", mode="min")
    eval: EvalConfig = EvalConfig()

    def metric_names(self) -> tuple[str, ...]:
        """What the final evaluation measures: of validation text, which chooses the weights, and of test."""
        return tuple(f"{split}_{name}" for split in ("val", "test") for name in MEASURED)
