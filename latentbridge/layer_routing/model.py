"""A decoder whose layers read by gated delta, by softmax attention, or by whichever a token is routed to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from latentbridge.layer_routing.config import LayerRoutingConfig
from latentbridge.lm import model as lm_model
from latentbridge.lm.config import DecoderConfig
from latentbridge.lm.model import LanguageModel
from latentbridge.nn.decoder import CausalAttention, Decoder
from latentbridge.nn.ffn import SwiGLU
from latentbridge.nn.gated_delta import gated_delta_rule
from latentbridge.nn.gated_deltanet import GatedDeltaNet, Rule
from latentbridge.nn.layer_routing import RoutedDecoder, RoutedMixer
from latentbridge.nn.short_convolution import Convolve, convolve
from latentbridge.nn.sorted_attention import Reader, plain


class Kernels(NamedTuple):
    """What computes the gated delta rule, its short convolutions, and what routed tokens read by softmax."""

    rule: Rule = gated_delta_rule
    convolve: Convolve = convolve
    reader: Reader = plain


TORCH = Kernels()


class Ffn(nn.Module):
    """One SwiGLU, which a token meets whatever mixer it was routed to: only what reads is chosen."""

    def __init__(self, config: LayerRoutingConfig) -> None:
        super().__init__()
        self.layer = SwiGLU(config.model.dim, config.inner, config.model.bias)
        for linear in (self.layer.gate_value, self.layer.down):
            if config.model.init_std is not None:
                nn.init.normal_(linear.weight, std=config.model.init_std)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """x: (B, T, D), returns the same shape;  ids are not looked at."""
        out: Tensor = self.layer(x)
        return out


def build_model(config: LayerRoutingConfig, vocab_size: int, kernels: Kernels = TORCH) -> LanguageModel:
    """Random weights from torch's current seed."""
    kind: Callable[..., Decoder] = Decoder
    if config.routed:
        is_sparse = config.routing.compute == "sparse"
        kind = partial(RoutedDecoder, config.routed, config.routing.router_gradient, is_sparse)
    return lm_model.build_model(
        config.model,
        vocab_size,
        config.text.context,
        lambda layer: Ffn(config),
        lambda layer: make_mixer(config, layer, kernels),
        kind,
    )


def make_mixer(config: LayerRoutingConfig, layer: int, kernels: Kernels) -> nn.Module:
    """What reads in a layer."""
    kind = config.pattern[layer]
    if kind == "routed":
        return RoutedMixer(gated_delta(config, kernels), attention(config.model, kernels.reader))
    return gated_delta(config, kernels) if kind == "gdn" else attention(config.model)


def gated_delta(config: LayerRoutingConfig, kernels: Kernels) -> GatedDeltaNet:
    """A gated-delta mixer of the settings' widths."""
    model, gdn = config.model, config.gdn
    heads = gdn.heads or model.heads
    return GatedDeltaNet(
        model.dim,
        heads,
        gdn.key_width,
        gdn.value_width,
        rule=kernels.rule,
        convolve=kernels.convolve,
        init_std=model.init_std,
    )


def attention(config: DecoderConfig, reader: Reader = plain) -> CausalAttention:
    """A softmax mixer."""
    dropout = config.dropout if config.dropout_everywhere else 0.0
    made = CausalAttention(config.dim, config.heads, config.bias, dropout, reader)
    made.start(config.init_std)
    return made


def unmet(model: nn.Module) -> list[tuple[int, int]]:
    """By routed layer: weights that those tokens do not meet which gated delta, or which softmax, reads.

    All tokens go through keys and values; what asks, and what brings out what is read, is of those that read.
    """
    mixers = [part for part in model.modules() if isinstance(part, RoutedMixer)]
    return [(sum(map(_size, _of_softmax(mixer))), sum(map(_size, _of_gdn(mixer)))) for mixer in mixers]


def _of_softmax(mixer: RoutedMixer) -> list[Tensor]:
    softmax = mixer.softmax
    assert isinstance(softmax, CausalAttention)
    own = [parameter[: len(parameter) // 3] for parameter in softmax.query_key_value.parameters()]
    return [*own, *softmax.out.parameters()]


def _of_gdn(mixer: RoutedMixer) -> list[Tensor]:
    gdn = mixer.gdn
    assert isinstance(gdn, GatedDeltaNet)
    return [parameter for part in (gdn.gate, gdn.norm, gdn.out) for parameter in part.parameters()]


def _size(parameter: Tensor) -> int:
    return parameter.numel()
