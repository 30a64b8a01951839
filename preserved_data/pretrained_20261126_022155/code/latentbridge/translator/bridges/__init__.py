"""Bridges: from a source's hidden states to soft tokens, embeddings that the target can read."""

from __future__ import annotations

from latentbridge.translator.bridges.base import Bridge, embedding_rms
from latentbridge.translator.bridges.dit import DiTBridge
from latentbridge.translator.bridges.gated import GatedBridge
from latentbridge.translator.bridges.passthrough import PassthroughBridge
from latentbridge.translator.config import BridgeConfig

__all__ = ["Bridge", "build_bridge", "embedding_rms"]


def build_bridge(config: BridgeConfig, source_dim: int, target_dim: int, target_rms: float) -> Bridge:
    """The bridge that a config asks for, with weights from torch's current seed.

    source_dim: Ds, width of the source states;  target_dim, target_rms: of the target's embeddings
    """
    kinds = {"gated": GatedBridge, "dit": DiTBridge, "passthrough": PassthroughBridge}
    bridge: Bridge = kinds[config.kind](config, source_dim, target_dim, target_rms)
    return bridge
