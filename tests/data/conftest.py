"""Language models with random weights, too small to wait for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from latentbridge.data.language_model import FrozenLM
from latentbridge.data.tokenizers import TokenizerKind, build_tokenizer


@pytest.fixture(scope="session")
def tiny_lm() -> Callable[..., FrozenLM]:
    """Makes a Llama or GPT-2 of two layers and width 24, not yet given our attention."""

    def make(family: str, tokenizer: TokenizerKind, heads: int, kv_heads: int | None = None) -> FrozenLM:
        torch.manual_seed(3)
        made = build_tokenizer(tokenizer)
        shared = {"vocab_size": len(made), "initializer_range": 0.3}
        config = (
            GPT2Config(n_embd=24, n_layer=2, n_head=heads, n_positions=128, **shared)
            if family == "gpt2"
            else LlamaConfig(
                hidden_size=24,
                intermediate_size=40,
                num_hidden_layers=2,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads or heads,
                **shared,
            )
        )
        model = AutoModelForCausalLM.from_config(config)
        return FrozenLM(model.eval().requires_grad_(False), made)

    return make
