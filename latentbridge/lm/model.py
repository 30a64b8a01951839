"""A decoder as a language model: the one place where what is read and what is to be said are told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from latentbridge.lm.config import DecoderConfig
from latentbridge.nn.decoder import Decoder, MakeFfn, MakeMixer
from latentbridge.nn.head import Scores


class Scored(NamedTuple):
    """A batch of blocks as it was read.

    total: scalar, nats of all targets, with gradient;  nll: (B, T) nats of each, without
    right: (B, T) bool, the likeliest token is the target; in evaluation mode only
    extras: by layer, what its ffn says beside its output
    """

    total: Tensor
    nll: Tensor
    right: Tensor | None
    extras: list[Any]


class BlockModel(nn.Module):
    """Reads blocks of T + 1 tokens: the first T, of which each has to tell the next."""

    def read(self, ids: Tensor) -> tuple[Tensor, list[Any]]:
        """Last states (B, T, D), and by layer what it says besides; ids: (B, T)."""
        raise NotImplementedError

    def score(self, states: Tensor, targets: Tensor) -> Scores:
        """states: (B, T, D);  targets: (B, T)."""
        raise NotImplementedError

    def logits(self, ids: Tensor) -> Tensor:
        """All of them, for short texts: ids (B, T) to (B, T, V) float32."""
        raise NotImplementedError

    def forward(self, blocks: Tensor) -> Scored:
        """blocks: (B, T + 1) ids."""
        # the one shift of labels: every token but the first is a target, and is read only after it
        read, targets = blocks[:, :-1], blocks[:, 1:]
        states, extras = self.read(read)
        total, nll, right = self.score(states, targets)
        return Scored(total, nll, right, extras)


class LanguageModel(BlockModel):
    """A decoder of ours."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def read(self, ids: Tensor) -> tuple[Tensor, list[Any]]:
        found: tuple[Tensor, list[Any]] = self.decoder(ids)
        return found

    def score(self, states: Tensor, targets: Tensor) -> Scores:
        # called as a module, which is how ZeRO-3 knows that its matrix is wanted
        found: Scores = self.decoder.head(states, targets)
        return found

    def logits(self, ids: Tensor) -> Tensor:
        found: Tensor = self.decoder.head.logits(self.read(ids)[0])
        return found


class DenseFfn(nn.Module):
    """Two layers with an activation between them; dropout, where it is everywhere, is on the inner ones."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        inner = config.ffn_mult * config.dim
        self.up = nn.Linear(config.dim, inner, bias=config.bias)
        self.down = nn.Linear(inner, config.dim, bias=config.bias)
        self.activate = F.gelu if config.activation == "gelu" else F.silu
        self.dropout = nn.Dropout(config.dropout if config.dropout_everywhere else 0.0)
        if config.init_std is None:
            return
        for linear in (self.up, self.down):
            nn.init.normal_(linear.weight, std=config.init_std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """x: (B, T, D), returns the same shape;  ids are not looked at."""
        out: Tensor = self.down(self.dropout(self.activate(self.up(x))))
        return out


def build_model(
    config: DecoderConfig,
    vocab_size: int,
    context: int,
    make_ffn: MakeFfn | None = None,
    make_mixer: MakeMixer | None = None,
    kind: Callable[..., Decoder] = Decoder,
) -> LanguageModel:
    """Random weights from torch's current seed.

    make_ffn, make_mixer: of each layer; None: dense ones, and attention;  kind: takes what `Decoder` does
    """
    return LanguageModel(
        kind(
            vocab_size,
            context,
            config.dim,
            config.layers,
            config.heads,
            make_ffn or (lambda layer: DenseFfn(config)),
            make_mixer=make_mixer,
            positions=config.positions,
            norm=config.norm,
            tied=config.tied,
            bias=config.bias,
            scale_embeddings=config.scale_embeddings,
            dropout=config.dropout,
            dropout_everywhere=config.dropout_everywhere,
            init_std=config.init_std,
        )
    )
