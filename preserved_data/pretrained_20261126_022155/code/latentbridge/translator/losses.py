"""Loss functions of the bridge: one value a row, in float32; the caller averages over ranks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def kl_per_token(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of every token, in nats; both (N, V) logits of the same tokens; returns (N,)."""
    student, teacher = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over a row's real positions; x: (B, T, D), mask: (B, T) bool with a True a row; returns (B, D)."""
    weights = mask.unsqueeze(-1).float()
    return (x.float() * weights).sum(dim=1) / weights.sum(dim=1)


def info_nce_per_row(
    soft: Tensor, targets: Tensor, own: Tensor, temperature: float, ignore: Tensor | None = None
) -> Tensor:
    """Cross-entropy of picking each row's own target among all of them, in nats (van den Oord 2018).

    soft: (B, D);  targets: (N, D) of every rank;  own: (B,) which target belongs to the row
    ignore: (B, N) bool, targets that are no negatives of a row;  returns (B,)
    """
    # float32: at temperature 0.07 logits reach 14, where bf16 can only step by 1/16
    soft, targets = F.normalize(soft.float(), dim=-1), F.normalize(targets.float(), dim=-1)
    logits = soft @ targets.T / temperature
    if ignore is not None:
        logits = logits.masked_fill(ignore, float("-inf"))
    return F.cross_entropy(logits, own, reduction="none")


def squared_error_per_row(soft: Tensor, vectors: Tensor, given: Tensor) -> Tensor:
    """Mean squared difference over the places that are given.

    soft, vectors: (B, Q, D);  given: (B, Q) bool;  returns (B,)
    """
    error = (soft.float() - vectors.float()).square().mean(dim=-1)  # (B, Q)
    return (error * given).sum(dim=-1) / given.sum(dim=-1).clamp(min=1)
