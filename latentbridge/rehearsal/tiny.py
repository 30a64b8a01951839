"""Tiny language models with random weights, in the layout of real ones, for any length of text."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, OlmoeConfig, PretrainedConfig

from latentbridge.data.assets import resolve_model

_POSITIONS = 65_536
# what an instruct model's may look like
_CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} [end]{% endfor %}"
    "{% if add_generation_prompt %} [assistant]{% endif %}"
)


def tiny_model(folder: Path, name: str, *, tokenizer_of: str, width: int, layers: int) -> str:
    """The folder of a Llama with the tokenizer of a bundled model, made if it is not there."""
    shape = {"intermediate_size": 2 * width, "num_key_value_heads": 2}
    return _made(folder / name, LlamaConfig, tokenizer_of, width, layers, shape)


def tiny_mixture(
    folder: Path, name: str, *, tokenizer_of: str, width: int, layers: int, num_experts: int, top_k: int
) -> str:
    """The same of OLMoE's family: each layer sends a token to top_k of num_experts."""
    shape = {"intermediate_size": width, "num_experts": num_experts, "num_experts_per_tok": top_k}
    return _made(folder / name, OlmoeConfig, tokenizer_of, width, layers, shape)


def _made(
    path: Path,
    family: type[PretrainedConfig],
    tokenizer_of: str,
    width: int,
    layers: int,
    shape: dict[str, int],
) -> str:
    if path.exists():
        return str(path)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(tokenizer_of))
    tokenizer.chat_template = _CHAT
    config = family(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=_POSITIONS,
        # large enough for logits that differ
        initializer_range=0.3,
        # OLMoE has one by default, which here is a word
        pad_token_id=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **shape,
    )
    torch.manual_seed(width)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)
