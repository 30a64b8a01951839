"""The passthrough bridge: what the source itself says, unchanged; a measure of what a trained one adds."""

from __future__ import annotations

import torch
from torch import Tensor

from latentbridge.errors import ConfigError
from latentbridge.translator.bridges.base import Bridge
from latentbridge.translator.config import BridgeConfig


class PassthroughBridge(Bridge):
    """The last `soft_tokens` states of the source, at the scale of the target's embeddings.

    The last, not the first: with worked examples in the prompt the first say nothing of the question.
    """

    def __init__(self, config: BridgeConfig, source_dim: int, target_dim: int, target_rms: float) -> None:
        super().__init__(config, target_dim, target_rms)
        if source_dim != target_dim:
            raise ConfigError(
                f"model.kind is passthrough, but source states are {source_dim} wide and the target's "
                f"embeddings {target_dim}; take two models of one width, or another kind"
            )

    def flops(self, rows: int, source_tokens: int, with_flow: bool) -> int:
        return 0

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden: (B, S, D), padded on the right;  mask: (B, S) bool;  returns (B, Q, D).

        Of a text shorter than Q the first state is repeated.
        """
        last = mask.sum(dim=1, keepdim=True) - self.soft_tokens  # (B, 1)
        places = (last + torch.arange(self.soft_tokens, device=mask.device)).clamp(min=0)  # (B, Q)
        return self.matched(hidden[torch.arange(len(hidden), device=mask.device)[:, None], places])
