"""The three training signals of the bridge, one value a row or token; the caller averages over ranks.

lm        the answer, given soft tokens
kl        what the target would have said with the question as text
info_nce  soft tokens lie nearer to their own question than to the other questions of the batch
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def token_nll(logits: Tensor, ids: Tensor) -> Tensor:
    """Negative log likelihood of every token, in nats.

    logits: (B, T, V), position t predicts token t;  ids: (B, T);  returns (B, T) float32
    """
    return F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)


def kl_per_row(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher || student) summed over a row's real positions, in nats.

    student, teacher: (B, T, V) logits of the same tokens;  mask: (B, T) bool;  returns (B,) float32
    """
    student, teacher = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)  # (B, T)
    return (divergence * mask).sum(-1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over a row's real positions; x: (B, T, D), mask: (B, T) bool with a True a row; returns (B, D)."""
    weights = mask.unsqueeze(-1).float()
    return (x.float() * weights).sum(dim=1) / weights.sum(dim=1)


def info_nce_per_row(soft: Tensor, targets: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of picking each row's own target among all of them, in nats (van den Oord 2018).

    soft: (B, D);  targets: (N, D) of every rank;  own: (B,) which target belongs to the row;  returns (B,)
    """
    # float32: at temperature 0.07 logits reach 14, where bf16 can only step by 1/16
    soft, targets = F.normalize(soft.float(), dim=-1), F.normalize(targets.float(), dim=-1)
    return F.cross_entropy(soft @ targets.T / temperature, own, reduction="none")
