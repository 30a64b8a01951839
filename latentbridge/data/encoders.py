"""From text to token ids, each with the bytes of text that it stands for: what bits per byte are told by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from latentbridge.data.assets import resolve_model
from latentbridge.data.config import OWN_TOKENIZERS
from latentbridge.errors import PreflightError

# (2, N) int32: ids, and bytes of text that each stands for
Block = NDArray[numpy.int32]

CHARACTERS, BYTES, BPE = OWN_TOKENIZERS
NO_CHARACTER = "\ufffd"
# how some tokenizers write a space
_METASPACE = "\u2581"
# id of a character that the training text lacks
UNKNOWN = 0
# paragraphs whose tokens exist as Python objects at the same time
_AT_ONCE = 1000


class Encoder(Protocol):
    """Cuts paragraphs into tokens; unknown: the id of what it cannot tell apart, where there is one."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def unknown(self) -> int | None: ...

    def encode(self, paragraphs: Sequence[str]) -> Iterator[Block]:
        """Tokens in order, a block at a time; together the blocks stand for every byte."""

    def texts(self) -> list[str]:
        """What each id stands for; U+FFFD is what is no character by itself."""


class Characters:
    """One token a character of the training text, in code point order; all others are UNKNOWN."""

    def __init__(self, known: str) -> None:
        points = sorted({ord(character) for character in known})
        self.vocab_size, self.unknown = 1 + len(points), UNKNOWN
        self._ids = numpy.full(0x110000, UNKNOWN, dtype=numpy.int32)
        self._ids[points] = numpy.arange(1, self.vocab_size)
        self._points = points

    def encode(self, paragraphs: Sequence[str]) -> Iterator[Block]:
        """See Encoder."""
        for paragraph in paragraphs:
            points = numpy.frombuffer(paragraph.encode("utf-32-le"), dtype=numpy.uint32)
            yield numpy.stack([self._ids[points], _byte_counts(points)])

    def texts(self) -> list[str]:
        """See Encoder."""
        return [NO_CHARACTER, *map(chr, self._points)]


class Bytes:
    """One token a byte of UTF-8."""

    vocab_size, unknown = 256, None

    def encode(self, paragraphs: Sequence[str]) -> Iterator[Block]:
        """See Encoder."""
        for paragraph in paragraphs:
            ids = numpy.frombuffer(paragraph.encode(), dtype=numpy.uint8).astype(numpy.int32)
            yield numpy.stack([ids, numpy.ones_like(ids)])

    def texts(self) -> list[str]:
        """See Encoder."""
        return [chr(byte) if byte < 0x80 else NO_CHARACTER for byte in range(self.vocab_size)]


class Pieces:
    """Tokens of the tokenizers library; its special tokens are never added."""

    unknown = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.vocab_size: int = max(tokenizer.get_vocab().values()) + 1

    def encode(self, paragraphs: Sequence[str]) -> Iterator[Block]:
        """See Encoder."""
        for start in range(0, len(paragraphs), _AT_ONCE):
            some = paragraphs[start : start + _AT_ONCE]
            found = self._tokenizer.encode_batch(some, add_special_tokens=False)
            for paragraph, encoding in zip(some, found, strict=True):
                if encoding.ids:
                    yield _with_bytes(paragraph, encoding)

    def texts(self) -> list[str]:
        """See Encoder; a space before a word is told, though decoders drop it at a text's beginning."""
        found: list[str] = self._tokenizer.decode_batch([[number] for number in range(self.vocab_size)])
        for number, text in enumerate(found):
            piece = self._tokenizer.id_to_token(number) or ""
            if text and piece.startswith(_METASPACE):
                found[number] = piece.replace(_METASPACE, " ")
        return found


def _with_bytes(paragraph: str, encoding: Any) -> Block:
    """A token owns all bytes from the last one's end to its own: also what a tokenizer passes over."""
    points = numpy.frombuffer(paragraph.encode("utf-32-le"), dtype=numpy.uint32)
    bytes_before = numpy.concatenate([[0], _byte_counts(points).cumsum()])
    ends = bytes_before[numpy.array(encoding.offsets, dtype=numpy.int64)[:, 1]]
    ends[-1] = bytes_before[-1]
    # tokens that share a character have its offsets in common: the first one owns its bytes
    ends = numpy.maximum.accumulate(ends)
    return numpy.stack([numpy.array(encoding.ids), numpy.diff(ends, prepend=0)]).astype(numpy.int32)


def _byte_counts(points: NDArray[numpy.uint32]) -> NDArray[numpy.int32]:
    """Bytes of UTF-8 that each code point takes."""
    counts = 1 + (points >= 0x80).astype(numpy.int32)
    return counts + (points >= 0x800) + (points >= 0x10000)


def describe_encoder(tokenizer: str, vocab_size: int, paragraphs: Sequence[str]) -> str:
    """What `build_encoder` needs beside the name: known characters, or learnt pieces; '' for all others."""
    if tokenizer == CHARACTERS:
        return "".join(sorted(set().union(*paragraphs)))
    return train_bpe(paragraphs, vocab_size) if tokenizer == BPE else ""


def build_encoder(tokenizer: str, description: str) -> Encoder:
    """The encoder of a name: characters, bytes, bpe, or a model's, whose files must be at hand."""
    if tokenizer == CHARACTERS:
        return Characters(description)
    if tokenizer == BYTES:
        return Bytes()
    if tokenizer == BPE:
        return Pieces(Tokenizer.from_str(description))
    return Pieces(_of_model(tokenizer))


def train_bpe(paragraphs: Sequence[str], vocab_size: int) -> str:
    """A byte-level BPE as JSON, the same bytes every time; fewer entries where the text has no more pairs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs, trainer)
    found: str = tokenizer.to_str()
    return found


def _of_model(name: str) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model(name))
    except (OSError, ValueError) as error:
        raise PreflightError(
            f"tokenizer '{name}' cannot be loaded: {error}\n"
            f"Where compute nodes have no network, fetch it first on the login node: hf download {name}"
        ) from error
    if not tokenizer.is_fast:
        raise PreflightError(f"tokenizer '{name}' has no fast form, which tells the bytes of each token")
    found: Tokenizer = tokenizer.backend_tokenizer
    return found
