"""What can vary in the capacity bench; nothing here imports torch."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from latentbridge.capacity.rows import metric_name
from latentbridge.config import JobConfig

MEASURED = ("drop_rate", "tokens_per_s")


class CapacityConfig(JobConfig):
    """Tokens that are routed by random logits, and the capacity factors under which experts take them."""

    num_tokens: int = Field(32_768, ge=1)
    width: int = Field(8192, ge=1)
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    num_experts: int = Field(ge=1)
    top_k: int = Field(1, ge=1)
    # strict tuples refuse YAML lists, hence the exception
    capacity_factors: Annotated[tuple[float, ...], Field(strict=False, min_length=1)]
    # deviation of what all tokens prefer an expert by, in logits; above 0 there is no closed form
    preference: float = Field(0.0, ge=0)
    # timed rounds of each factor, and those before them that are not
    iterations: int = Field(200, ge=1)
    warmup: int = Field(10, ge=0)

    @model_validator(mode="after")
    def _experts_suffice(self) -> CapacityConfig:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k is {self.top_k}, but there are {self.num_experts} experts; lower it")
        return self

    @model_validator(mode="after")
    def _factors_rise(self) -> CapacityConfig:
        factors = (0.0, *self.capacity_factors)
        if not all(math.isfinite(b) and a < b for a, b in pairwise(factors)):
            raise ValueError(
                f"capacity_factors are {[*self.capacity_factors]}; write them above 0, each above the last"
            )
        return self

    def metric_names(self) -> tuple[str, ...]:
        """Both measurements at each factor."""
        return tuple(metric_name(factor, what) for factor in self.capacity_factors for what in MEASURED)
