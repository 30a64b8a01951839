"""Causal language models as we use them: read text, read embeddings, answer greedily; never trained here.

Padding is always explicit: what a model reads next is padded on the left, what it is scored on, on the right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentbridge.data.assets import resolve_model
from latentbridge.errors import ConfigError, PreflightError

# a completed answer line ends a reply; pretrained models go on to invent the next question
_ANSWER_LINE = re.compile(r"#### -?[0-9.,]+(?=\n)")
# asking the device whether all rows have ended stalls it, so ask seldom
_STEPS_BETWEEN_CHECKS = 8


@dataclass(frozen=True)
class FrozenLM:
    """A causal language model and its tokenizer, only read."""

    model: Any
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def embedding(self) -> Tensor:
        """(V, D) the input embedding matrix."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def hidden_size(self) -> int:
        return int(self.embedding.shape[1])

    @property
    def num_layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    def embed(self, ids: Tensor) -> Tensor:
        """ids: (B, T);  returns (B, T, D)."""
        embeds: Tensor = self.model.get_input_embeddings()(ids)
        return embeds

    def encode(
        self,
        texts: Sequence[str],
        *,
        add_bos: bool,
        padding: Literal["left", "right"],
        add_eos: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Token ids and mask of a batch, as wide as its longest text; nothing is cut.

        add_bos has no effect on models that know no <bos> (Qwen).
        returns ids (B, T) int64, mask (B, T) bool, True = real token
        """
        rows = token_ids(self.tokenizer, texts, add_bos=add_bos, add_eos=add_eos)
        ids, mask = pad(rows, padding)
        return ids.to(self.device), mask.to(self.device)


def token_ids(
    tokenizer: Any, texts: Sequence[str], *, add_bos: bool, add_eos: bool = False
) -> list[list[int]]:
    """Tokens of each text without anything the tokenizer would add by itself."""
    rows: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False
    ).input_ids
    before = [tokenizer.bos_token_id] if add_bos and tokenizer.bos_token_id is not None else []
    after = [tokenizer.eos_token_id] if add_eos else []
    return [[*before, *row, *after] for row in rows]


def pad(rows: Sequence[Sequence[int]], side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one block; padded places hold id 0 and are False in the mask.

    returns ids (B, T) int64, mask (B, T) bool
    """
    # numpy fills 20,000 rows ten times as fast as torch.tensor reads padded lists
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))[:, None]
    width = int(lengths.max(initial=0))
    places = np.arange(width)
    mask = places >= width - lengths if side == "left" else places < lengths
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def positions(mask: Tensor) -> Tensor:
    """Each token's place among the real tokens of its row; mask: (B, T);  returns (B, T) int64."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def load_frozen(name: str, dtype: torch.dtype, device: torch.device) -> FrozenLM:
    """Load a bundled model, a folder or a hub id onto `device`; evaluation mode, nothing trainable."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = resolve_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map={"": device})
    except (OSError, ValueError) as error:
        raise PreflightError(
            f"model '{name}' cannot be loaded: {error}\n"
            f"Where compute nodes have no network, fetch it first on the login node: hf download {name}"
        ) from error
    model.eval().requires_grad_(False)
    return FrozenLM(model, tokenizer)


def hidden_states(lm: FrozenLM, ids: Tensor, mask: Tensor, layer: int) -> Tensor:
    """What one layer makes of a text; 0 is the embeddings, num_layers or -1 the last layer.

    ids, mask: (B, S), padded on either side;  returns (B, S, D) without gradient
    """
    count = lm.num_layers + 1
    # the seed took the last layer whenever the asked one did not exist (D12)
    if not -count <= layer < count:
        raise ConfigError(f"layer is {layer}; this model has {-count}..{count - 1} (0: embeddings, -1: last)")
    with torch.no_grad():
        output = lm.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions(mask),
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        )
    states: Tensor = output.hidden_states[layer]
    return states


