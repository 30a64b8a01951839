"""What can vary when a small language model is trained from scratch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from latentbridge.config import Config
from latentbridge.data.config import ProblemsConfig
from latentbridge.train.config import EarlyStopConfig, TrainedConfig


class ModelConfig(Config):
    """A decoder of one of two families; positions go to 512 and input and output embeddings are one."""

    family: Literal["llama", "gpt2"]
    # bpe: byte-level pieces, single digits;  characters: one token a character
    tokenizer: Literal["bpe", "characters"]
    width: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    # key/value heads of llama; None: as many as heads
    kv_heads: int | None = Field(None, ge=1)
    ffn: int = Field(ge=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.family == "gpt2" and self.kv_heads is not None:
            raise ValueError(f"kv_heads is {self.kv_heads}; gpt2 shares no heads, so leave it out")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        return self


class EvalConfig(Config):
    """How held-out problems are answered."""

    # problems per rank and forward
    batch_size: int = Field(512, ge=1)
    # the longest worked solution has 31 characters, <eos> included
    max_new_tokens: int = Field(40, ge=1)


class PretrainConfig(TrainedConfig):
    """One language model, trained on questions with their worked solutions."""

    knows_its_matrices: ClassVar[bool] = False

    model: ModelConfig
    problems: ProblemsConfig = ProblemsConfig()
    # loss of the question's tokens against 1 for the answer's; mostly the noise of names and numbers
    question_weight: float = Field(0.2, ge=0)
    early_stop: EarlyStopConfig = EarlyStopConfig(metric="answer_nll", mode="min")
    eval: EvalConfig = EvalConfig()

    def metric_names(self) -> tuple[str, ...]:
        """What `score` measures."""
        return "accuracy", "answer_nll"

    @model_validator(mode="after")
    def _something_is_trained(self) -> PretrainConfig:
        if not self.train.steps:
            raise ValueError("train.steps is 0; a model with random weights is not worth an export")
        return self

    @model_validator(mode="after")
    def _problems_are_short(self) -> PretrainConfig:
        if self.problems.name != "word_problems":
            raise ValueError("problems.name must be word_problems; the small tokenizers are made from those")
        return self
