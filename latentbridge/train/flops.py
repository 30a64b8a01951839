"""How much of a card's peak training uses: model FLOP/s over the dense bf16 FLOP/s on its data sheet (mfu).

Model FLOPs are those that a batch needs: 2 for each weight of a matrix and each token that it multiplies in a
forward, as many again for the gradient to its input, and as many for its own where it is trained. Products of
attention scores are left out, and so is padding, so that mfu is a little too low and never too high.
"""

from __future__ import annotations

import re
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from latentbridge.train import distributed

# a weight and a token: of a frozen matrix in a forward, and with the gradient to its input; of a trained one,
# and of a trained one whose input has no gradient
FORWARD, THROUGH, TRAINED, TRAINED_FIRST = 2, 4, 6, 4
# dense, by the data sheets; a slice of a card, or a card of less power, has another name
_PEAKS = {
    r"NVIDIA H100 \d+GB HBM3": 989.4e12,
    r"NVIDIA H200": 989.4e12,
    r"NVIDIA A100-(SXM4|PCIE|PCI)-\d+GB": 312e12,
    r"NVIDIA A100 80GB PCIe": 312e12,
}


@runtime_checkable
class Counted(Protocol):
    """What a workload needs so that its use of the card is known."""

    def flops(self, batch: Any, step: int) -> int:
        """Model FLOPs of forward and backward of one micro-batch in update `step`."""


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a card by the name that torch gives it; None for one that is not known here."""
    return next((peak for name, peak in _PEAKS.items() if re.fullmatch(name, device_name)), None)


def utilisation(flops: int, seconds: float, precision: str) -> float | None:
    """Share of all ranks' peak that so many FLOPs in so much time are; None where the peak is not known.

    A peak in bf16 says nothing of a run in another precision.
    """
    if not flops or precision != "bf16" or not torch.cuda.is_available():
        return None
    peak = peak_flops(torch.cuda.get_device_name())
    return None if peak is None else flops / (seconds * distributed.world_size() * peak)


def matrix_size(module: nn.Module, ending: str = "") -> int:
    """Weights of all matrices that tokens are multiplied with; tables that are looked up in are none.

    ending: only of parts whose dotted name ends so
    """
    sizes = [
        int(parameter.numel())
        for name, part in module.named_modules()
        if name.endswith(ending) and not isinstance(part, nn.Embedding)
        for own, parameter in part.named_parameters(recurse=False)
        # of stacked experts a bias has two axes
        if parameter.ndim == 2 and "bias" not in own
    ]
    return sum(sizes)
