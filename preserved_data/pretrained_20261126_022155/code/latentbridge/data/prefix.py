"""The beginning that many texts share, such as worked examples: a frozen model reads it once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latentbridge.data.language_model import FrozenLM, causal_mask, positions

# a beginning of fewer tokens costs more to attach than to read again
WORTH_SHARING = 64


class Prefix:
    """Keys, values and hidden states of a text (P tokens) that other texts go on from."""

    @torch.no_grad()
    def __init__(self, lm: FrozenLM, ids: Tensor) -> None:
        """ids: (P,)."""
        self._lm, self.length = lm, len(ids)
        store = _Layers()
        output = lm.model.base_model(
            input_ids=ids[None],
            attention_mask=causal_mask(torch.ones_like(ids, dtype=torch.bool)[None]),
            position_ids=torch.arange(len(ids), device=ids.device)[None],
            past_key_values=store,
            use_cache=True,
            output_hidden_states=True,
        )
        self._keys, self._values = store.keys, store.values
        # by entry of hidden_states: (P, D)
        self.states: tuple[Tensor, ...] = tuple(states[0] for states in output.hidden_states)

    def read(self, embeds: Tensor, mask: Tensor, every_layer: bool = False) -> Any:
        """What transformers gives for texts after this one: embeds (B, T, D), mask (B, T) without the prefix.

        every_layer: with hidden_states
        """
        return self._lm.model.base_model(
            inputs_embeds=embeds,
            attention_mask=causal_mask(mask, self.length),
            position_ids=self.length + positions(mask),
            past_key_values=_Layers(self._keys, self._values),
            use_cache=True,
            output_hidden_states=every_layer,
        )


class _Layers:
    """Keys and values of every layer, (1, Hkv, P, Dh); looks to transformers like one of its caches."""

    is_compileable = False

    def __init__(self, keys: list[Tensor] | None = None, values: list[Tensor] | None = None) -> None:
        self._is_known = keys is not None
        self.keys, self.values = keys or [], values or []

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self._is_known:
            self.keys.append(keys)
            self.values.append(values)
            return keys, values
        before = (self.keys[layer], self.values[layer])
        both = [
            torch.cat([known.expand(len(new), -1, -1, -1), new], dim=2)
            for known, new in zip(before, (keys, values), strict=True)
        ]
        return both[0], both[1]

    def get_seq_length(self, *_: Any) -> int:
        """Asked for where positions or masks are missing, which never is so here."""
        return 0
