"""What a translator must prove on tiny models before it is launched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentbridge.data.config import ProblemsConfig
from latentbridge.data.language_model import load_frozen
from latentbridge.data.problems import Problem, Split, load_problems
from latentbridge.data.scoring import answer_states, packed_answer_states, token_nll
from latentbridge.job import Run
from latentbridge.nn.norm import rms
from latentbridge.rehearsal.checks import SAME, any_batch
from latentbridge.rehearsal.contract import Caught, Check, Stage, open_gates
from latentbridge.rehearsal.language import nats_one_by_one
from latentbridge.rehearsal.problems import refuse_given_answers
from latentbridge.rehearsal.shrinking import (
    BATCH,
    ENGINEERING,
    NEW_TOKENS,
    PROTOCOL,
    chosen,
    small_problems,
    small_train,
)
from latentbridge.rehearsal.tiny import tiny_model
from latentbridge.translator.config import BridgeConfig, DiTConfig, LanguageModelConfig, TranslatorConfig
from latentbridge.translator.metrics import BRIDGED, INFERENCE, INVALID, Sample, metrics_of
from latentbridge.translator.prompts import Padded, Prompts
from latentbridge.translator.train import Translation

_DEPTHS = 6
# of a width: tiny models of two widths, so that no axis can be mistaken for another
_WIDTHS = (24, 32)


_load_once = cache(load_frozen)


class TranslatorRehearsal:
    """See `latentbridge.rehearsal.contract.Rehearsal`."""

    def __init__(self) -> None:
        self.checks: Sequence[Check] = (
            Check("answers", answers),
            Check("labels", labels),
            Check("neighbours", any_batch),
            Check("controls", controls),
            Check("scale", scale),
        )

    def shrink(self, config: TranslatorConfig, folder: Path) -> TranslatorConfig:
        """Two tiny Llamas, few problems, narrow bridges half as deep; schedules, soft tokens as they are."""
        names = sorted({config.source.model, config.target.model})
        # two models of one width where their states are handed over as they are
        widths = (_WIDTHS[0],) * 2 if config.model.kind == "passthrough" else _WIDTHS
        models = {
            name: tiny_model(folder, f"{place}-{width}", tokenizer_of=tokenizer, width=width, layers=_DEPTHS)
            for place, (name, width, tokenizer) in enumerate(
                zip(names, widths, ("bundled:gpt2_char", "bundled:llama_bpe"), strict=False)
            )
        }

        def small(side: LanguageModelConfig) -> LanguageModelConfig:
            return side.model_copy(update={"model": models[side.model], "layer": _small_layer(side.layer)})

        heads, dim = config.model.heads, config.model.dim
        # half the width of a head is at least one pair
        per_head = 2 * max(1, round(dim / heads / 64))
        teacher = config.teacher
        return config.model_copy(
            update={
                "source": small(config.source),
                "target": small(config.target),
                "problems": small_problems(config.problems),
                "model": config.model.model_copy(
                    update={
                        "dim": heads * per_head,
                        "depth": -(-config.model.depth // 2),
                        "dit": _small_dit(config.model),
                    }
                ),
                "teacher": teacher and teacher.model_copy(update={"layer": _small_layer(teacher.layer)}),
                "train": small_train(config.train),
                "eval": config.eval.model_copy(
                    update={
                        "batch_size": BATCH,
                        "max_new_tokens": NEW_TOKENS,
                        "inference_examples": min(config.eval.inference_examples, 1),
                    }
                ),
                "warm_start": None,
            }
        )

    def workload(self, config: TranslatorConfig, run: Run) -> Translation:
        return Translation(config, run, models=_load_once)

    def moments(self, config: TranslatorConfig) -> list[int]:
        """First and last update, and those around which a term or the curriculum changes."""
        steps = config.train.steps
        found = {1, steps}
        for _, term in config.losses.terms():
            found |= {term.start_step + 1, term.start_step + term.ramp_steps // 2 + 1}
        every = config.losses.decode.every
        found.add(-(-(config.losses.decode.start_step + 1) // every) * every)
        if config.text_curriculum_steps:
            found |= {config.text_curriculum_steps // 2 + 1, config.text_curriculum_steps + 1}
        return sorted(moment for moment in found if 1 <= moment <= steps)

    def protocol(self, config: TranslatorConfig) -> dict[str, Any]:
        # kl.tokens: longer than the few answers of a rehearsal
        mine = ("losses.kl.tokens", "eval.generate_every_eval", "eval.inference_examples", "warm_start")
        return chosen(config, (*PROTOCOL, *mine))

    def engineering(self) -> tuple[str, ...]:
        return (*ENGINEERING, "cache_source_states")


def _small_dit(config: BridgeConfig) -> DiTConfig | None:
    """With so few rows, one that loses its condition is seldom met unless every other does."""
    if config.dit is None or not config.dit.drop_condition:
        return config.dit
    return config.dit.model_copy(update={"drop_condition": 0.5})


def _small_layer(layer: int) -> int:
    """A layer of the tiny models that stands for one of the real ones: first, last, and others between."""
    if layer < -1:
        return -2 - (-layer - 2) % (_DEPTHS - 1)
    return layer if layer <= 0 else 1 + (layer - 1) % _DEPTHS


def answers(stage: Stage) -> str:
    """Gold is the solution's own number, differs between problems, and is read by nobody beforehand."""
    config, made = _config(stage), _workload(stage)

    def prompts(real: ProblemsConfig, split: Split, problems: Sequence[Problem]) -> list[str]:
        asked = config.model_copy(update={"problems": real})
        return Prompts(asked, split, made.source, made.target, lambda *_: problems).prompt_texts

    shown = refuse_given_answers([real.problems for real in stage.real], prompts)
    nothing = Sample(0, "", "", INVALID, 1, 1, {}, dict.fromkeys(("bridged",), "no number here"))
    if nothing.is_right("bridged"):
        raise Caught(f"an answer that was not found counts as right where the gold one is '{INVALID}'")
    altered = Translation(config, stage.run(), problems=_other_answers, models=_load_once)
    open_gates(altered.model)
    for what, first, second in zip(
        _READERS, _read_before_answers(made), _read_before_answers(altered), strict=True
    ):
        if first.shape != second.shape or not torch.equal(first, second):
            raise Caught(f"what {what} reads changes with the gold answer, so the answer is given away")
    return f"{len(_READERS)} inputs do not change with the gold answers; {shown}"


