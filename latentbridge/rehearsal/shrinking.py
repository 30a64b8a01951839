"""What the shrunk configs of all workloads have in common, and which settings only their real ones show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentbridge.config import JobConfig, dump
from latentbridge.data.config import ProblemsConfig
from latentbridge.train.config import TrainConfig

BATCH = 2
EVAL_EXAMPLES = 3
NEW_TOKENS = 4
# settings that matter by what they are: no tiny model shows them
PROTOCOL = (
    "problems.train_examples",
    "problems.eval_examples",
    "train.steps",
    "train.batch_size",
    "train.precision",
    "train.eval_every",
    "early_stop",
    "eval.max_new_tokens",
)
# the same, where a text is modelled instead of problems answered
TEXT_PROTOCOL = (
    "text",
    "train.steps",
    "train.batch_size",
    "train.precision",
    "train.eval_every",
    "early_stop",
)
# settings that change how, and never what, is computed
ENGINEERING = (
    "train.engine",
    "train.recorded",
    "train.zero_stage",
    "train.micro_batch_size",
    "train.log_every",
    "train.checkpoint_every",
    "train.eval_at_start",
    "eval.batch_size",
)


def small_problems(config: ProblemsConfig) -> ProblemsConfig:
    """Few problems, without worked examples: those make every text ten times as long."""
    return config.model_copy(update={"train_examples": 8, "eval_examples": EVAL_EXAMPLES, "few_shot": 0})


def small_train(config: TrainConfig) -> TrainConfig:
    """Small batches in full precision on one processor; schedules as they are."""
    return config.model_copy(
        update={"batch_size": BATCH, "micro_batch_size": None, "engine": "torch", "precision": "fp32"}
    )


def chosen(config: JobConfig, keys: Sequence[str]) -> dict[str, Any]:
    """Some settings by dotted key."""
    settings = dump(config)
    return {key: _setting(settings, key) for key in keys}


def _setting(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings[part]
    return settings
