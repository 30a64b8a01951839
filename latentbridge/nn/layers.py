"""A list of layers that a compiler may be given one by one."""

from __future__ import annotations

from torch import nn


class Layers(nn.ModuleList):
    """Layers that an update only calls, one after the other and as modules: see train/recorded.py."""
