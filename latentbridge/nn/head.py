"""The output layer of a language model, scored in chunks: no tensor of all tokens by all of the vocabulary.

The logits of a whole batch would take 4 V bytes a token (0.2 MB where V = 50,257), and their gradient as
much again; here they live for one chunk at a time, and their gradient is taken at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# logits that exist at the same time: 0.25 GB in float32
_LOGITS = 2**26


class Scores(NamedTuple):
    """Of targets, in nats.

    total: scalar, their sum, with gradient;  nll: each one's, without;  right: whether it had the largest
    logit, in evaluation mode only
    """

    total: Tensor
    nll: Tensor
    right: Tensor | None


class Head(nn.Module):
    """A matrix (V, D) without bias, its own or shared with an embedding."""

    def __init__(self, dim: int, vocab_size: int, shared: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim)) if shared is None else shared
        if shared is None:
            nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as torch does in nn.Linear

    def forward(self, states: Tensor, targets: Tensor) -> Scores:
        """Score each state's target; states: (..., D), targets: (...) ids;  nll and right: (...)."""
        flat, ids = states.flatten(0, -2), targets.flatten()
        wants_right = not self.training
        total, nll, right = _Score.apply(flat, self.weight, ids, wants_right)  # type: ignore[no-untyped-call]
        return Scores(total, nll.view_as(targets), right.view_as(targets) if wants_right else None)

    def logits(self, states: Tensor) -> Tensor:
        """All logits, float32; states: (..., D), returns (..., V)."""
        return nn.functional.linear(states, self.weight).float()


def nll_in_place(logits: Tensor, ids: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Cross-entropy (N,), and its gradient (N, V) to the logits, in their memory.

    logits: (N, V) float32, spoilt where the gradient is wanted;  ids: (N,)
    """
    total = logits.logsumexp(dim=-1, keepdim=True)
    own = ids[:, None]
    nll = (total - logits.gather(1, own))[:, 0]
    if not wants_gradient:
        return nll, None
    share = logits.sub_(total).exp_()  # softmax
    if torch.compiler.is_compiling():
        # a compiler puts a comparison into the kernel of the softmax; a scatter would be one of atomic adds
        return nll, share.sub_((own == torch.arange(logits.shape[1], device=own.device)).float())
    return nll, share.scatter_add_(1, own, share.new_full(own.shape, -1.0))


@dataclass
class _Gradients:
    """Of the total to states and weight, gathered chunk by chunk; None where nobody wants it."""

    states: Tensor | None
    weight: Tensor | None

    def add(self, part: slice, share: Tensor, states: Tensor, weight: Tensor) -> None:
        share = share.to(states.dtype)
        if self.states is not None:
            self.states[part] = share @ weight
        if self.weight is not None:
            # float32: a sum of many small parts
            self.weight += share.T @ states[part]


class _Score(torch.autograd.Function):
    """Keeps gradients instead of logits; they are right because every target weighs the same in the total."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, ids: Tensor, wants_right: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll = torch.empty(len(ids), dtype=torch.float32, device=states.device)
        right = torch.empty(len(ids) if wants_right else 0, dtype=torch.bool, device=states.device)
        needs = ctx.needs_input_grad
        found = _Gradients(
            torch.empty_like(states) if needs[0] else None,
            torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None,
        )
        rows = max(1, _LOGITS // len(weight))
        for start in range(0, len(ids), rows):
            part = slice(start, start + rows)
            logits = (states[part] @ weight.T).float()
            if wants_right:
                right[part] = logits.argmax(dim=-1) == ids[part]
            nll[part], share = nll_in_place(logits, ids[part], needs[0] or needs[1])
            if share is not None:
                found.add(part, share, states, weight)
        ctx.save_for_backward(found.states, found.weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(nll, right)
        return nll.sum(), nll, right

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        states, weight = ctx.saved_tensors
        # in float32: one rounded factor would scale every gradient wrongly
        scale = above[0].float()
        return (
            None if states is None else (states.float() * scale).to(states.dtype),
            None if weight is None else (weight * scale).to(ctx.weight_dtype),
            None,
            None,
        )
