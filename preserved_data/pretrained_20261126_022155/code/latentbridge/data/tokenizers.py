"""The two tokenizers of the toy pair, built from generated problems: the same bytes every time.

Both have <pad>, <bos>, <eos> as ids 0, 1, 2, and put <bos> before a text by themselves.
"""

from __future__ import annotations

import string
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from latentbridge.data.config import ProblemsConfig
from latentbridge.data.problems import answer_text, load_problems, prompt_text

TokenizerKind = Literal["bpe", "characters"]

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
_SPECIAL = [PAD, BOS, EOS]
_MAX_TOKENS = 512
# every character of a generated problem, and a few more so that typed questions do not turn into unknowns
_CHARACTERS = "\n !#$%'()*+,-./" + string.digits + ":=?" + string.ascii_letters
_UNKNOWN = "?"
_BPE_ENTRIES = 800
_BPE_PROBLEMS = 20_000


def build_tokenizer(kind: TokenizerKind) -> PreTrainedTokenizerFast:
    """bpe: about 800 byte-level pieces with single digits;  characters: one token a character."""
    core = _bpe() if kind == "bpe" else _characters()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, _SPECIAL.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=_MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # a digit is a token: numbers of any length are then written with what was learnt on short ones
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    config = ProblemsConfig(name="word_problems", train_examples=_BPE_PROBLEMS)
    texts = [prompt_text(p, config) + answer_text(p, config) for p in load_problems(config, "train")]
    trainer = trainers.BpeTrainer(
        vocab_size=_BPE_ENTRIES,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _characters() -> Tokenizer:
    entries = [*_SPECIAL, *sorted(_CHARACTERS)]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(_SPECIAL)
    return tokenizer