def answer_nll(
    lm: FrozenLM, prefix_embeds: Tensor, prefix_mask: Tensor, answer_ids: Tensor, answer_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each answer after its prefix, with gradient to the prefix.

    prefix_embeds: (B, T, D), prefix_mask: (B, T), padded on the left;  answer_*: (B, A), padded on the right
    returns nll (B,) float32, summed over the answer's tokens in nats;  number of those tokens (B,) int64
    """
    logits = answer_logits(lm, prefix_embeds, prefix_mask, answer_ids, answer_mask)
    each = F.cross_entropy(logits.float().transpose(1, 2), answer_ids, reduction="none")  # (B, A)
    return (each * answer_mask).sum(dim=1), answer_mask.sum(dim=1)


def answer_logits(
    lm: FrozenLM, prefix_embeds: Tensor, prefix_mask: Tensor, answer_ids: Tensor, answer_mask: Tensor
) -> Tensor:
    """Logits that predict each answer token: shapes as in `answer_nll`, returns (B, A, V).

    Column i has seen the prefix and the answer tokens before i: the one shift of labels happens here.
    """
    embeds = torch.cat([prefix_embeds, lm.embed(answer_ids).to(prefix_embeds.dtype)], dim=1)
    mask = torch.cat([prefix_mask, answer_mask], dim=1)
    output = lm.model(
        inputs_embeds=embeds,
        attention_mask=mask.long(),
        position_ids=positions(mask),
        use_cache=False,
        logits_to_keep=answer_ids.shape[1] + 1,
    )
    logits: Tensor = output.logits[:, :-1]
    return logits


def generate(lm: FrozenLM, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> list[str]:
    """Greedy replies; each ends before <eos>, or with its first completed line `#### number`.

    embeds: (B, T, D), mask: (B, T), padded on the left
    """
    if not bool(mask[:, -1].all()):
        raise ValueError("generate: a row ends in padding; pad prompts on the left")
    stops = _stop_ids(lm)
    rows = _greedy(lm, embeds, mask, max_new_tokens, stops)
    return _texts(lm, rows, stops)


@torch.no_grad()
def _greedy(lm: FrozenLM, embeds: Tensor, mask: Tensor, max_new_tokens: int, stops: set[int]) -> Tensor:
    """Tokens after each prompt, (B, N <= max_new_tokens); what follows a row's end has no meaning."""
    stop_ids = torch.tensor(sorted(stops), device=embeds.device)
    ended = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
    place = positions(mask)
    cache, chosen, inputs = None, [], {"inputs_embeds": embeds}
    for step in range(1, max_new_tokens + 1):
        output = lm.model(
            **inputs,
            attention_mask=mask.long(),
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        token = output.logits[:, -1].argmax(dim=-1)  # (B,)
        chosen.append(token)
        ended |= torch.isin(token, stop_ids)
        if step % _STEPS_BETWEEN_CHECKS == 0 and _all_ended(lm, torch.stack(chosen, dim=1), ended, stops):
            break
        cache, inputs = output.past_key_values, {"input_ids": token[:, None]}
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        place = place[:, -1:] + 1
    return torch.stack(chosen, dim=1)


def _all_ended(lm: FrozenLM, rows: Tensor, ended: Tensor, stops: set[int]) -> bool:
    going_on = ~ended
    if not bool(going_on.any()):
        return True
    # `ended` learns of answer lines here, so a row is decoded again only while it has none
    lines = [_ANSWER_LINE.search(text) is not None for text in _decode(lm, rows[going_on], stops)]
    ended[going_on] = torch.tensor(lines, device=ended.device)
    return all(lines)


def _texts(lm: FrozenLM, rows: Tensor, stops: set[int]) -> list[str]:
    texts = _decode(lm, rows, stops)
    lines = [_ANSWER_LINE.search(text) for text in texts]
    return [text[: line.end()] if line else text for text, line in zip(texts, lines, strict=True)]


def _decode(lm: FrozenLM, rows: Tensor, stops: set[int]) -> list[str]:
    """Text of each row up to its first stop token."""
    kept = []
    for row in rows.tolist():
        end = next((place for place, token in enumerate(row) if token in stops), len(row))
        kept.append(row[:end])
    texts: list[str] = lm.tokenizer.batch_decode(kept, skip_special_tokens=True)
    return texts


def _stop_ids(lm: FrozenLM) -> set[int]:
    """Every token that ends a reply: instruct models have several."""
    ids = {lm.tokenizer.eos_token_id}
    config = getattr(lm.model, "generation_config", None)
    listed = config.eos_token_id if config is not None else None
    ids.update(listed if isinstance(listed, list) else [listed])
    return {int(token) for token in ids if token is not None}
