"""What soft tokens can be told to resemble: the target's own vectors of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latentbridge.data.language_model import FrozenLM, hidden_states
from latentbridge.nn.norm import match_rms
from latentbridge.translator.config import TeacherConfig
from latentbridge.translator.prompts import Prompts


class Lesson(NamedTuple):
    """Vectors (B, Q, Dt) of root mean square 1, and which of them a row's text is long enough for (B, Q)."""

    vectors: Tensor
    given: Tensor


class Teacher:
    """The target reads a text; its first `soft_tokens` vectors are the lesson, of a prompt its last.

    A prompt's first tokens are worked examples where there are any, the same for every problem.
    """

    def __init__(
        self, config: TeacherConfig, soft_tokens: int, target: FrozenLM, prompts: Prompts, opening: list[int]
    ) -> None:
        self._config, self._soft_tokens = config, soft_tokens
        self._target, self._prompts, self._opening = target, prompts, opening

    @torch.no_grad()
    def __call__(self, indices: Sequence[int]) -> Lesson:
        table = getattr(self._prompts, self._config.text)
        ids, mask = table.take(indices, "right")
        vectors = self._read(ids, mask)
        start = torch.zeros(len(ids), 1, dtype=torch.int64, device=ids.device)
        if self._config.text == "prompt":
            start = (mask.sum(dim=1, keepdim=True) - self._soft_tokens).clamp(min=0)
        places = start + torch.arange(self._soft_tokens, device=ids.device)  # (B, Q)
        given = places < mask.sum(dim=1, keepdim=True)
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        found = vectors[rows, places.clamp(max=vectors.shape[1] - 1)]
        return Lesson(match_rms(found, 1.0) * given[..., None], given)

    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors (B, T, Dt) of a text, which the target reads after its opening."""
        if self._config.layer == 0:
            return self._target.embed(ids)
        opening = torch.tensor(self._opening, dtype=ids.dtype, device=ids.device).expand(len(ids), -1)
        ids = torch.cat([opening, ids], dim=1)
        mask = torch.cat([mask.new_ones(opening.shape), mask], dim=1)
        return hidden_states(self._target, ids, mask, self._config.layer)[:, opening.shape[1] :]
