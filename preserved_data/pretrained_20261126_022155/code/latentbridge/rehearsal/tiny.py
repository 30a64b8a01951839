"""Tiny language models with random weights, in the layout of real ones, for any length of text."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from latentbridge.data.assets import resolve_model

_POSITIONS = 65_536
# what an instruct model's may look like
_CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} [end]{% endfor %}"
    "{% if add_generation_prompt %} [assistant]{% endif %}"
)


def tiny_model(folder: Path, name: str, *, tokenizer_of: str, width: int, layers: int) -> str:
    """The folder of a Llama with the tokenizer of a bundled model, made if it is not there."""
    path = folder / name
    if path.exists():
        return str(path)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(tokenizer_of))
    tokenizer.chat_template = _CHAT
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_POSITIONS,
        # large enough for logits that differ
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(width)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)
