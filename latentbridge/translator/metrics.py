"""From per-problem records to metrics: what the bridge recovers, beside everything that could fake it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from latentbridge.data.problems import answers_match, extract_answer
from latentbridge.metric import Metric, mean, proportion, ratio, void

# what the target reads before the answer; the first three through the bridge
BRIDGED = ("bridged", "shuffled_source", "no_source")
TEXT = ("no_context", "full_text", "cut_text")
# whose generated answers are scored
ANSWERED = (*BRIDGED, "source_alone", "target_alone", "cut_text", "cascade")

# whose replies are timed one at a time, and what is told of each
MEASURED = ("source_alone", "target_alone", "bridged", "cut_text", "cascade")
QUANTITIES = ("ttft_s", "tpot_s", "kv_mib")
INFERENCE = (*(f"{name}_{quantity}" for name in MEASURED for quantity in QUANTITIES), "kv_saved_mib")

INVALID = "[invalid]"


@dataclass(frozen=True)
class Sample:
    """One evaluated problem.

    nll: mean nats per answer token after each of BRIDGED and TEXT
    answers: generated text of each of ANSWERED; empty where nothing was generated
    """

    index: int
    prompt: str
    solution: str
    gold: str
    question_tokens: int
    prompt_tokens: int
    nll: dict[str, float]
    answers: dict[str, str] = field(default_factory=dict)

    def is_right(self, name: str) -> bool:
        """Whether the answer of one of ANSWERED is the gold one."""
        return answers_match(extract_answer(self.answers[name]), self.gold)

    def as_record(self, label: str) -> dict[str, Any]:
        """One line of eval_samples: the 11 keys of the published runs first, in their order; then ours."""
        record = {
            "eval_step": label,
            "index": self.index,
            "question": self.prompt.strip(),
            "gold_full_text": f"{self.prompt.strip()} {self.solution.strip()}",
            "gold_extracted": self.gold,
        }
        for name in ("source", "target", "bridged", "shuffled_source", "no_source", "cut_text", "cascade"):
            answer = self.answers[name if name in self.answers else f"{name}_alone"]
            record[f"{name}_full"] = answer
            record[f"{name}_extracted"] = extract_answer(answer) or INVALID
        record |= {f"{name}_match": self.is_right(name) for name in ANSWERED}
        return record | {f"{name}_nll": value for name, value in self.nll.items()}


def metrics_of(
    samples: Sequence[Sample], soft_tokens: int, prompt_mode: Literal["soft_only", "soft_plus_text"]
) -> dict[str, Metric]:
    """Every metric of one evaluation; accuracies only where answers were generated.

    *_nll: mean nats per answer token.  context_recovered*: share of what the full text gains over no
    context.  compression_*: the target's text tokens per soft token.
    """
    nll = {name: [sample.nll[name] for sample in samples] for name in (*BRIDGED, *TEXT)}
    metrics = {f"{name}_nll": mean(values) for name, values in nll.items()}
    gained = _difference(nll["no_context"], nll["full_text"])
    for name in (*BRIDGED, "cut_text"):
        suffix = "" if name == "bridged" else f"_{name}"
        metrics[f"context_recovered{suffix}"] = _recovered(_difference(nll["no_context"], nll[name]), gained)
    for part in ("question", "prompt"):
        counts = [getattr(sample, f"{part}_tokens") for sample in samples]
        metrics[f"compression_{part}"] = _compression(counts, soft_tokens, prompt_mode)
    if all(sample.answers for sample in samples):
        for name in ANSWERED:
            right = sum(sample.is_right(name) for sample in samples)
            metrics[f"{name}_accuracy"] = proportion(right, len(samples))
    return metrics


def _difference(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def _recovered(gained: Sequence[float], at_most: Sequence[float]) -> Metric:
    if sum(at_most) <= 0:
        return void("the target answers no better with the full text than with none", len(at_most))
    return ratio(gained, at_most)


def _compression(counts: Sequence[int], soft_tokens: int, prompt_mode: str) -> Metric:
    if prompt_mode == "soft_plus_text":
        return void("the target reads the text as well, so no token is saved", len(counts))
    return mean([count / soft_tokens for count in counts])
