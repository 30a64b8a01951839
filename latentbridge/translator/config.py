"""What can vary in a translator run; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from latentbridge.config import Config
from latentbridge.data.config import ProblemsConfig
from latentbridge.train.config import EarlyStopConfig, TrainedConfig


class LanguageModelConfig(Config):
    """A frozen language model, and how it is read; `swap` exchanges two of them as they stand."""

    # bundled:NAME, a folder, or a hub id
    model: str
    # entry of hidden_states: 0 is the embeddings, -1 the last. Both sides have it so that `swap` can exchange
    # them: it belongs to the model, and says nothing while that model is the target
    layer: int = -1
    # wrap what it reads into one turn of a user; for instruct models, whose tokenizer must have a template
    chat_template: bool = False


class DiTConfig(Config):
    """What only the DiT bridge has: it draws noise and moves it, step by step, to where soft tokens lie."""

    # how the source states become one vector
    pool: Literal["mean", "attention"] = "mean"
    # Euler steps from noise to soft tokens
    train_sampling_steps: int = Field(2, ge=1)
    eval_sampling_steps: int = Field(4, ge=1)
    # classifier-free guidance w: velocity = uncond + w (cond - uncond); None: the conditional one alone
    guidance: float | None = Field(None, gt=0)
    # share of rows that learn the flow without their condition, which is what guidance needs
    drop_condition: float = Field(0.0, ge=0, lt=1)


class BridgeConfig(Config):
    """Sizes of the bridge; the paper's are 64/1024/8/16, 48/1024/6/16 and 32/768/4/12.

    passthrough: the last `soft_tokens` states of the source themselves; it trains nothing
    """

    kind: Literal["gated", "dit", "passthrough"] = "gated"
    soft_tokens: int = Field(64, ge=1)
    dim: int = Field(1024, ge=1)
    depth: int = Field(8, ge=1)
    heads: int = Field(16, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    # what the gates start from; 0 closes them, and the bridge then ignores its input until they open
    gate_init: float = 0.0
    # give every soft token the scale of a row of the target's embedding table
    rms_match: bool = True
    # None: its defaults
    dit: DiTConfig | None = None

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> BridgeConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim is {self.dim}; it must be a multiple of heads ({self.heads})")
        return self

    @model_validator(mode="after")
    def _only_a_dit_has_dit_settings(self) -> BridgeConfig:
        if self.kind != "dit" and self.dit is not None:
            raise ValueError(f"kind is '{self.kind}', which reads nothing under dit; leave dit out")
        if self.kind == "dit" and self.gate_init:
            raise ValueError("kind is 'dit', which has no gates of its own; leave gate_init out")
        if self.kind == "dit" and self.dim % 2:
            raise ValueError(f"dim is {self.dim}; a dit's must be even, for its time is sines and cosines")
        return self


class TeacherConfig(Config):
    """What the soft tokens are to resemble: the target's own vectors of a text, one a soft token."""

    text: Literal["answer", "question", "prompt"] = "answer"
    # entry of the target's hidden_states: 0 is the embeddings, -1 the last
    layer: int = 0


class TermConfig(Config):
    """One named part of the loss and when it counts; a weight of 0 leaves it out altogether."""

    weight: float = Field(0.0, ge=0)
    # updates without it, and then updates over which the weight rises from 0
    start_step: int = Field(0, ge=0)
    ramp_steps: int = Field(0, ge=0)

    def weight_at(self, step: int) -> float:
        """Its weight in update `step`, counted from 1."""
        since = step - self.start_step
        if since <= 0:
            return 0.0
        return self.weight * min(1.0, since / self.ramp_steps) if self.ramp_steps else self.weight


class LmTerm(TermConfig):
    """Mean nats per token of the answer, with what the target reads in evaluation too."""

    weight: float = Field(1.0, ge=0)


class InfoNceTerm(TermConfig):
    """Mean soft token nearer to the own question's mean embedding than to those of other questions."""

    weight: float = Field(0.05, ge=0)
    temperature: float = Field(0.07, gt=0)
    # questions drawn from the training set beside those of the batch, which all ranks share
    negatives: int = Field(0, ge=0)


class KlTerm(TermConfig):
    """Nats per row between the target with text and with soft tokens, over the answer's first `tokens`."""

    tokens: int = Field(20, ge=1)


class DecodeTerm(TermConfig):
    """As lm, but the target reads the whole prompt as well: soft tokens must not hurt where text is shown."""

    # updates from one to the next: it costs another pass through the target
    every: int = Field(1, ge=1)

    def weight_at(self, step: int) -> float:
        return super().weight_at(step) if step % self.every == 0 else 0.0


class LossesConfig(Config):
    """The parts of the loss: their weighted sum is trained.

    lm, kl, info_nce, decode: see there.  format: nats per token of the answer's `####` line's marker.
    prompt_alignment: squared distance of soft tokens to the question's embeddings, place by place.
    token_alignment: the same to the teacher's vectors.  probe: the same of the two means.
    flow: squared error of a DiT's velocity towards the teacher's vectors
    """

    lm: LmTerm = LmTerm()
    info_nce: InfoNceTerm = InfoNceTerm()
    kl: KlTerm = KlTerm()
    decode: DecodeTerm = DecodeTerm()
    format: TermConfig = TermConfig()
    prompt_alignment: TermConfig = TermConfig()
    token_alignment: TermConfig = TermConfig()
    probe: TermConfig = TermConfig()
    flow: TermConfig = TermConfig()

    def terms(self) -> Iterator[tuple[str, TermConfig]]:
        """Those that are ever active."""
        return ((name, term) for name, term in self if term.weight > 0)

    def weights_at(self, step: int) -> dict[str, float]:
        """The terms of update `step`, counted from 1, and what each weighs."""
        weights = {name: term.weight_at(step) for name, term in self.terms()}
        return {name: weight for name, weight in weights.items() if weight > 0}

    @model_validator(mode="after")
    def _something_from_the_first_step(self) -> LossesConfig:
        if not self.weights_at(1):
            raise ValueError("no term is active in update 1; give lm a weight, or one of them start_step: 0")
        return self


