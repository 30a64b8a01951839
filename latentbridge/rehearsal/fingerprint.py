"""What a config computes, part by part: two configs with one fingerprint are one experiment.

It is made of what was observed on tiny models (losses, gradients, evaluations), of the optimiser and schedule
that follow from the config, and of what matters by being what it is (how much is trained and evaluated).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor

from latentbridge.metric import is_seconds
from latentbridge.rehearsal.contract import Stage
from latentbridge.train.optim import lr_factor, parameter_groups
from latentbridge.train.seeding import SampleOrder, reseed

# significant digits of an observed number: what differs by less is rounding
_DIGITS = 5
# samples whose order is looked at
_ORDER = 64


class Fingerprint:
    """Compared by `==`; what is expensive is looked at only where all before it is the same."""

    def __init__(self, stage: Stage, protocol: dict[str, Any]) -> None:
        """stage: of the shrunk config;  protocol: see `Rehearsal.protocol`."""
        self._known: list[str] = []
        self._left = _parts(stage, protocol)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint):
            return NotImplemented
        for place in count():
            mine, theirs = self._part(place), other._part(place)
            if mine != theirs or mine is None:
                return mine == theirs
        return True

    __hash__ = None  # type: ignore[assignment]

    def _part(self, place: int) -> str | None:
        """One part; None behind the last."""
        if place == len(self._known) and (found := next(self._left, None)) is not None:
            self._known.append(found)
        return self._known[place] if place < len(self._known) else None


def _parts(stage: Stage, protocol: dict[str, Any]) -> Iterator[str]:
    yield json.dumps(protocol, sort_keys=True, default=str)
    if stage.is_trained:
        yield repr(_schedule(stage))
        for moment in stage.moments:
            with stage.keeping_buffers():
                found = repr(_update(stage, moment))
            yield found
    measured = sorted(stage.evaluated.items())
    yield repr({name: _rounded(metric.value) for name, metric in measured if not is_seconds(name)})


def _schedule(stage: Stage) -> list[Any]:
    """What follows from the config without computing anything."""
    config = stage.config
    groups, settings = parameter_groups(stage.workload.model, config.optim)
    optimiser = [(len(group), setting) for group, setting in zip(groups, settings, strict=True)]
    steps = config.train.steps
    rates = [round(lr_factor(config.optim, steps, done), 9) for done in range(steps)]
    order = SampleOrder(config.seed, stage.workload.num_examples).take(0, min(_ORDER, steps))
    return [
        stage.moments,
        optimiser,
        config.optim.betas,
        hashlib.sha256(repr(rates).encode()).hexdigest(),
        list(order),
    ]


def _update(stage: Stage, moment: int) -> Any:
    """Losses of one part of the schedule, and the gradient after clipping."""
    workload = stage.workload
    clip = stage.config.optim.clip_norm
    parameters = [parameter for _, parameter in stage.parameters()]
    workload.model.train()
    reseed("rehearsal", moment)
    terms = workload.losses(workload.model, workload.load_batch(stage.batch), moment)
    # what weighs nothing is a figure for the log
    values = {name: (_rounded(term.value), term.weight) for name, term in terms.items() if term.weight}
    trained = [term.weight * term.value for term in terms.values() if term.value.requires_grad]
    if not trained or not parameters:
        return values
    found = torch.autograd.grad(torch.stack(trained).sum(), parameters, allow_unused=True)
    norms = [float(gradient.detach().norm()) for gradient in found if gradient is not None]
    total = float(torch.tensor(norms).norm())
    # a limit that is never reached on tiny models may be at real size
    return values, [_rounded(norm) for norm in norms], clip, clip is not None and total > clip


def _rounded(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = float(value.detach())
    return None if value is None else f"{value:.{_DIGITS}g}"
