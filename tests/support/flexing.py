"""What a GPU is given, on a CPU: fixed shapes, and FlexAttention, of which torch computes all scores here."""

from __future__ import annotations

import pytest
from torch.nn.attention import flex_attention

from latentbridge.nn import sorted_attention, takers


def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plainly where nothing is compiled, and with gradients, which torch refuses here."""
    monkeypatch.setattr(takers, "shapes_are_fixed", lambda device: True)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *given: None)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(sorted_attention, "_compiled", lambda: sorted_attention.flexed)