def _other_answers(config: ProblemsConfig, split: Split) -> Sequence[Problem]:
    problems = load_problems(config, split)[:]
    return [replace(problem, answer="It is told.\n#### 7777", gold="7777") for problem in problems]


_READERS = ("the source in training", "the source in evaluation", "the bridge", "the target", "the baselines")


def _read_before_answers(made: Translation) -> list[Tensor]:
    """All that is read before an answer is generated or scored."""
    prompts, indices = made.evaluator.prompts, range(BATCH)
    made.model.eval()
    with torch.no_grad():
        training, evaluation = made.states.take(indices), made.evaluator.states.take(indices)
        soft = made.soft_tokens(made.model, evaluation, indices)
        target = made.target_input(soft, prompts.visible(indices))
    baselines = [prompts.source, prompts.prompt, prompts.cut_prompt]
    return [
        training.values,
        evaluation.values,
        soft,
        target.values,
        torch.cat([table.take(indices, "left").values for table in baselines], dim=1),
    ]


def labels(stage: Stage) -> str:
    """Each answer token is scored by what the target says after all tokens before it, and nothing else."""
    made = _workload(stage)
    target, indices = made.target, [0]
    ids, mask = made.prompts.answer.take(indices, "right")
    ids, mask = ids[:, :4], mask[:, :4]
    with torch.no_grad():
        soft = made.soft_tokens(made.model.eval(), made.states.take(indices), indices)
        before, before_mask = made.target_input(soft, made.prompts.visible(indices))
        found = token_nll(target, answer_states(target, before, before_mask, ids, mask), ids)[0]
        expected = nats_one_by_one(target, before[0, before_mask[0]], ids[0])
        for place, (one, other) in enumerate(zip(found.tolist(), expected.tolist(), strict=True)):
            if abs(one - other) > 1e-3 * (1 + abs(other)):
                raise Caught(
                    f"answer token {place + 1} is scored with {one:.4f} nats; read one token after the other "
                    f"it has {other:.4f}: labels are not shifted once"
                )
        # training lays its rows end to end
        opening, texts = made.target_input.length_before_text(soft), made.prompts.visible_lengths(indices)
        whole = made.target_input(soft, made.prompts.visible(indices)).values
        packed = packed_answer_states(target, whole, opening, texts, ids, [ids.shape[1]])
        if not torch.allclose(token_nll(target, packed.states, ids[0]), found, rtol=1e-3, atol=1e-3):
            raise Caught("rows that are laid end to end, as in training, are scored otherwise")
    return f"{ids.shape[1]} tokens, each scored by what came before it"


