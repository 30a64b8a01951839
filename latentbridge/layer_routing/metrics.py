"""Which mixer tokens take on a text, layer by layer, and whether a router has collapsed; without torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latentbridge.layer_routing.config import ROUTED, share_name
from latentbridge.metric import Metric, void

# published: within, an even split; beyond, a collapse
BALANCED = (0.4, 0.6)
COLLAPSED = 0.9


@dataclass(frozen=True)
class Split:
    """One layer on some tokens: how many took each mixer, and the sum of their entropies in nats."""

    gdn: float
    softmax: float
    entropy: float

    @property
    def tokens(self) -> float:
        """All of them."""
        return self.gdn + self.softmax

    @property
    def gdn_share(self) -> float:
        """Of tokens."""
        return self.gdn / self.tokens

    def as_record(self) -> dict[str, Any]:
        """Plain data; entropies are means over tokens, and of the split, in nats."""
        return {
            "gdn_share": self.gdn_share,
            "softmax_share": 1 - self.gdn_share,
            "route_entropy": self.entropy / self.tokens,
            "split_entropy": split_entropy(self.gdn_share),
            "status": status(self.gdn_share),
        }


def split_entropy(share: float) -> float:
    """Nats, log 2 at most: of a split in two, whoever is in which part."""
    return -sum(part * math.log(part) for part in (share, 1 - share) if part > 0)


def status(gdn_share: float) -> str:
    """balanced within 40 to 60 %, collapsed beyond 90 %, skewed between, and towards which mixer."""
    if BALANCED[0] <= gdn_share <= BALANCED[1]:
        return "balanced"
    larger = "gdn" if gdn_share > 0.5 else "softmax"
    if max(gdn_share, 1 - gdn_share) > COLLAPSED:
        return f"collapsed to {larger}"
    return f"skewed to {larger}"


def summed(batches: Sequence[Sequence[Split]]) -> list[Split]:
    """Of each layer over all batches."""
    return [
        Split(*(sum(getattr(part, name) for part in parts) for name in ("gdn", "softmax", "entropy")))
        for parts in zip(*batches, strict=True)
    ]


def split_metrics(layers: Sequence[Split], routed: Sequence[int], prefix: str) -> dict[str, Metric]:
    """By `prefix`_name; n counts tokens. They describe one model on one text, so have no interval."""
    names = (*ROUTED, *(share_name(layer) for layer in routed))
    if not layers or not all(layer.tokens for layer in layers):
        return {f"{prefix}_{name}": void("no token was routed") for name in names}
    records = [layer.as_record() for layer in layers]
    values = [statistics.fmean(record[name] for record in records) for name in ROUTED]
    values += [record["gdn_share"] for record in records]
    tokens = int(layers[0].tokens)
    return {
        f"{prefix}_{name}": Metric(value=value, n=tokens) for name, value in zip(names, values, strict=True)
    }
