"""What a language model from scratch must prove at a small size before it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.data.config import ProblemsConfig
from latentbridge.data.language_model import FrozenLM, load_frozen
from latentbridge.data.problems import Problem, Split, answer_text, load_problems, prompt_text
from latentbridge.data.tokenizers import build_tokenizer
from latentbridge.job import Run
from latentbridge.pretrain.config import ModelConfig, PretrainConfig
from latentbridge.pretrain.train import Pretraining, write_export
from latentbridge.rehearsal.checks import SAME, any_batch
from latentbridge.rehearsal.contract import Caught, Check, Stage
from latentbridge.rehearsal.language import (
    in_both_modes,
    nats_one_by_one,
    refuse_misplaced_labels,
    refuse_reading_ahead,
    refuse_reading_neighbours,
)
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
from latentbridge.train.checkpoint import full_weights, write_best

_LAYERS = 2
# a narrow model starts out saying nearly the same of everything, which would hide what it reads
_LOUDER = 10.0

_build_once = cache(build_tokenizer)


class PretrainRehearsal:
    """See `latentbridge.rehearsal.contract.Rehearsal`."""

    def __init__(self) -> None:
        self.checks: Sequence[Check] = (
            Check("answers", answers),
            Check("labels", labels),
            Check("causality", causality),
            Check("neighbours", neighbours),
            Check("export", export),
        )

    def shrink(self, config: PretrainConfig, folder: Path) -> PretrainConfig:
        """Two narrow layers with as many heads, few problems; schedules as they are."""
        return config.model_copy(
            update={
                "model": _small(config.model),
                "problems": small_problems(config.problems),
                "train": small_train(config.train),
                "eval": config.eval.model_copy(update={"batch_size": BATCH, "max_new_tokens": NEW_TOKENS}),
            }
        )

    @torch.no_grad()
    def workload(self, config: PretrainConfig, run: Run) -> Pretraining:
        made = Pretraining(config, run, _build_once)
        for parameter in made.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(_LOUDER)
        return made

    def moments(self, config: PretrainConfig) -> list[int]:
        """The first update: no term of the loss changes with them."""
        return [1]

    def protocol(self, config: PretrainConfig) -> dict[str, Any]:
        return chosen(config, PROTOCOL)

    def engineering(self) -> tuple[str, ...]:
        return ENGINEERING


def _small(config: ModelConfig) -> ModelConfig:
    # half the width of a head is at least one pair
    width = config.heads * 2 * max(1, round(config.width / config.heads / 16))
    return config.model_copy(
        update={
            "layers": min(config.layers, _LAYERS),
            "width": width,
            "ffn": max(1, round(config.ffn * width / config.width)),
        }
    )


def answers(stage: Stage) -> str:
    """Gold is the solution's own number, differs between problems, and stands in no prompt."""

    def prompts(config: ProblemsConfig, split: Split, problems: Sequence[Problem]) -> list[str]:
        return [prompt_text(problem, config) for problem in problems]

    shown = refuse_given_answers([real.problems for real in stage.real], prompts)
    made, config = _workload(stage), stage.config.problems
    batch = made.load_batch(stage.batch)
    for row, problem in enumerate(load_problems(config, "train")[: len(batch.ids)]):
        found = made.tokenizer.decode(batch.ids[row, : batch.prompt_ends[row]], skip_special_tokens=True)
        if found != prompt_text(problem, config):
            raise Caught(
                f"before the answer of train problem {row} stands {found!r}, which is not its prompt"
            )
    return shown


def labels(stage: Stage) -> str:
    """Every term of the loss and every score of an answer is of the token that comes next."""
    made, config = _workload(stage), stage.config.problems
    batch = made.load_batch(stage.batch)

    def terms(model: nn.Module) -> dict[str, Tensor]:
        return {name: term.value for name, term in made.losses(model, batch, 1).items()}

    shown = refuse_misplaced_labels(terms, len(made.tokenizer))
    lm = FrozenLM(made.model.eval(), made.tokenizer)
    nats = []
    for problem in load_problems(config, "eval"):
        before, _ = lm.encode([prompt_text(problem, config)], add_bos=True, padding="left")
        ids, _ = lm.encode([answer_text(problem, config)], add_bos=False, add_eos=True, padding="right")
        nats.append(nats_one_by_one(lm, lm.embed(before[0]), ids[0]))
    expected, found = float(torch.cat(nats).mean()), stage.evaluated["answer_nll"].value
    if found is None or abs(found - expected) > SAME * (1 + expected):
        raise Caught(
            f"answer_nll is {found}; read one token after the other the answers have {expected:.6f} nats each"
        )
    return f"{shown}; {sum(map(len, nats))} answer tokens are scored by what came before them"


def causality(stage: Stage) -> str:
    """No token changes a logit before it, in training or evaluation mode."""
    return _in_both_modes(stage, refuse_reading_ahead)


def neighbours(stage: Stage) -> str:
    """No sequence changes a logit of another one, and a batch's size changes no number."""
    return f"{_in_both_modes(stage, refuse_reading_neighbours)}; {any_batch(stage)}"


def _in_both_modes(stage: Stage, prove: Any) -> str:
    made = _workload(stage)
    batch = made.load_batch(stage.batch)
    ids = batch.ids[:, : int(batch.ends.min())]

    def logits(ids: Tensor) -> Tensor:
        found: Tensor = made.model(input_ids=ids, use_cache=False).logits
        return found

    return in_both_modes(made.model, prove, logits, ids)


def export(stage: Stage) -> str:
    """What is written for others to load has the weights of the checkpoint, in half precision."""
    made, folder = _workload(stage), stage.run().folder
    best = folder.checkpoints / write_best(folder.checkpoints, full_weights(made.model), {"step": 1})
    write_export(made, best / "model.safetensors", folder.path / "export")
    lm = load_frozen(str(folder.path / "export"), torch.float32, made.device)
    exported = dict(lm.model.named_parameters())
    for name, parameter in made.model.named_parameters():
        if name not in exported or not torch.equal(exported[name], parameter.detach().half().float()):
            raise Caught(f"the export's {name} is not the checkpoint's in half precision")
    ids = made.load_batch(stage.batch).ids
    with torch.no_grad():
        known, found = (model(input_ids=ids).logits for model in (made.model.eval(), lm.model))
    if float((known - found).abs().max()) > 100 * SAME * float(known.abs().max()):
        raise Caught("the export has the checkpoint's weights, but says something else")
    return f"{len(exported)} weights, loaded as others load them"


def _workload(stage: Stage) -> Pretraining:
    assert isinstance(stage.workload, Pretraining)
    return stage.workload
