"""What adapters beside frozen experts must prove on a tiny mixture before they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentbridge.data.config import ProblemsConfig
from latentbridge.data.language_model import load_frozen
from latentbridge.data.problems import Problem, Split, load_problems, prompt_text
from latentbridge.job import Run
from latentbridge.perft.config import PerftConfig
from latentbridge.perft.examples import Examples, in_halves
from latentbridge.perft.model import AdaptedModel
from latentbridge.perft.train import Perft
from latentbridge.rehearsal.checks import SAME, any_batch
from latentbridge.rehearsal.contract import Caught, Check, Stage
from latentbridge.rehearsal.language import (
    in_both_modes,
    refuse_reading_ahead,
    refuse_reading_neighbours,
)
from latentbridge.rehearsal.problems import refuse_given_answers
from latentbridge.rehearsal.shrinking import (
    BATCH,
    ENGINEERING,
    PROTOCOL,
    chosen,
    small_problems,
    small_train,
)
from latentbridge.rehearsal.tiny import tiny_mixture

_SHAPE = {"width": 24, "layers": 2, "num_experts": 5, "top_k": 2}
_HELD_OUT = 4
# no reply is made
_PROTOCOL = (*(key for key in PROTOCOL if key != "eval.max_new_tokens"), "frozen.model")
_TOKENS = 12
# training problems whose questions are compared with those that are held out
_LOOKED_AT = 4096

_load_once = cache(load_frozen)


class PerftRehearsal:
    """See `latentbridge.rehearsal.contract.Rehearsal`."""

    def __init__(self) -> None:
        self.checks: Sequence[Check] = (
            Check("answers", answers),
            Check("labels", labels),
            Check("causality", causality),
            Check("neighbours", neighbours),
            Check("identity", identity),
            Check("routers", routers),
        )

    def shrink(self, config: PerftConfig, folder: Path) -> PerftConfig:
        """The same adapters in two narrow layers of random experts."""
        model = tiny_mixture(folder, "mixture", tokenizer_of="bundled:llama_bpe", **_SHAPE)
        problems = small_problems(config.problems).model_copy(update={"eval_examples": _HELD_OUT})
        return config.model_copy(
            update={
                "frozen": config.frozen.model_copy(update={"model": model}),
                "problems": problems,
                "train": small_train(config.train),
                "eval": config.eval.model_copy(update={"batch_size": BATCH}),
            }
        )

    def workload(self, config: PerftConfig, run: Run) -> Perft:
        return Perft(config, run, models=_load_once)

    def moments(self, config: PerftConfig) -> list[int]:
        """The first update: no term of the loss changes with them."""
        return [1]

    def protocol(self, config: PerftConfig) -> dict[str, Any]:
        return chosen(config, _PROTOCOL)

    def engineering(self) -> tuple[str, ...]:
        return ENGINEERING


def answers(stage: Stage) -> str:
    """Gold is the solution's own number, differs between problems, and stands in no prompt."""

    def prompts(config: ProblemsConfig, split: Split, problems: Sequence[Problem]) -> list[str]:
        return [prompt_text(problem, config) for problem in problems]

    shown = refuse_given_answers([real.problems for real in stage.real], prompts)
    for config in {real.problems.model_dump_json(): real.problems for real in stage.real}.values():
        seen = {problem.question for problem in load_problems(config, "train")[:_LOOKED_AT]}
        for split, half in zip(("val", "test"), in_halves(load_problems(config, "eval")), strict=True):
            if both := seen & {problem.question for problem in half}:
                raise Caught(f"{len(both)} problems of {split} are in a split before it: {min(both)!r}")
            seen |= {problem.question for problem in half}
    return f"{shown}; no problem is in two splits"


