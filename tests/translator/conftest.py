"""A pair of tiny language models with random weights, in the layout of real ones, and runs on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from latentbridge.config import Origin, Tree, build
from latentbridge.job import Run
from latentbridge.rundir import RunDir
from latentbridge.translator.config import TranslatorConfig

SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SOURCE_DIM, TARGET_DIM = 12, 20


def byte_tokenizer(first: str) -> PreTrainedTokenizerFast:
    """One token a byte; `first` comes before the other bytes, so that two models disagree on ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda char: (char != first, char))
    entries = [*SPECIAL.values(), *alphabet]
    core = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL.values()))
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a GPT-2 source (3 layers, width 12) and a Llama target (2 layers, width 20)."""
    root = tmp_path_factory.mktemp("pair")
    torch.manual_seed(7)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    source = GPT2LMHeadModel(
        GPT2Config(vocab_size=259, n_positions=256, n_embd=SOURCE_DIM, n_layer=3, n_head=3, **dropout, **IDS)
    )
    target = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=259,
            hidden_size=TARGET_DIM,
            intermediate_size=28,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
            initializer_range=0.2,
            **IDS,
        )
    )
    for name, model, first in (("source", source, "A"), ("target", target, "7")):
        model.save_pretrained(root / name)
        byte_tokenizer(first).save_pretrained(root / name)
    return {name: str(root / name) for name in ("source", "target")}


@pytest.fixture
def configure(pair: dict[str, str]) -> Callable[..., TranslatorConfig]:
    """Makes the config of a run that takes a second; a test passes only what it is about, by dotted key."""
    base = {
        "source.model": pair["source"],
        "target.model": pair["target"],
        "problems": {"train_examples": 12, "eval_examples": 7, "templates": "one_step"},
        "model": {"soft_tokens": 3, "dim": 8, "depth": 2, "heads": 4, "gate_init": 0.5},
        "optim": {"lr": 1e-2},
        "train": {"engine": "torch", "steps": 2, "batch_size": 4, "log_every": 1, "eval_every": 2},
        "eval": {"batch_size": 3, "max_new_tokens": 5},
    }
    here = {(): Origin("conftest.py", 1)}

    def make(changes: dict[str, Any] | None = None) -> TranslatorConfig:
        tree = Tree({}, here).override(Tree(base, here)).override(Tree(changes or {}, here))
        return build(TranslatorConfig, tree)

    return make


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[[str], Run]:
    """Makes a run folder by name; all of a test's runs belong to one launch."""

    def make(name: str = "cell-s1") -> Run:
        folder = tmp_path / "launch" / name
        folder.mkdir(parents=True)
        return Run(RunDir(folder))

    return make
