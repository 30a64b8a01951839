"""What routed layers must prove at a small size, beside what every language model must."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.job import Run
from latentbridge.layer_routing.config import LayerRoutingConfig
from latentbridge.layer_routing.train import LayerRoutingLm
from latentbridge.lm.mixture_config import temperature_at
from latentbridge.lm.rehearsal import LmRehearsal, parts
from latentbridge.nn.balance import balance_loss
from latentbridge.nn.layer_routing import SOFTMAX, RoutedDecoder, RoutedMixer
from latentbridge.rehearsal.checks import SAME
from latentbridge.rehearsal.contract import Caught, Check, Stage
from latentbridge.rehearsal.shrinking import chosen
from latentbridge.train.seeding import reseed

_NOT_ROUTED = "no layer is routed"
_MICRO_BATCH = "train.micro_batch_size"


class LayerRoutingRehearsal(LmRehearsal):
    """See `latentbridge.rehearsal.contract.Rehearsal`."""

    def __init__(self) -> None:
        super().__init__()
        own = (Check("routers", routers), Check("sparse", sparse), Check("routes", routes))
        self.checks: Sequence[Check] = (*self.checks, *own, Check("temperature", temperature))

    def shrink(self, config: LayerRoutingConfig, folder: Path) -> Any:
        """Narrow, with as many layers and heads: which of them reads how is what cells differ in."""
        small = super().shrink(config, folder)
        share = small.model.dim / config.model.dim
        gdn = {
            name: max(2, round(share * getattr(config.gdn, name))) for name in ("key_width", "value_width")
        }
        return small.model_copy(
            update={
                "model": small.model.model_copy(update={"layers": config.model.layers}),
                "gdn": config.gdn.model_copy(update=gdn),
                "ffn_width": config.ffn_width and max(1, round(share * config.ffn_width)),
            }
        )

    def make(self, config: LayerRoutingConfig, run: Run) -> LayerRoutingLm:
        return LayerRoutingLm(config, run)

    def moments(self, config: LayerRoutingConfig) -> list[int]:
        """The first update, the last, and one between, where schedules of the same ends differ."""
        steps = config.train.steps
        constant = not config.routed or config.routing.temperature.schedule == "constant"
        return [1] if constant else sorted({1, 1 + steps // 4, steps})

    def protocol(self, config: LayerRoutingConfig) -> dict[str, Any]:
        """Micro-batches too, where routes are balanced within each."""
        keys = (_MICRO_BATCH,) if config.routed else ()
        return {**super().protocol(config), **chosen(config, keys)}

    def engineering(self) -> tuple[str, ...]:
        """`compute` changes no number, which `sparse` shows."""
        return (*(key for key in super().engineering() if key != _MICRO_BATCH), "routing.compute")


def routers(stage: Stage) -> str:
    """The text teaches the router of every routed layer both choices."""
    if not stage.config.routed:
        return _NOT_ROUTED
    made, model = parts(stage)
    model.train()
    reseed("rehearsal", "routers")
    loss = made.losses(model, made.load_batch(stage.batch), 1)["lm"].value
    weight = _decoder(stage).router.linear.weight
    (found,) = torch.autograd.grad(loss, [weight], allow_unused=True)
    taught = 0 if found is None else int(found.norm(dim=1).count_nonzero())
    if taught < len(weight):
        missing = len(weight) - taught
        raise Caught(f"the text's loss has no gradient at {missing} of {len(weight)} logits of the router")
    return f"{taught} logits are taught by the text"


def sparse(stage: Stage) -> str:
    """What is computed for the tokens that chose it alone is what both mixers for all tokens come to."""
    config = stage.config
    if not config.routed or config.routing.compute == "dense":
        return "both mixers are computed" if config.routed else _NOT_ROUTED
    dense = stage.fresh(routing=config.routing.model_copy(update={"compute": "dense"}))
    known, expected = _loss_and_gradients(stage.workload, stage), _loss_and_gradients(dense, stage)
    for name, gradient in expected.items():
        change, scale = float((known[name] - gradient).norm()), float(gradient.norm())
        if change > 10 * SAME * (scale + 1e-3):
            raise Caught(
                f"{name} is off by {change:.2g} of {scale:.2g} where only the taken mixer is computed"
            )
    return f"the loss and {len(expected) - 1} gradients are those of both mixers"


def _loss_and_gradients(made: Any, stage: Stage) -> dict[str, Tensor]:
    made.model.train()
    reseed("rehearsal", "sparse")
    terms = made.losses(made.model, made.load_batch(stage.batch), 1)
    loss = sum(term.weight * term.value for term in terms.values())
    names, weights = zip(*made.model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, weights)
    return {"the loss": loss.detach(), **dict(zip(names, found, strict=True))}


def routes(stage: Stage) -> str:
    """The balance loss is of the routes that are taken, and evaluation tells of those that it takes."""
    if not stage.config.routed:
        return _NOT_ROUTED
    made, model = parts(stage)
    blocks = made.load_batch(stage.batch).blocks
    with torch.no_grad():
        gates, extras = _taken(model.eval(), blocks)
        if not torch.equal(gates[..., SOFTMAX] > 0, torch.stack([told["softmax"] for told in extras])):
            raise Caught("evaluation tells of other routes than it takes")
        reseed("rehearsal", "routes")
        gates, extras = _taken(model.train(), blocks)
        terms = made.extra_losses(extras)
    if "balance" in terms:
        probs = torch.stack([told["mean_probs"] for told in extras])
        expected = float(balance_loss(gates.sum(dim=(1, 2)), probs).mean())
        if abs(expected - float(terms["balance"].value)) > SAME:
            raise Caught(
                f"losses.balance is {float(terms['balance'].value):.6f}; by the routes that were taken it is "
                f"{expected:.6f}"
            )
    return f"{len(gates)} layers are balanced by the routes that are taken"


def _taken(model: nn.Module, blocks: Tensor) -> tuple[Tensor, list[Any]]:
    """The gates that reach the mixers of routed layers, (L, B, T, 2), and what the model says of them."""
    gates: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
        gates.append(given[2].gates)

    mixers = [part for part in model.modules() if isinstance(part, RoutedMixer)]
    hooks = [mixer.register_forward_pre_hook(keep) for mixer in mixers]
    extras = model(blocks).extras
    for hook in hooks:
        hook.remove()
    return torch.stack(gates), extras


def temperature(stage: Stage) -> str:
    """Annealing comes to its end in the last update, and no temperature changes a choice."""
    found = [real for real in stage.real if real.routed and real.train.steps]
    if not found:
        return _NOT_ROUTED
    for real in found:
        schedule, steps = real.routing.temperature, real.train.steps
        end = schedule.start if schedule.end is None else schedule.end
        if (last := temperature_at(schedule, steps, steps)) != end:
            raise Caught(f"the last of {steps} updates has temperature {last}, not {end}")
    router, taken = _decoder(stage).router.train(), []
    for value in (0.1, 10.0):
        router.temperature.fill_(value)
        reseed("rehearsal", "temperature")
        taken.append(router(torch.randn(2, 16, router.linear.in_features)).taken)
    if not torch.equal(*taken):
        raise Caught("temperature changes choices, which are to follow the probabilities that are balanced")
    return "ends with the run, changes no choice"


def _decoder(stage: Stage) -> RoutedDecoder:
    decoder = parts(stage)[1].decoder
    assert isinstance(decoder, RoutedDecoder)
    return decoder
