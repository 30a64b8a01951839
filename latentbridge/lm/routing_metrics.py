"""What routers do to a text: how evenly they load experts, how sure they are, layer by layer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from latentbridge.metric import Metric, void

# means over layers, but for max_vio, the worst layer's, and dead_experts, the sum
ROUTING = ("demand_cv", "max_vio", "dead_experts", "gini", "experts_per_token", "confidence", "entropy")
# that mean nothing of a layer without load
_OF_LOAD = ("demand_cv", "max_vio", "gini")
# of strategies whose router learns nothing
UNTAUGHT = ("entropy",)


@dataclass(frozen=True)
class Observed:
    """One layer's routing of one batch: counts by expert before any are dropped, and sums over tokens.

    entropy: of the softmax over all experts, nats; None where there is none
    """

    counts: list[float]
    tokens: int
    confidence: float
    entropy: float | None


def load_by_layer(batches: Sequence[Sequence[Observed]]) -> list[list[float]]:
    """Counts of each expert in each layer; batches: of each, one Observed a layer."""
    return [
        [sum(column) for column in zip(*(o.counts for o in layer), strict=True)]
        for layer in _by_layer(batches)
    ]


def routing_metrics(batches: Sequence[Sequence[Observed]], prefix: str) -> dict[str, Metric]:
    """Metrics by `prefix`_name; n counts tokens. They describe one model on one text, so have no interval."""
    layers = _by_layer(batches)
    tokens = sum(observed.tokens for observed in layers[0]) if layers else 0
    if not tokens:
        return {f"{prefix}_{name}": void("no token was routed") for name in ROUTING}
    loads = load_by_layer(batches)
    found = {
        "dead_experts": float(sum(count == 0 for load in loads for count in load)),
        "experts_per_token": statistics.fmean(sum(load) / tokens for load in loads),
        "confidence": statistics.fmean(sum(o.confidence for o in layer) / tokens for layer in layers),
    }
    entropies = [[o.entropy for o in layer if o.entropy is not None] for layer in layers]
    if all(entropies):
        found["entropy"] = statistics.fmean(sum(layer) / tokens for layer in entropies)
    metrics = _evenness(loads, tokens)
    metrics |= {name: Metric(value=value, n=tokens) for name, value in found.items()}
    return {f"{prefix}_{name}": metric for name, metric in metrics.items()}


def _evenness(loads: Sequence[Sequence[float]], tokens: int) -> dict[str, Metric]:
    """Void where a layer has no load: it would count as perfectly even."""
    for layer, load in enumerate(loads):
        if not any(load):
            return dict.fromkeys(_OF_LOAD, void(f"layer {layer} sent no token to any expert", tokens))
    means = [statistics.fmean(load) for load in loads]
    pairs = list(zip(loads, means, strict=True))
    values = (
        statistics.fmean(statistics.pstdev(load) / mean for load, mean in pairs),
        max(max(load) / mean - 1 for load, mean in pairs),
        statistics.fmean(gini(load) for load in loads),
    )
    return {name: Metric(value=value, n=tokens) for name, value in zip(_OF_LOAD, values, strict=True)}


def gini(load: Sequence[float]) -> float:
    """0 when even, (E - 1) / E when one expert has it all; of a load that is not all 0."""
    total, count = sum(load), len(load)
    weighted = sum(place * value for place, value in enumerate(sorted(load), start=1))
    return 2 * weighted / (count * total) - (count + 1) / count


def _by_layer(batches: Sequence[Sequence[Observed]]) -> list[list[Observed]]:
    return [list(layer) for layer in zip(*batches, strict=True)]
