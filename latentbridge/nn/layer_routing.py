"""Each token chooses by which of two mixers a layer reads what came before it; only the chosen is computed.

A router after block 0 decides for all routed layers at once. Training draws (Gumbel, arXiv 1611.01144), and
evaluation takes the likelier. Softmax attention then computes keys and values of all tokens, queries and
output of its own; gated delta's state sees every token, and is read out for its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from latentbridge.nn.balance import z_loss
from latentbridge.nn.decoder import Decoder, Rotations
from latentbridge.nn.takers import Takers, find_takers

# both: the straight-through estimator, <dL/dh, each branch> to each probability, so that both are computed
# chosen: the taken branch's alone, as Switch does (arXiv 2101.03961). The other's then counts as 0, a layer
# that does nothing: the router learns whether its choice was better than none, and balance has to do the rest
RouterGradient = Literal["both", "chosen"]
CHOICES = ("gdn", "softmax")
GDN, SOFTMAX = range(len(CHOICES))


class Route(NamedTuple):
    """One layer's choices.

    gates: (B, T, 2), 1 for the chosen mixer and 0 for the other, with the router's gradient in training
    takers: of each choice; None: both mixers are computed for all tokens
    """

    gates: Tensor
    takers: Sequence[Takers] | None


class Routes(NamedTuple):
    """What a router said of each routed layer, L in all.

    logits: (B, T, L, 2) float32, without noise;  taken: (B, T, L, 2), 1 for the mixer that is chosen
    relaxed: (B, T, L, 2), softmax of noisy logits over the temperature; None in evaluation
    """

    logits: Tensor
    taken: Tensor
    relaxed: Tensor | None

    def told(self) -> list[dict[str, Tensor]]:
        """By layer: counts (2,) of tokens by choice, of the very routes that were taken.

        In training mean_probs (2,) and z, with gradient; in evaluation entropy, a sum over tokens in nats,
        and softmax (B, T) bool, who took softmax
        """
        return [self._of(layer) for layer in range(self.taken.shape[2])]

    def _of(self, layer: int) -> dict[str, Tensor]:
        logits, taken = self.logits[:, :, layer].flatten(0, 1), self.taken[:, :, layer]
        found = {"counts": taken.detach().flatten(0, 1).sum(dim=0)}
        if self.relaxed is not None:
            # Gumbel draws follow the softmax of plain logits, whatever the temperature
            return {**found, "mean_probs": logits.softmax(dim=-1).mean(dim=0), "z": z_loss(logits)}
        log_probs = logits.log_softmax(dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum()
        return {**found, "entropy": entropy, "softmax": taken[..., SOFTMAX] > 0}


class LayerRouter(nn.Module):
    """Decides for several layers at once; temperature: of the relaxation, never of the choice."""

    temperature: Tensor

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.linear = nn.Linear(dim, len(CHOICES) * layers)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("temperature", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Routes:
        """x: (B, T, D)."""
        logits = self.linear(x).float().unflatten(-1, (self.layers, len(CHOICES)))  # (B, T, L, 2)
        if not self.training:
            return Routes(logits, one_hot(logits), None)
        # -log of an exponential draw is a Gumbel one
        noisy = logits - torch.empty_like(logits).exponential_().log()
        return Routes(logits, one_hot(noisy), (noisy / self.temperature).softmax(dim=-1))


def one_hot(logits: Tensor) -> Tensor:
    """1 for the larger, gated delta where both are the same; (..., 2) to (..., 2) float32, no gradient."""
    takes_softmax = logits[..., SOFTMAX] > logits[..., GDN]
    return torch.stack([~takes_softmax, takes_softmax], dim=-1).float()


def gates(taken: Tensor, relaxed: Tensor | None, gradient: RouterGradient) -> Tensor:
    """Forward `taken`, backward `relaxed`: of both choices, or of the taken one; (..., 2) each."""
    if relaxed is None:
        return taken
    # in this order it is `taken` to the bit
    straight = taken + (relaxed - relaxed.detach())
    return straight if gradient == "both" else taken * straight


class RoutedMixer(nn.Module):
    """Gated delta or softmax attention, token by token; both read all tokens.

    Either is called as mixer(x, turns), and as mixer.at(x, turns, takers) where some outputs are enough: the
    others are finite, and their gates 0.
    """

    def __init__(self, gdn: nn.Module, softmax: nn.Module) -> None:
        super().__init__()
        self.gdn, self.softmax = gdn, softmax

    def forward(self, x: Tensor, turns: Rotations | None, route: Route) -> Tensor:
        """x: (B, T, D), returns the same shape."""
        mixers = self.gdn, self.softmax
        if route.takers is None:
            reads = [mixer(x, turns) for mixer in mixers]
        else:
            reads = [
                mixer.at(x, turns, takers)  # type: ignore[operator]
                for mixer, takers in zip(mixers, route.takers, strict=True)
            ]
        return _gated(reads, route.gates)

    def go_on(self, x: Tensor, turns: Rotations | None, state: Any, gates: Tensor) -> tuple[Tensor, Any]:
        """Both mixers' states see every token, and both are computed; gates: (B, T, 2)."""
        known = (None, None) if state is None else state
        (by_gdn, gdn), (by_softmax, softmax) = (
            mixer.go_on(x, turns, own)  # type: ignore[operator]
            for mixer, own in zip((self.gdn, self.softmax), known, strict=True)
        )
        return _gated([by_gdn, by_softmax], gates), (gdn, softmax)


