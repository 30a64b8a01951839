"""Language models of our own sizes in the layout that everyone can load."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

from latentbridge.pretrain.config import ModelConfig

_POSITIONS = 512


def build_model(config: ModelConfig, tokenizer: Any) -> nn.Module:
    """A causal language model with random weights (fp32) from torch's current seed."""
    # no pad_token_id: with one, GPT-2 looks for padding at each step, and the host waits for the device
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    shape = _llama(config, ids) if config.family == "llama" else _gpt2(config, ids)
    model: nn.Module = AutoModelForCausalLM.from_config(shape)
    return model


def _llama(config: ModelConfig, ids: dict[str, int]) -> PretrainedConfig:
    return LlamaConfig(
        hidden_size=config.width,
        intermediate_size=config.ffn,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads or config.heads,
        max_position_embeddings=_POSITIONS,
        tie_word_embeddings=True,
        **ids,
    )


def _gpt2(config: ModelConfig, ids: dict[str, int]) -> PretrainedConfig:
    # dropout off: generated problems never run out, so there is nothing to overfit
    return GPT2Config(
        n_embd=config.width,
        n_inner=config.ffn,
        n_layer=config.layers,
        n_head=config.heads,
        n_positions=_POSITIONS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **ids,
    )
