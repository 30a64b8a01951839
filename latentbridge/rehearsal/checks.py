"""The proofs that hold for every workload; a workload adds its own."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import torch
from torch import Tensor, nn

from latentbridge.metric import is_seconds
from latentbridge.rehearsal.contract import Caught, Check, Stage
from latentbridge.rehearsal.performance import BEST, STEPS, Performance, differing, perform
from latentbridge.train.loop import FINAL
from latentbridge.train.seeding import reseed

# a gradient this small beside the loss itself is rounding
_ROUNDING = 1e-6
# of anything else, what changed less than this share is rounding
SAME = 1e-4
_DRAWS = 4


@cache
def _performance(stage: Stage) -> Performance:
    return perform(stage)


def phases(stage: Stage) -> str:
    """Every phase once: update, evaluation, save, stop, resume, final evaluation, summary, archive."""
    if not stage.is_trained:
        return "only evaluated"
    seen = _performance(stage)
    expected = {*map(str, range(STEPS + 1)), FINAL}
    if set(seen.weights) != expected:
        raise Caught(f"evaluations were {sorted(seen.weights)}, not {sorted(expected)}")
    named = stage.config.metric_names()
    if named is not None and (missing := set(named) - set(seen.summary["final"])):
        raise Caught(f"the final evaluation does not measure {', '.join(sorted(missing))}")
    return (
        f"{STEPS} updates, {len(expected)} evaluations, stopped and resumed once, "
        f"{seen.num_preserved} files archived"
    )


def training_mode(stage: Stage) -> str:
    """Updates are made in training mode and evaluations are not."""
    if not stage.is_trained:
        return "only evaluated"
    seen = _performance(stage).training
    for number, (what, is_right) in enumerate(seen):
        if not is_right:
            mode = "evaluation" if what == "an update" else "training"
            raise Caught(
                f"{what} (call {number + 1} of {len(seen)}) is made in {mode} mode: dropout and "
                "whatever else depends on it is wrong from there on"
            )
    return f"right in {len(seen)} of {len(seen)} calls"


def best_weights(stage: Stage) -> str:
    """What is kept as best are the weights that were best, and the final evaluation is of them."""
    if not stage.is_trained:
        return "only evaluated"
    seen = _performance(stage)
    was_best = seen.weights[str(BEST)]
    if not differing(was_best, seen.weights[str(STEPS)]):
        raise Caught(f"updates {BEST + 1} to {STEPS} changed no weight; nothing is trained")
    for name, weights in (("the best checkpoint", seen.best), ("the final evaluation", seen.weights[FINAL])):
        if changed := differing(was_best, weights):
            is_last = not differing(seen.weights[str(STEPS)], weights)
            those = "of the last update" if is_last else "others"
            raise Caught(
                f"{name} has not the weights of update {BEST}, which was the best, but those {those} "
                f"(first difference: {changed[0]})"
            )
    return f"update {BEST} of {STEPS} was best, is kept and evaluated"


def gradients(stage: Stage) -> str:
    """Every term of the loss trains something, and everything that is trained is trained by a term."""
    if not (stage.is_trained and dict(stage.parameters())):
        return "only evaluated"
    reached: set[str] = set()
    terms: set[str] = set()
    for moment in stage.moments:
        with stage.keeping_buffers():
            taught = term_gradients(stage, moment, leave_out=terms)
        for term, norms in taught.items():
            found = {name for name, norm in norms.items() if norm > _ROUNDING}
            if not found:
                raise Caught(
                    f"losses.{term} has a weight in update {moment}, but sends no gradient to any weight: "
                    "it is detached, or the same whatever the model does"
                )
            reached |= found
            terms.add(term)
    trained = [name for name, _ in stage.parameters()]
    for draw in range(1, _DRAWS):
        # dropped conditions and the like: what one draw misses another may meet
        if set(trained) <= reached:
            break
        with stage.keeping_buffers():
            taught = term_gradients(stage, stage.moments[-1], draw=draw)
        for norms in taught.values():
            reached |= {name for name, norm in norms.items() if norm > _ROUNDING}
    if missing := [name for name in trained if name not in reached]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Caught(f"{missing[0]}{more}: no term of the loss reaches it, so it stays as it starts")
    return f"{len(terms)} terms reach {len(reached)} of {len(trained)} weights"


def term_gradients(
    stage: Stage, moment: int, leave_out: Collection[str] = (), draw: int = 0
) -> dict[str, dict[str, float]]:
    """By term and weight: size of the gradient in units of the term's value and the weight's size.

    moment: the update;  draw: another one, other random numbers
    """
    workload = stage.workload
    names, parameters = zip(*stage.parameters(), strict=True)
    workload.model.train()
    reseed("rehearsal", moment, draw)
    terms = workload.losses(workload.model, workload.load_batch(stage.batch), moment)
    sizes: dict[str, dict[str, float]] = {}
    for name, term in terms.items():
        # what weighs nothing is a figure for the log
        if name in leave_out or not term.weight:
            continue
        if not term.value.requires_grad:
            sizes[name] = dict.fromkeys(names, 0.0)
            continue
        if not bool(term.value.isfinite()):
            raise Caught(f"losses.{name} is {float(term.value)} in update {moment}")
        found = torch.autograd.grad(term.value, parameters, retain_graph=True, allow_unused=True)
        scale = max(abs(float(term.value.detach())), 1e-12)
        sizes[name] = {
            weight: _size(gradient, parameter) / scale
            for weight, gradient, parameter in zip(names, found, parameters, strict=True)
        }
    return sizes


def _size(gradient: Tensor | None, parameter: nn.Parameter) -> float:
    if gradient is None:
        return 0.0
    return float(gradient.detach().norm() * (parameter.detach().norm() + 1e-12))


def repeatable(stage: Stage) -> str:
    """Two evaluations of the same weights agree."""
    first, second = stage.evaluated, stage.evaluate(stage.workload, draw=1)
    changed = [name for name in first if not is_seconds(name) and first[name].value != second[name].value]
    if changed:
        name = changed[0]
        raise Caught(
            f"two evaluations of the same weights differ in {len(changed)} metrics: {name} is "
            f"{first[name].value} and {second[name].value}; something is drawn that is not seeded"
        )
    return f"{len(first)} metrics, twice the same"


def any_batch(stage: Stage) -> str:
    """Neither a problem's neighbours in a batch nor the padding they bring change its numbers."""
    config = stage.config
    alone = stage.fresh(eval=config.eval.model_copy(update={"batch_size": 1}))
    together, single = stage.evaluated, stage.evaluate(alone)
    for name, metric in together.items():
        if is_seconds(name):
            continue
        one, other = metric.value, single[name].value
        if (one is None) != (other is None) or (
            one is not None and other is not None and abs(one - other) > SAME * max(1.0, abs(one))
        ):
            raise Caught(f"{name} is {one} in batches of {config.eval.batch_size} and {other} one by one")
    return f"{len(together)} metrics in batches of {config.eval.batch_size} as one by one"


# of every workload; `any_batch` is for those with eval.batch_size
CHECKS = (
    Check("phases", phases),
    Check("gradients", gradients),
    Check("training_mode", training_mode),
    Check("best_weights", best_weights),
    Check("repeatable", repeatable),
)
