"""What a config computes, as a short text: two configs with one fingerprint are one experiment.

It is made of what was observed on tiny models (losses, gradients, evaluations), of the optimiser and schedule
that follow from the config, and of what matters by being what it is (how much is trained and evaluated).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from latentbridge.rehearsal.contract import Stage
from latentbridge.train.optim import lr_factor, parameter_groups
from latentbridge.train.seeding import SampleOrder, reseed

# significant digits of an observed number: what differs by less is rounding
_DIGITS = 5
# samples whose order is looked at
_ORDER = 64


def fingerprint(stage: Stage, protocol: dict[str, Any]) -> str:
    """Twelve hex digits; stage: the shrunk config;  protocol: see `Rehearsal.protocol`."""
    seen = {"updates": _updates(stage), "evaluation": _evaluation(stage), "protocol": protocol}
    text = json.dumps(seen, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _updates(stage: Stage) -> list[Any]:
    """What every part of the schedule does: losses, and the gradient after clipping."""
    config = stage.config
    if not stage.is_trained:
        return []
    groups, settings = parameter_groups(stage.workload.model, config.optim)
    optimiser = [
        (len(group), setting.lr, setting.weight_decay)
        for group, setting in zip(groups, settings, strict=True)
    ]
    steps = config.train.steps
    rates = [round(lr_factor(config.optim, steps, done), 9) for done in range(steps)]
    order = SampleOrder(config.seed, stage.workload.num_examples).take(0, min(_ORDER, steps))
    return [
        stage.moments,
        optimiser,
        config.optim.betas,
        hashlib.sha256(repr(rates).encode()).hexdigest(),
        order,
    ] + [_update(stage, moment) for moment in stage.moments]


def _update(stage: Stage, moment: int) -> Any:
    workload = stage.workload
    clip = stage.config.optim.clip_norm
    parameters = [parameter for _, parameter in stage.parameters()]
    workload.model.train()
    reseed("rehearsal", moment)
    terms = workload.losses(workload.model, workload.load_batch(stage.batch), moment)
    values = {name: (_rounded(term.value), term.weight) for name, term in terms.items()}
    trained = [term.weight * term.value for term in terms.values() if term.value.requires_grad]
    if not trained or not parameters:
        return values
    found = torch.autograd.grad(torch.stack(trained).sum(), parameters, allow_unused=True)
    norms = [float(gradient.detach().norm()) for gradient in found if gradient is not None]
    total = float(torch.tensor(norms).norm())
    # a limit that is never reached on tiny models may be at real size
    return values, [_rounded(norm) for norm in norms], clip, clip is not None and total > clip


def _evaluation(stage: Stage) -> dict[str, Any]:
    return {name: _rounded(metric.value) for name, metric in sorted(stage.evaluated.items())}


def _rounded(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = float(value.detach())
    return None if value is None else f"{value:.{_DIGITS}g}"