class EvalConfig(Config):
    """How a bridge is tested; how often is `train.eval_every`, on how much `problems.eval_examples`."""

    batch_size: int = Field(64, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    # generation is slow: False leaves it, and every accuracy, to the final evaluation
    generate_every_eval: bool = False
    # held-out problems that the final evaluation answers again one at a time, to time them; 0: none
    inference_examples: int = Field(0, ge=0)


class TranslatorConfig(TrainedConfig):
    """One bridge between two frozen models; defaults are the paper's sizes with the faults mended."""

    source: LanguageModelConfig
    target: LanguageModelConfig
    problems: ProblemsConfig = ProblemsConfig()
    # what the target reads after the soft tokens, in training and evaluation: end or whole of the prompt
    prompt_mode: Literal["soft_only", "soft_plus_text"] = "soft_only"
    # soft_only: the share of training rows that show the text too falls from 1 to 0 over so many updates
    text_curriculum_steps: int = Field(0, ge=0)
    # prepend: soft tokens stand before the text;  adapter: they are added to its first embeddings, scaled
    injection: Literal["prepend", "adapter"] = "prepend"
    adapter_scale: float = Field(1.0, gt=0)
    model: BridgeConfig = BridgeConfig()
    # None: the answer's embeddings
    teacher: TeacherConfig | None = None
    losses: LossesConfig = LossesConfig()
    early_stop: EarlyStopConfig = EarlyStopConfig(metric="context_recovered")
    eval: EvalConfig = EvalConfig()
    # a bridge to start from: bundled:NAME, or a folder with model.safetensors; it may have more soft tokens
    warm_start: str | None = None
    # states of the frozen source on disk, once for all runs of a launch; False reads anew for every batch
    cache_source_states: bool = False

    def metric_names(self) -> tuple[str, ...]:
        """What `metrics_of` gives for the final evaluation, where answers are always generated."""
        from latentbridge.translator.metrics import ANSWERED, BRIDGED, INFERENCE, TEXT

        recovered = ("", *(f"_{name}" for name in (*BRIDGED, "cut_text") if name != "bridged"))
        return (
            *(f"{name}_nll" for name in (*BRIDGED, *TEXT)),
            *(f"context_recovered{suffix}" for suffix in recovered),
            *(f"compression_{part}" for part in ("question", "prompt")),
            *(f"{name}_accuracy" for name in ANSWERED),
            *(INFERENCE if self.eval.inference_examples else ()),
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

    @model_validator(mode="after")
    def _what_is_timed_is_evaluated(self) -> TranslatorConfig:
        if self.eval.inference_examples > self.problems.eval_examples:
            raise ValueError(
                f"eval.inference_examples is {self.eval.inference_examples}, but there are "
                f"{self.problems.eval_examples} problems (problems.eval_examples); write at most so many"
            )
        return self

    @model_validator(mode="after")
    def _what_trains_is_trained(self) -> TranslatorConfig:
        fixed = self.model.kind == "passthrough"
        if fixed and self.train.steps:
            raise ValueError(
                f"train.steps is {self.train.steps}, but a passthrough bridge has nothing to train; write 0"
            )
        if fixed and self.warm_start:
            raise ValueError("warm_start is given, but a passthrough bridge has no weights; leave it out")
        if not (fixed or self.warm_start or self.train.steps):
            raise ValueError(
                "train.steps is 0, so an untrained bridge would be evaluated; train it, or give warm_start"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_set_in_vain(self) -> TranslatorConfig:
        dit, flow = self.model.dit or DiTConfig(), self.losses.flow.weight > 0
        if flow and self.model.kind != "dit":
            raise ValueError(
                f"losses.flow has a weight, but model.kind is '{self.model.kind}'; a dit has a flow"
            )
        if dit.drop_condition and not flow:
            raise ValueError("model.dit.drop_condition acts in losses.flow alone; give that a weight")
        if dit.guidance is not None and not dit.drop_condition:
            raise ValueError(
                "model.dit.guidance needs a bridge that was trained without condition as well; "
                "write model.dit.drop_condition: 0.1"
            )
        if self.teacher and not (flow or self.losses.token_alignment.weight):
            raise ValueError(
                "teacher is given, but nothing asks it; give losses.token_alignment or losses.flow a weight"
            )
        if self.text_curriculum_steps and self.prompt_mode == "soft_plus_text":
            raise ValueError("text_curriculum_steps takes text away, but prompt_mode is soft_plus_text")
        if self.injection == "prepend" and self.adapter_scale != 1.0:
            raise ValueError("adapter_scale scales nothing where injection is prepend; leave it out")
        if self.losses.decode.weight and self.prompt_mode == "soft_plus_text":
            raise ValueError("losses.decode is losses.lm where prompt_mode is soft_plus_text; leave it out")
        return self
