"""Causal language models as we use them: read text, read embeddings; never trained here.

Padding is always explicit: what a model reads next is padded on the left, what it is scored on, on the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from latentbridge.data.assets import resolve_model
from latentbridge.errors import ConfigError, PreflightError

# tokens that a model reads at once where nothing is trained, so that memory does not depend on the batch
TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True)
class FrozenLM:
    """A causal language model and its tokenizer, only read."""

    model: Any
    tokenizer: Any
    # what is kept for it from one call to the next, such as memory to decode in
    scratch: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

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
    def head(self) -> Any:
        """The linear layer from last states to logits."""
        return self.model.get_output_embeddings()

    @property
    def num_layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def kv_bytes_per_token(self) -> int:
        """What its cache of keys and values takes for every token that it has read."""
        return kv_bytes_per_token(self.model.config, self.embedding.element_size())

    def park(self) -> None:
        """Leave the device to others until `awake`."""
        self.scratch["home"] = self.device
        self.model.to("cpu")

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Be on the device for a while, where it was parked."""
        home = self.scratch.get("home")
        if home is None:
            yield
            return
        self.model.to(home)
        try:
            yield
        finally:
            # recorded steps know where the weights lie, which will be elsewhere
            self.scratch.pop("blocks", None)
            self.model.to("cpu")

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

        add_bos: see `token_ids`
        returns ids (B, T) int64, mask (B, T) bool, True = real token
        """
        rows = token_ids(self.tokenizer, texts, add_bos=add_bos, add_eos=add_eos)
        ids, mask = pad(rows, padding)
        return ids.to(self.device), mask.to(self.device)


def kv_bytes_per_token(config: Any, element_bytes: int) -> int:
    """Keys and values of one token in all layers, from a transformers config.

    2 x layers x KV heads x head width x element_bytes: with grouped-query attention there are fewer heads of
    keys than of queries, which the published 0.5 MB a token left out, a factor of 4.
    """
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * kv_heads * width * element_bytes)


def token_ids(
    tokenizer: Any, texts: Sequence[str], *, add_bos: bool, add_eos: bool = False
) -> list[list[int]]:
    """Tokens of each text; add_bos: with <bos>, where the tokenizer would put one by itself."""
    rows: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False
    ).input_ids
    before = [tokenizer.bos_token_id] if add_bos and _opens_with_bos(tokenizer) else []
    after = [tokenizer.eos_token_id] if add_eos else []
    return [[*before, *row, *after] for row in rows]


def _opens_with_bos(tokenizer: Any) -> bool:
    """Having one is not reading one: SmolLM2 and some Qwens have a <bos>, and score worse behind it."""
    opening: list[int] = tokenizer("a").input_ids[:1]
    return opening == [tokenizer.bos_token_id]


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


def to_device(block: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without making the host wait for what the device is doing."""
    return block.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else block


def positions(mask: Tensor) -> Tensor:
    """Each token's place among the real tokens of its row; mask: (B, T);  returns (B, T) int64."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def causal_mask(mask: Tensor, before: int = 0) -> Tensor:
    """What each token reads, (B, 1, T, before + T) bool: all that is before, and real tokens up to itself.

    mask: (B, T), padded on either side;  before: tokens that all rows have read already
    """
    width = mask.shape[1]
    lower = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    # padding reads itself: a token that reads nothing would be nan, and spoil what is masked out too
    itself = torch.eye(width, dtype=torch.bool, device=mask.device)
    own = (lower & mask[:, None, None, :]) | itself
    return torch.nn.functional.pad(own, (before, 0), value=True)


def load_frozen(name: str, dtype: torch.dtype, device: torch.device) -> FrozenLM:
    """Load a bundled model, a folder or a hub id onto `device`; evaluation mode, nothing trainable."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from latentbridge.data.attention import NAME
    from latentbridge.data.fused import fuse

    logging.disable_progress_bar()
    path = resolve_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map={"": device})
    except (OSError, ValueError) as error:
        asked = "" if Path(path).is_dir() else f"No folder {Path(path).absolute()}, so the hub was asked.\n"
        raise PreflightError(
            f"model '{name}' cannot be loaded: {error}\n"
            f"{asked}Where nodes have no network, fetch it first on the login node: hf download {name}"
        ) from error
    model.eval().requires_grad_(False)
    lm = FrozenLM(model, tokenizer)
    _refuse_unusual_head(name, lm)
    if model.config._attn_implementation != "sdpa":
        raise PreflightError(
            f"model '{name}' ({model.config.model_type}) has no attention by torch's own kernels (sdpa), "
            "which is not supported; take another model"
        )
    model.config._attn_implementation = NAME
    if device.type == "cuda":
        fuse(model)
    return lm


@torch.no_grad()
def _refuse_unusual_head(name: str, lm: FrozenLM) -> None:
    """Scoring takes logits for head(last states); some families scale or squash them."""
    ids = torch.tensor([[0, 1]], device=lm.device)
    states = lm.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    logits = lm.model(input_ids=ids, use_cache=False).logits
    if not torch.allclose(lm.head(states), logits, rtol=1e-2, atol=float(logits.abs().max()) * 1e-2):
        raise PreflightError(
            f"model '{name}' ({lm.model.config.model_type}) makes more of its last states than its output "
            "layer's product, which is not supported; take another model"
        )


def refuse_missing_layer(lm: FrozenLM, layer: int) -> None:
    """The seed took the last layer whenever the asked one did not exist (D12)."""
    count = lm.num_layers + 1
    if not -count <= layer < count:
        raise ConfigError(f"layer is {layer}; this model has {-count}..{count - 1} (0: embeddings, -1: last)")


def hidden_states(lm: FrozenLM, ids: Tensor, mask: Tensor, layer: int) -> Tensor:
    """What one layer makes of a text; 0 is the embeddings, num_layers or -1 the last layer.

    ids, mask: (B, S), padded on either side;  returns (B, S, D) without gradient
    """
    refuse_missing_layer(lm, layer)
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
