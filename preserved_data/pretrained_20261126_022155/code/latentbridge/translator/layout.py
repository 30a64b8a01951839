"""What the target reads before it answers: its own opening, soft tokens, and text.

prepend   [opening][soft tokens][text]
adapter   [opening][text], with the soft tokens added to the text's first embeddings
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentbridge.data.language_model import FrozenLM, positions
from latentbridge.errors import ConfigError
from latentbridge.translator.config import TranslatorConfig
from latentbridge.translator.prompts import Padded


class TargetInput:
    """Puts the target's input together as the run's config says."""

    def __init__(self, config: TranslatorConfig, target: FrozenLM, opening: list[int]) -> None:
        """opening: token ids before everything else; it may be empty."""
        self.target = target
        self._is_adapter, self._adapter_scale = config.injection == "adapter", config.adapter_scale
        self._opening = torch.tensor(opening, dtype=torch.int64, device=target.device)

    def length_before_text(self, soft: Tensor) -> int:
        """Places that stand before the text of every row."""
        return len(self._opening) + (0 if self._is_adapter else soft.shape[1])

    def __call__(self, soft: Tensor | None, text: Padded) -> Padded:
        """Vectors (B, .., D) to read before an answer, and their mask, whose last column is all True.

        soft: (B, Q, D) or None;  text: ids (B, T), padded on the left
        """
        vectors = self.target.embed(text.values)  # (B, T, D)
        parts, masks = [self.target.embed(self._opening).expand(len(vectors), -1, -1)], []
        if soft is not None and self._is_adapter:
            vectors = vectors + self._adapter_scale * _spread(soft.to(vectors.dtype), text.mask)
        elif soft is not None:
            parts.append(soft.to(vectors.dtype))
        masks = [text.mask.new_ones(len(vectors), sum(part.shape[1] for part in parts)), text.mask]
        return Padded(torch.cat([*parts, vectors], dim=1), torch.cat(masks, dim=1))


def _spread(soft: Tensor, mask: Tensor) -> Tensor:
    """Soft token i at the i-th real place of its row, 0 elsewhere; soft: (B, Q, D), mask: (B, T) bool."""
    places = positions(mask)  # (B, T)
    taken = mask & (places < soft.shape[1])
    rows = torch.arange(len(soft), device=soft.device)[:, None]
    return soft[rows, places.clamp(max=soft.shape[1] - 1)] * taken[..., None]


def refuse_too_long(lm: FrozenLM, longest: int, what: str) -> None:
    """Complain before training if a model would be asked for more positions than it has."""
    config = lm.model.config
    limits = {"positions": getattr(config, "max_position_embeddings", None)}
    if getattr(config, "use_sliding_window", True):
        # every token reads all before it here
        limits["tokens in its sliding window"] = getattr(config, "sliding_window", None)
    for name, limit in limits.items():
        if limit is not None and longest > limit:
            raise ConfigError(
                f"{what} can take {longest} tokens, but {config.model_type} has {limit} {name}; "
                "lower eval.max_new_tokens, problems.few_shot or model.soft_tokens"
            )