def controls(stage: Stage) -> str:
    """Controls read what they say, every problem is counted, and nothing that is missing counts as 0."""
    made, config = _workload(stage), _config(stage)
    made.model.eval()
    indices = range(BATCH)
    reads = made.evaluator.source_of(indices)
    with torch.no_grad():
        soft = {name: made.soft_tokens(made.model, reads[name], indices) for name in BRIDGED}
    metrics = stage.evaluated
    for name in BRIDGED[1:]:
        change = float((soft[name] - soft["bridged"]).norm() / soft["bridged"].norm())
        if change < SAME:
            raise Caught(f"the control {name} gives the soft tokens of the right source: it controls nothing")
    count = config.problems.eval_examples
    for name, metric in metrics.items():
        if name in INFERENCE:
            continue  # of fewer problems, each answered alone
        # a share of context may be void, where tiny models gain nothing from it
        is_void = metric.value is None and name.endswith(("_nll", "_accuracy"))
        if metric.n != count or is_void:
            raise Caught(f"{name} is {metric.value} and counts {metric.n} of {count} problems")
    if missing := set(config.metric_names()) - set(metrics):
        raise Caught(f"the final evaluation does not measure {', '.join(sorted(missing))}")
    empty = metrics_of([], config.model.soft_tokens, config.prompt_mode)
    if shown := [name for name, metric in empty.items() if metric.value is not None]:
        raise Caught(f"of no problem at all {shown[0]} is {empty[shown[0]].value}; it must be void")
    return f"{len(BRIDGED) - 1} controls apart from the bridge, {count} of {count} problems in every metric"


def scale(stage: Stage) -> str:
    """Matched soft tokens have the scale of the target's embeddings, wherever they start."""
    if not _config(stage).model.rms_match:
        return "not asked for"
    # its weights are scaled and scaled back, which leaves rounding
    made = stage.fresh()
    assert isinstance(made, Translation)
    indices = range(BATCH)
    hidden, mask = made.states.take(indices)
    worst = 1.0
    with torch.no_grad():
        for factor in (1e-3, 1.0, 1e3):
            _scale_output(made, factor)
            soft = made.soft_tokens(made.model.eval(), Padded(hidden, mask), indices)
            _scale_output(made, 1 / factor)
            ratio = rms(soft) / made.bridge.target_rms
            worst = max(worst, float(ratio.max()), float(1 / ratio.min()))
    if worst > 1.01:
        raise Caught(
            f"matched soft tokens are up to {worst:.3g} times off the scale of the target's embeddings"
        )
    return f"within {worst - 1:.1%} of the target's scale"


def _scale_output(made: Translation, factor: float) -> None:
    out = getattr(made.bridge, "out", None)
    for parameter in out.parameters() if out is not None else ():
        parameter.mul_(factor)


def _config(stage: Stage) -> TranslatorConfig:
    assert isinstance(stage.config, TranslatorConfig)
    return stage.config


def _workload(stage: Stage) -> Translation:
    assert isinstance(stage.workload, Translation)
    return stage.workload
