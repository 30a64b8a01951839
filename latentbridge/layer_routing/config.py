"""What can vary in which layers, and which tokens, read by gated delta or softmax; nothing imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from latentbridge.config import Config
from latentbridge.lm.config import LmConfig
from latentbridge.lm.mixture_config import TemperatureConfig

Mixer = Literal["gdn", "softmax", "routed"]
# the published hybrids of twelve layers: which of them are softmax, by their share in percent
HYBRIDS: dict[str, tuple[int, ...]] = {
    "softmax_0": (),
    "softmax_8": (11,),
    # sparse
    "softmax_17": (5, 11),
    "softmax_25": (4, 8, 11),
    # late
    "softmax_33": (8, 9, 10, 11),
    "softmax_42": (2, 4, 6, 8, 11),
    # alternating
    "softmax_50": (1, 3, 5, 7, 9, 11),
    "softmax_58": (1, 3, 5, 7, 8, 9, 11),
    "softmax_67": (1, 2, 4, 5, 7, 8, 10, 11),
    "softmax_75": (1, 2, 3, 5, 6, 7, 9, 10, 11),
    "softmax_83": (1, 2, 3, 4, 5, 6, 7, 8, 10, 11),
    "softmax_92": tuple(range(1, 12)),
    "softmax_100": tuple(range(12)),
}
_HYBRID_LAYERS = 12
# of every arm, at the end: all weights, and those that a token meets, by the routes of the test text
COUNTED = ("total_parameters", "active_parameters")
# of routed models: means over routed layers of the share of tokens that gated delta reads, of the entropy of
# each token's probabilities, and of that of the split, in nats
ROUTED = ("gdn_share", "route_entropy", "split_entropy")


class GdnConfig(Config):
    """Gated delta's state: a table of key_width by value_width in each head."""

    # None: as many as softmax attention has
    heads: int | None = Field(None, ge=1)
    key_width: int = Field(64, ge=1)
    value_width: int = Field(64, ge=1)


class RoutingConfig(Config):
    """How tokens are routed in layers that are `routed`."""

    # Gumbel-softmax: it divides logits and noise, so it shapes the router's gradient and never a choice
    temperature: TemperatureConfig = TemperatureConfig(schedule="linear", start=1.0, end=0.5)
    # 2 sum(f P), a mean over routed layers: 1 balanced, 2 collapsed; f of the routes that are taken
    balance_weight: float = Field(0.01, ge=0)
    # mean square of the router's logsumexp
    z_weight: float = Field(0.0, ge=0)
    # chosen: by the output of the taken mixer, as Switch; both: straight-through, which computes both
    router_gradient: Literal["chosen", "both"] = "chosen"
    # sparse: the taken mixer's queries and outputs alone; dense: both mixers for all tokens
    compute: Literal["sparse", "dense"] = "sparse"

    @model_validator(mode="after")
    def _what_is_asked_for_is_computed(self) -> RoutingConfig:
        if self.router_gradient == "both" and self.compute == "sparse":
            raise ValueError(
                "router_gradient is both, which needs the mixer that was not taken too; "
                "write compute: dense, or router_gradient: chosen"
            )
        if self.temperature.acts_on != "weights":
            raise ValueError(
                "temperature.acts_on is choice, but choices are always drawn at 1, by the probabilities that "
                "are balanced; leave it out"
            )
        return self


class LayerRoutingConfig(LmConfig):
    """A language model of gated-delta and softmax layers, with one SwiGLU in each."""

    # by layer, or the name of a published hybrid of twelve; strict tuples refuse YAML lists
    mixers: str | Annotated[tuple[Mixer, ...], Field(strict=False)]
    gdn: GdnConfig = GdnConfig()
    # inner width of SwiGLU; None: ffn_mult * dim. So arms come to the same number of weights
    ffn_width: int | None = Field(None, ge=1)
    routing: RoutingConfig = RoutingConfig()

    @model_validator(mode="after")
    def _layers_are_known(self) -> LayerRoutingConfig:
        if isinstance(self.mixers, str) and self.mixers not in HYBRIDS:
            raise ValueError(f"mixers is {self.mixers!r}; write a list, or one of {', '.join(HYBRIDS)}")
        if len(self.pattern) != self.model.layers:
            raise ValueError(
                f"mixers is of {len(self.pattern)} layers, but model.layers is {self.model.layers}; "
                "make them equal"
            )
        if self.pattern[0] == "routed":
            raise ValueError("layer 0 is routed, but the router stands after it; write gdn or softmax")
        return self

    @model_validator(mode="after")
    def _nothing_is_set_in_vain(self) -> LayerRoutingConfig:
        model = self.model
        if model.activation != "silu":
            raise ValueError(
                f"model.activation is {model.activation}, but layers here are SwiGLU; write activation: silu"
            )
        if not self.routed and self.routing != RoutingConfig():
            raise ValueError(
                "routing is set, but none of mixers is routed; leave it out, or write routed there"
            )
        if not {"gdn", "routed"} & {*self.pattern} and self.gdn != GdnConfig():
            raise ValueError("gdn is set, but no layer is gdn or routed; leave it out")
        return self

    @model_validator(mode="after")
    def _routes_fit_the_training(self) -> LayerRoutingConfig:
        if not self.routed:
            return self
        if self.model.dropout and self.model.dropout_everywhere:
            raise ValueError(
                "model.dropout_everywhere drops attention weights, whose draws would depend on who is routed "
                "where; leave it out with routed layers"
            )
        is_cut = self.train.engine == "deepspeed" and self.train.zero_stage == 3
        if is_cut and self.routing.compute == "sparse":
            raise ValueError(
                "train.zero_stage is 3 with routing.compute sparse, which uses parts of matrices that ZeRO-3 "
                "gathers for whole layers only; write zero_stage: 2, or compute: dense"
            )
        return self

    @property
    def pattern(self) -> tuple[Mixer, ...]:
        """What reads, by layer."""
        return mixer_pattern(self.mixers)

    @property
    def routed(self) -> tuple[int, ...]:
        """Numbers of the layers whose tokens are routed."""
        return tuple(layer for layer, mixer in enumerate(self.pattern) if mixer == "routed")

    @property
    def inner(self) -> int:
        """Width of SwiGLU's inner layer."""
        return self.ffn_width or self.model.ffn_mult * self.model.dim

    def metric_names(self) -> tuple[str, ...]:
        """Those of the language model; of routed ones shares and entropies, and what the choice tells."""
        from latentbridge.lm.specialisation import SPECIALISATION

        known = (*super().metric_names(), *COUNTED)
        if not self.routed:
            return known
        names = (*ROUTED, *(share_name(layer) for layer in self.routed))
        routed = (f"{split}_{name}" for split in ("val", "test") for name in names)
        return (*known, *routed, *(f"test_{name}" for name in SPECIALISATION))


def mixer_pattern(mixers: str | Sequence[Mixer]) -> tuple[Mixer, ...]:
    """What reads, by layer, of a list or of the name of a published hybrid."""
    if not isinstance(mixers, str):
        return tuple(mixers)
    softmax = HYBRIDS[mixers]
    return tuple("softmax" if layer in softmax else "gdn" for layer in range(_HYBRID_LAYERS))


def share_name(layer: int) -> str:
    """Of the metric that tells the share of tokens which gated delta reads in a layer."""
    return f"layer_{layer}_gdn_share"
