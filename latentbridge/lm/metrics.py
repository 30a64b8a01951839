"""How well a language model knows a text: of windows, each with what it scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latentbridge.metric import Metric, ratio, void

# above e^20 a perplexity says only that the model is worse than useless; the nats still say how much
_LARGEST_NLL = 20.0


@dataclass(frozen=True)
class Window:
    """Sums over the tokens that a window scores; nats: of them all."""

    nats: float
    right: int
    tokens: int
    num_bytes: int


def metrics_of(windows: Sequence[Window], prefix: str) -> dict[str, Metric]:
    """nll (nats per token), bits_per_byte, perplexity and accuracy; intervals are over windows."""
    nats, tokens = [w.nats for w in windows], [float(w.tokens) for w in windows]
    nll = ratio(nats, tokens)
    bits = [total / math.log(2) for total in nats]
    found = {
        "nll": nll,
        "bits_per_byte": ratio(bits, [float(w.num_bytes) for w in windows]),
        "perplexity": perplexity(nll),
        "accuracy": ratio([float(w.right) for w in windows], tokens),
    }
    return {f"{prefix}_{name}": metric for name, metric in found.items()}


def perplexity(nll: Metric) -> Metric:
    """exp of nats per token, never capped: void where it has no meaning left."""
    if nll.value is None:
        return nll
    if nll.value > _LARGEST_NLL:
        return void(
            f"{nll.value:.2f} nats per token: exp of more than {_LARGEST_NLL:.0f} means nothing", nll.n
        )
    bounds = [None if bound is None else math.exp(bound) for bound in (nll.low, nll.high)]
    return Metric(value=math.exp(nll.value), n=nll.n, low=bounds[0], high=bounds[1])
