"""Which problems a run trains on and is tested with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from latentbridge.config import Config

GSM8K_SIZES = {"train": 7473, "eval": 1319}
GENERATED_TRAIN_EXAMPLES = 1_000_000


class ProblemsConfig(Config):
    """A problem set and how much of it; generated word problems need no file and never run out."""

    name: Literal["word_problems", "gsm8k"] = "word_problems"
    # None: all of GSM8K, or a million generated problems
    train_examples: int | None = Field(None, ge=1)
    eval_examples: int = Field(256, ge=1)
    # worked examples before every question; 8 is the prompt the seed used for both models
    few_shot: int = Field(0, ge=0, le=8)
    # one_step: one operation on small numbers, which a CPU can teach in a minute
    templates: Literal["all", "one_step"] = "all"

    @model_validator(mode="after")
    def _possible(self) -> ProblemsConfig:
        if self.name == "word_problems":
            if self.few_shot:
                raise ValueError(f"few_shot is {self.few_shot}; only gsm8k has worked examples, so write 0")
            return self
        if self.templates != "all":
            raise ValueError(f"templates is '{self.templates}'; gsm8k has none, so leave it out")
        for key, limit in (("train", GSM8K_SIZES["train"] - self.few_shot), ("eval", GSM8K_SIZES["eval"])):
            asked = getattr(self, f"{key}_examples")
            if asked is not None and asked > limit:
                raise ValueError(
                    f"{key}_examples is {asked}; gsm8k has {limit} with few_shot {self.few_shot}"
                )
        return self
