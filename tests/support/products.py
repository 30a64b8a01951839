"""Counts products with matrices by torch's own formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_KINDS = (torch.ops.aten.mm, torch.ops.aten.addmm)


class Products(TorchDispatchMode):
    """FLOPs of what is multiplied while it is entered; attention's own products are of another kind (bmm)."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in _KINDS:
            self.total += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out
