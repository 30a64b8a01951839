"""What a mixture of experts must prove at a small size, beside what every language model must."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.job import Run
from latentbridge.lm.mixture import MixtureFfn, MixtureLm
from latentbridge.lm.mixture_config import MixtureLmConfig
from latentbridge.lm.rehearsal import LmRehearsal, parts
from latentbridge.nn.routers import Router
from latentbridge.rehearsal.checks import any_batch
from latentbridge.rehearsal.contract import Caught, Check, Stage
from latentbridge.rehearsal.language import in_both_modes, refuse_reading_ahead, refuse_reading_neighbours
from latentbridge.rehearsal.shrinking import chosen

# by which the scale that experts start with may be off, of so few numbers
_SPREAD = 0.25
_MICRO_BATCH = "train.micro_batch_size"


class MixtureRehearsal(LmRehearsal):
    """See `latentbridge.rehearsal.contract.Rehearsal`."""

    def __init__(self) -> None:
        super().__init__()
        own = {"causality": causality, "neighbours": neighbours}
        known = [Check(check.name, own.get(check.name, check.prove)) for check in self.checks]
        self.checks: Sequence[Check] = (*known, Check("routers", routers), Check("temperature", temperature))

    def shrink(self, config: MixtureLmConfig, folder: Path) -> Any:
        """On one rank, which then holds all experts."""
        mixture = config.mixture.model_copy(update={"expert_parallel": 1})
        return super().shrink(config, folder).model_copy(update={"mixture": mixture})

    def make(self, config: MixtureLmConfig, run: Run) -> MixtureLm:
        return MixtureLm(config, run)

    def protocol(self, config: MixtureLmConfig) -> dict[str, Any]:
        """Micro-batches too: load is balanced, and room for it shared, within each."""
        return {**super().protocol(config), **chosen(config, (_MICRO_BATCH,))}

    def engineering(self) -> tuple[str, ...]:
        return (*(key for key in super().engineering() if key != _MICRO_BATCH), "mixture.expert_parallel")

    def moments(self, config: MixtureLmConfig) -> list[int]:
        """The first update, the last, and one between, where schedules of the same ends differ."""
        steps = config.train.steps
        constant = config.mixture.router.temperature.schedule == "constant"
        return [1] if constant else sorted({1, 1 + steps // 4, steps})


def causality(stage: Stage) -> str:
    """No token changes a logit before it; in training, of routers that do not look at whole batches."""
    return _where_it_holds(stage, refuse_reading_ahead)


def neighbours(stage: Stage) -> str:
    """No sequence changes a logit of another one, with the same exception, and a batch's size no number."""
    return f"{_where_it_holds(stage, refuse_reading_neighbours)}; {any_batch(stage)}"


def _where_it_holds(stage: Stage, prove: Callable[[Callable[[Tensor], Tensor], Tensor], str]) -> str:
    made, model = parts(stage)
    ids = made.load_batch(stage.batch).blocks[:, :-1]
    drops = stage.config.mixture.dispatch.kind == "padded"
    if _routers(stage)[0].is_causal and not drops:
        with _without_dropout(model):
            return in_both_modes(model, prove, model.logits, ids)
    reason = "capacity is shared" if drops else "experts choose among all tokens"
    return f"{prove(model.eval().logits, ids)}, in evaluation; in training {reason}"


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Within experts it falls on rows in the order of their experts, which another token may change."""
    kept = {part: part.p for part in model.modules() if isinstance(part, nn.Dropout)}
    for part in kept:
        part.p = 0.0
    try:
        yield
    finally:
        for part, share in kept.items():
            part.p = share


def routers(stage: Stage) -> str:
    """Every router that learns is taught by the text, and experts start alike whatever their number."""
    strategy = stage.config.mixture.router.strategy
    with stage.keeping_buffers():
        sizes = _taught(stage)
    if strategy != "hash" and not all(sizes):
        raise Caught(f"the text's loss has no gradient at {sizes.count(0.0)} weights of {strategy} routers")
    # as they start, which the rehearsal's own are not: it makes quiet weights louder
    stack = MixtureFfn(stage.config, 0).moe.experts
    scale = float(stack.up.detach().std()) * (3 * stack.dim) ** 0.5
    if abs(scale - 1) > _SPREAD:
        raise Caught(f"experts start {scale:.2f} times as large as dense layers of their width would")
    return f"{len(sizes)} weights of routers are taught by the text" if sizes else "nothing to teach"


def _taught(stage: Stage) -> list[float]:
    """Norms of the gradient that the text's loss sends to each weight of each router."""
    made, model = parts(stage)
    model.train()
    torch.manual_seed(0)
    loss = made.losses(model, made.load_batch(stage.batch), 1)["lm"].value
    sizes: list[float] = []
    for router in _routers(stage):
        weights = list(router.parameters())
        found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) if weights else ()
        sizes += [0.0 if gradient is None else float(gradient.norm()) for gradient in found]
    return sizes


def temperature(stage: Stage) -> str:
    """A temperature on weights changes no choice, and one on choices does."""
    config = stage.config.mixture.router
    if config.strategy == "hash" or config.temperature == type(config.temperature)():
        return "not asked for"
    made, model = parts(stage)
    ids = made.load_batch(stage.batch).blocks[:, :-1]
    router, seen = _routers(stage)[0], []
    model.train()
    with stage.keeping_buffers(), torch.no_grad():
        for value in (0.1, 10.0):
            router.set_temperature(value)
            torch.manual_seed(0)
            seen.append(model.read(ids)[1][0]["counts"])
    changes = not torch.equal(*seen)
    if changes != (config.temperature.acts_on == "choice"):
        found = "changes choices" if changes else "changes no choice"
        raise Caught(f"temperature acts on {config.temperature.acts_on}, but {found}")
    return f"acts on {config.temperature.acts_on}"


def _routers(stage: Stage) -> list[Router]:
    return [part for part in stage.workload.model.modules() if isinstance(part, Router)]
