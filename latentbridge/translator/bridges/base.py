"""What all bridges share: how they are called, and the scale of what they give."""

from __future__ import annotations

from torch import Tensor, nn

from latentbridge.nn.attention import MultiHeadAttention
from latentbridge.nn.norm import match_rms
from latentbridge.translator.config import BridgeConfig


class Bridge(nn.Module):
    """From a source sequence of any length to `soft_tokens` embeddings of the target.

    Subclasses define `forward(hidden, mask)`, or where `draws_noise` is True `forward(hidden, mask, noise)`:
    hidden: (B, S, Ds) source states;  mask: (B, S) bool, True = real token;  returns (B, Q, Dt)
    """

    draws_noise = False

    def __init__(self, config: BridgeConfig, target_dim: int, target_rms: float) -> None:
        """target_dim: Dt, width of the target's embeddings;  target_rms: the scale of one of them."""
        super().__init__()
        self.soft_tokens, self.target_dim, self.target_rms = config.soft_tokens, target_dim, target_rms
        self.rms_match = config.rms_match

    @property
    def soft_shape(self) -> tuple[int, int]:
        """(Q, Dt)."""
        return self.soft_tokens, self.target_dim

    def flops(self, rows: int, source_tokens: int, with_flow: bool) -> int:
        """Model FLOPs of a forward and backward in training, see train/flops.py.

        source_tokens: of all rows together;  with_flow: whether the flow's error is asked for
        """
        raise NotImplementedError

    def matched(self, soft: Tensor) -> Tensor:
        """Soft tokens at the target's scale, where that is asked for; (B, Q, Dt) both."""
        return match_rms(soft, self.target_rms) if self.rms_match else soft


def freeze_idle_query(attention: MultiHeadAttention, soft_tokens: int) -> None:
    """Of a single soft token that reads itself, leave out of training what would say where to look."""
    attention.query.requires_grad_(soft_tokens > 1)


def embedding_rms(embeddings: Tensor) -> float:
    """Median over the vocabulary of a row's root mean square; embeddings: (V, Dt)."""
    return float(embeddings.detach().float().square().mean(dim=-1).sqrt().median())