def labels(stage: Stage) -> str:
    """The loss and every score are of the answers' tokens, each by what came before it, and of no others."""
    made = _workload(stage)
    made.model.eval()
    indices = list(stage.batch)
    with torch.no_grad():
        loss = float(made.losses(made.model, made.load_batch(indices), 1)["answer"].value)
    parts = {"losses.answer": (loss, made.examples, indices)}
    for split, examples in made.held_out.items():
        found = stage.evaluated[f"{split}_nll"].value
        parts[f"{split}_nll"] = (
            float("nan") if found is None else found,
            examples,
            list(range(len(examples))),
        )
    scored = 0
    for name, (found, examples, some) in parts.items():
        nats = torch.cat([_answer_nats(made, examples, index) for index in some])
        expected = float(nats.mean())
        if not abs(found - expected) <= SAME * (1 + expected):
            raise Caught(f"{name} is {found}; read one by one the answers have {expected:.6f} nats a token")
        scored += len(nats)
    return f"{scored} answer tokens are scored by what came before them, and no token of a prompt"


@torch.no_grad()
def _answer_nats(made: Perft, examples: Examples, index: int) -> Tensor:
    prompt, answer = examples.prompts[index], examples.answers[index]
    ids = torch.tensor([prompt + answer], device=made.lm.device)
    # in one forward: that no logit changes with what comes later is for `causality` to show
    said = made.adapted.logits(ids[:, :-1])[0, len(prompt) - 1 :].log_softmax(-1)
    return -said.gather(1, ids[0, len(prompt) :, None])[:, 0]


def causality(stage: Stage) -> str:
    """No token changes a logit before it, in training or evaluation mode."""
    made = _workload(stage)
    return in_both_modes(made.model, refuse_reading_ahead, made.adapted.logits, _texts(stage))


def neighbours(stage: Stage) -> str:
    """No problem changes a logit of another one, and a batch's size and padding change no number."""
    made = _workload(stage)
    shown = in_both_modes(made.model, refuse_reading_neighbours, made.adapted.logits, _texts(stage))
    return f"{shown}; {any_batch(stage)}"


def _texts(stage: Stage) -> Tensor:
    """(B, T) ids without padding."""
    examples = _workload(stage).examples
    rows = [(examples.prompts[index] + examples.answers[index])[:_TOKENS] for index in stage.batch]
    return torch.tensor([row[: min(map(len, rows))] for row in rows], device=_workload(stage).lm.device)


@torch.no_grad()
def identity(stage: Stage) -> str:
    """Adapters that have not been trained leave the base exactly as it is, and trained ones do not."""
    made, ids = _workload(stage), _texts(stage)
    torch.manual_seed(0)
    fresh = AdaptedModel(stage.config.adapters, made.lm).to(ids.device).eval()
    base = fresh.logits(ids, adapted=False)
    if not torch.equal(fresh.logits(ids), base):
        raise Caught("adapters that have not been trained change what the base says: they do not start at 0")
    made.model.eval()
    if torch.equal(made.adapted.logits(ids), base):
        raise Caught("adapters with weights of all kinds change nothing that the base says")
    return "untrained adapters leave every logit as it is"


def routers(stage: Stage) -> str:
    """The answers' loss teaches every gate and every adapter kind, and nothing of the base is trained."""
    made = _workload(stage)
    if found := [name for name, p in made.lm.model.named_parameters() if p.requires_grad]:
        raise Caught(f"{found[0]} of the base would be trained, which no checkpoint keeps")
    if made.lm.model.training:
        raise Caught("the base is in training mode, with dropout where it has any")
    made.model.train()
    torch.manual_seed(0)
    loss = made.losses(made.model, made.load_batch(stage.batch), 1)["answer"].value
    gates = [p for name, p in made.model.named_parameters() if ".router." in name]
    if not gates:
        return "no gate to teach; the base is frozen"
    taught = torch.autograd.grad(loss, gates, allow_unused=True)
    idle = sum(gradient is None or not bool(gradient.any()) for gradient in taught)
    if idle:
        raise Caught(f"the answers' loss has no gradient at {idle} weights of the adapters' gates")
    return f"{len(gates)} weights of gates are taught by the answers; the base is frozen"


def _workload(stage: Stage) -> Perft:
    assert isinstance(stage.workload, Perft)
    return stage.workload
