"""Muon for matrices, AdamW for the rest.

Muon makes the momentum of each matrix nearly orthogonal before it applies it: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# a gradient of zeros stays one
_SMALLEST = 1e-7


class MuonAdamW(torch.optim.AdamW):
    """AdamW, but that groups with a `momentum` take Muon's step.

    Their matrices are (outputs, inputs), as of nn.Linear, or stacks (experts, inputs, outputs), of which each
    is turned by itself.
    """

    # torch's own typing of `step` has two overloads for a closure that nobody here passes
    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every group."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if "momentum" not in group]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if "momentum" in group:
                self._turn(group)

    def _turn(self, group: dict[str, Any]) -> None:
        lr, decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
        for matrix in group["params"]:
            if matrix.grad is None:
                continue
            state = self.state[matrix]
            if not state:
                # a step, because AdamW looks for one in every state that it reads back
                state.update(step=torch.zeros(()), momentum=torch.zeros_like(matrix))
            state["step"] += 1
            matrix.copy_(turned(matrix, matrix.grad, state["momentum"], lr, decay, momentum))


def turned(
    weight: Tensor, gradient: Tensor, average: Tensor, lr: Tensor | float, decay: float, momentum: float
) -> Tensor:
    """One matrix, or stack, after Muon's step; average: its momentum, updated in place. All float32."""
    average.lerp_(gradient, 1 - momentum)
    # Nesterov's
    direction = orthogonalised(gradient.lerp(average, momentum))
    return weight * (1 - lr * decay) - direction * (lr * _scale(weight))


def orthogonalised(matrices: Tensor) -> Tensor:
    """U V' of each matrix's U S V', about: five steps leave singular values between 0.7 and 1.2.

    matrices: (rows, columns), or a stack of such;  returns the same shape, bf16 on CUDA, else float32
    """
    # half precision on a CPU takes 13 times as long
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    x = x.reshape(-1, *matrices.shape[-2:])
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_SMALLEST)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).reshape(matrices.shape)


def _scale(matrix: Tensor) -> float:
    """sqrt(outputs / inputs), at least 1: how much more an output moves the fewer inputs it has."""
    outputs, inputs = matrix.shape if matrix.ndim == 2 else reversed(matrix.shape[1:])
    return math.sqrt(max(1.0, outputs / inputs))
