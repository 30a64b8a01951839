"""A list of layers that a compiler may be given one by one."""

from __future__ import annotations

from torch import nn


class Layers(nn.ModuleList):
    """Layers that are called one after the other, as modules, and by nobody else: see train/recorded.py."""