def _gated(reads: Sequence[Tensor], gates: Tensor) -> Tensor:
    """Their sum, each by its gate; reads: (B, T, D) each, gates: (B, T, 2)."""
    by_gdn, by_softmax = (
        read * gate[..., None].to(read.dtype) for read, gate in zip(reads, gates.unbind(dim=-1), strict=True)
    )
    return by_gdn + by_softmax


class RoutedDecoder(Decoder):
    """A decoder of which some layers are `RoutedMixer`; what it says besides is `Routes.told`.

    routed: their numbers, of which 0 is none: the router reads what block 0 left
    sparse: only the chosen mixer is computed, so the router's gradient is of the chosen one
    """

    def __init__(
        self, routed: Sequence[int], gradient: RouterGradient, sparse: bool, *args: Any, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        if sparse and gradient == "both":
            raise ValueError(
                "the gradient of both branches needs both; only that of the chosen can be sparse"
            )
        if not routed or 0 in routed:
            raise ValueError(f"routed layers are {list(routed)}; the router stands after layer 0")
        self.routed, self.gradient, self.sparse = tuple(routed), gradient, sparse
        self.router = LayerRouter(self.embedding.embedding_dim, len(routed))

    def run_blocks(self, x: Tensor, ids: Tensor, turns: Rotations | None) -> tuple[Tensor, list[Any]]:
        x, _ = self.blocks[0](x, ids, turns)
        routes = self.router(x)
        # (L, 2) of them
        takers = find_takers(routes.taken) if self.sparse else [None] * len(self.routed)
        every = gates(routes.taken, routes.relaxed, self.gradient)
        given = {layer: Route(every[:, :, n], takers[n]) for n, layer in enumerate(self.routed)}
        for layer, block in enumerate(self.blocks):
            if layer:
                x, _ = block(x, ids, turns, *([given[layer]] if layer in given else []))
        return x, routes.told()

    def continue_blocks(
        self, x: Tensor, ids: Tensor, turns: Rotations | None, states: list[Any]
    ) -> tuple[Tensor, list[Any]]:
        first: Any = self.blocks[0]
        x, found = first.go_on(x, ids, turns, states[0])
        after, taken = [found], self.router(x).taken
        given = {layer: taken[:, :, n] for n, layer in enumerate(self.routed)}
        for layer in range(1, len(self.blocks)):
            block: Any = self.blocks[layer]
            more = [given[layer]] if layer in given else []
            x, found = block.go_on(x, ids, turns, states[layer], *more)
            after.append(found)
        return x, after
