"""What can vary in a translator run; nothing here imports torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from latentbridge.config import Config, JobConfig
from latentbridge.data.config import ProblemsConfig
from latentbridge.train.config import EarlyStopConfig, OptimConfig, TrainConfig


class LanguageModelConfig(Config):
    """A frozen language model, and where it is read when it is the source."""

    # bundled:NAME, a folder, or a hub id
    model: str
    # entry of hidden_states: 0 is the embeddings, -1 the last. Both sides have it so that `swap` can exchange
    # them: it belongs to the model, and says nothing while that model is the target
    layer: int = -1


class BridgeConfig(Config):
    """Sizes of the bridge; the paper's are 64/1024/8/16, 48/1024/6/16 and 32/768/4/12."""

    soft_tokens: int = Field(64, ge=1)
    dim: int = Field(1024, ge=1)
    depth: int = Field(8, ge=1)
    heads: int = Field(16, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    # what the gates start from; 0 closes them, and the bridge then ignores its input until they open
    gate_init: float = 0.0
    # give every soft token the scale of a row of the target's embedding table
    rms_match: bool = True

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> BridgeConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim is {self.dim}; it must be a multiple of heads ({self.heads})")
        return self


class LmLossConfig(Config):
    """Mean nats per token of the answer."""

    weight: float = Field(1.0, ge=0)


class InfoNceLossConfig(Config):
    """Soft tokens against the target's embeddings of the batch's questions."""

    weight: float = Field(0.05, ge=0)
    temperature: float = Field(0.07, gt=0)
    start_step: int = Field(0, ge=0)


class KlLossConfig(Config):
    """Nats per row between the target with text and with soft tokens, over the answer's first `tokens`."""

    weight: float = Field(0.0, ge=0)
    tokens: int = Field(20, ge=1)
    start_step: int = Field(0, ge=0)


class LossesConfig(Config):
    """A weight of 0 leaves a term out altogether."""

    lm: LmLossConfig = LmLossConfig()
    info_nce: InfoNceLossConfig = InfoNceLossConfig()
    kl: KlLossConfig = KlLossConfig()

    @model_validator(mode="after")
    def _something_from_the_first_step(self) -> LossesConfig:
        late = [term.start_step for term in (self.info_nce, self.kl) if term.weight > 0]
        if self.lm.weight == 0 and min(late, default=1) > 0:
            raise ValueError(
                "no term is active at step 0; give lm a weight, or one of the others start_step: 0"
            )
        return self


class EvalConfig(Config):
    """How a bridge is tested; how often is `train.eval_every`, on how much `problems.eval_examples`."""

    batch_size: int = Field(64, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    # generation is slow: False leaves it, and every accuracy, to the final evaluation
    generate_every_eval: bool = False


class TranslatorConfig(JobConfig):
    """One bridge between two frozen models; defaults are the paper's sizes with the faults mended."""

    source: LanguageModelConfig
    target: LanguageModelConfig
    problems: ProblemsConfig = ProblemsConfig()
    # what the target reads after the soft tokens, in training and evaluation: end or whole of the prompt
    prompt_mode: Literal["soft_only", "soft_plus_text"] = "soft_only"
    model: BridgeConfig = BridgeConfig()
    losses: LossesConfig = LossesConfig()
    optim: OptimConfig
    train: TrainConfig
    early_stop: EarlyStopConfig = EarlyStopConfig(metric="context_recovered")
    eval: EvalConfig = EvalConfig()
    # a bridge to start from: bundled:NAME, or a folder with model.safetensors; it may have more soft tokens
    warm_start: str | None = None
    # states of the frozen source on disk, once for all runs of a launch; False reads anew for every batch
    cache_source_states: bool = False

    def metric_names(self) -> tuple[str, ...]:
        """What `metrics_of` gives for the final evaluation, where answers are always generated."""
        from latentbridge.translator.metrics import ANSWERED, BRIDGED, TEXT

        recovered = ("", *(f"_{name}" for name in (*BRIDGED, "cut_text") if name != "bridged"))
        return (
            *(f"{name}_nll" for name in (*BRIDGED, *TEXT)),
            *(f"context_recovered{suffix}" for suffix in recovered),
            *(f"compression_{part}" for part in ("question", "prompt")),
            *(f"{name}_accuracy" for name in ANSWERED),
        )

    @model_validator(mode="after")
    def _best_can_be_measured(self) -> TranslatorConfig:
        if self.early_stop.metric.endswith("_accuracy") and not self.eval.generate_every_eval:
            raise ValueError(
                f"early_stop.metric is '{self.early_stop.metric}', which needs generated answers; "
                "write eval.generate_every_eval: true, or metric: context_recovered"
            )
        return self

    @model_validator(mode="after")
    def _controls_are_possible(self) -> TranslatorConfig:
        if self.problems.eval_examples < 2:
            raise ValueError("problems.eval_examples is 1; the shuffled-source control needs 2 or more")
        return self
