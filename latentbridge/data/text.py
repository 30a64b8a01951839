"""A text as token ids on disk: three splits that share no paragraph, windows to train on and to score.

Ids are made once for all ranks and all runs of a launch, and mapped into memory, never read whole.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy
import tokenizers
import torch
from torch import Tensor

from latentbridge.data.assets import ASSETS
from latentbridge.data.cache import cached, cached_json
from latentbridge.data.config import BPE_ENTRIES, TextConfig, TextSample
from latentbridge.data.encoders import Block, Encoder, build_encoder, describe_encoder
from latentbridge.data.gsm8k import load_gsm8k
from latentbridge.errors import ConfigError, RunError
from latentbridge.rundir import hash_file, sync_folder

TextSplit = Literal["train", "validation", "test"]
SPLITS: tuple[TextSplit, ...] = ("train", "validation", "test")

_BETWEEN_PARAGRAPHS = "\n\n"
# share of the training files that is held out where no other files are
_HELD_OUT = 0.1
_GSM8K = ASSETS / "gsm8k" / "train.jsonl.gz"
# one in so many of GSM8K's problems is read: together they are about as long as the stories
_EVERY = 4
# changes with how ids are made
_FORMAT = 1


def load_splits(config: TextConfig) -> dict[TextSplit, list[str]]:
    """Paragraphs of each split, in order; what a held-out split shares with one before it is left out.

    Validation is the first half of what is held out and test the second, so that the text which chooses
    the best weights is never the one that is reported; one story may begin in one and end in the other.
    """
    train_files, eval_files = _files(config)
    train, held_out = _paragraphs(train_files), _paragraphs(eval_files)
    if not eval_files:
        cut = len(train) - max(2, round(_HELD_OUT * len(train)))
        train, held_out = train[: max(0, cut)], train[max(0, cut) :]
    splits: dict[TextSplit, list[str]] = {"train": train}
    seen = set(train)
    middle = len(held_out) // 2
    for name, part in (("validation", held_out[:middle]), ("test", held_out[middle:])):
        own = [paragraph for paragraph in part if paragraph not in seen]
        splits[name] = own  # type: ignore[index]
        seen |= set(own)
    for name, paragraphs in splits.items():
        if not paragraphs:
            files = ", ".join(map(str, (*train_files, *eval_files)))
            raise RunError(
                f"{files}: no paragraph is left for {name}. Paragraphs end at a blank line, and none may be "
                "in two splits; add text, or blank lines between its parts"
            )
    return {name: config.part_of(paragraphs) for name, paragraphs in splits.items()}


def _files(config: TextConfig) -> tuple[list[Path], list[Path]]:
    """Files to train on, and held-out ones; ConfigError where one is not there."""
    if config.name != "files":
        folder = ASSETS / "tinystories"
        problems = [_GSM8K] if config.name == "stories_and_problems" else []
        return [folder / "train.txt.gz", *problems], [folder / "val.txt.gz"]
    found = []
    for key in ("train_files", "eval_files"):
        paths = [Path(name).expanduser().absolute() for name in getattr(config, key)]
        for path in paths:
            if not path.is_file():
                raise ConfigError(f"text.{key} names {path}, which is no file; write the path of a text file")
        found.append(paths)
    return found[0], found[1]


def _paragraphs(files: Sequence[Path]) -> list[str]:
    found = []
    for path in files:
        if path == _GSM8K:
            found += [f"{p.question}\n{p.answer}" for p in load_gsm8k("train", 0)[::_EVERY]]
            continue
        raw = path.read_bytes()
        try:
            text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: not a text in UTF-8 ({error}); convert it first") from None
        parts = re.split(r"\n[^\S\n]*\n\s*", text.replace("\r\n", "\n"))
        found += [part.strip("\n") for part in parts if part.strip()]
    return found


def _tokenizer_files(name: str) -> list[list[Any]]:
    """What tells a folder's tokenizer from the one that it held before; none for others."""
    path = Path(name).expanduser()
    files = sorted(path.glob("tokenizer*")) if "/" in name and path.is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


class Corpus:
    """Token ids of the three splits, and the windows that are cut from them.

    vocab_size: of the tokenizer;  unknown: tokens of each split that stand for a character not in `train`
    """

    def __init__(self, config: TextConfig, cache: Path, seed: int = 0) -> None:
        """cache: the launch's folder, see data/cache;  seed: of where blocks begin in each pass."""
        self._config, self._seed = config, seed
        files = [path.stat() for part in _files(config) for path in part]
        # by size and time: no rank has to read the text to find its ids
        self._key: dict[str, Any] = {
            "what": "text",
            "format": _FORMAT,
            "files": [[str(path) for path in part] for part in _files(config)],
            "stat": [[found.st_size, found.st_mtime_ns] for found in files],
            "tokenizer": config.tokenizer,
            "tokenizer_files": _tokenizer_files(config.tokenizer),
            "vocab_size": config.vocab_size or BPE_ENTRIES,
            "tokenizers": tokenizers.__version__,
        }
        if isinstance(config, TextSample):
            self._key["characters"] = config.characters
        self._splits: dict[TextSplit, list[str]] = {}
        described = cached_json(cache, {**self._key, "part": "encoder"}, self._describe)
        encoder = build_encoder(config.tokenizer, described)
        self._encoder, self.vocab_size = encoder, encoder.vocab_size
        self.tokens = {split: self._tokens(cache, split, encoder) for split in SPLITS}
        self.num_bytes = {split: int(self.tokens[split][1].sum(dtype=numpy.int64)) for split in SPLITS}
        self.unknown = {
            split: 0 if encoder.unknown is None else int((self.tokens[split][0] == encoder.unknown).sum())
            for split in SPLITS
        }
        self._width = config.context + 1
        # by pass: where its first block begins
        self._offsets: dict[int, int] = {}
        # the same for wherever a pass begins
        self.num_blocks = (self.tokens["train"].shape[1] - config.context) // self._width
        self._refuse_short_text()
        # from here on only ids are needed
        self._splits = {}

    def _read(self, split: TextSplit) -> list[str]:
        self._splits = self._splits or load_splits(self._config)
        return [paragraph + _BETWEEN_PARAGRAPHS for paragraph in self._splits[split]]

    def _describe(self) -> str:
        return describe_encoder(self._config.tokenizer, self._key["vocab_size"], self._read("train"))

    def _tokens(self, cache: Path, split: TextSplit, encoder: Encoder) -> Block:
        """(2, N) int32, mapped: ids, and bytes that each stands for."""
        return cached(
            cache,
            {**self._key, "part": split},
            ".npy",
            lambda: numpy.concatenate(list(encoder.encode(self._read(split))), axis=1),
            _save,
            lambda path: numpy.load(path, mmap_mode="r"),
        )

    def _refuse_short_text(self) -> None:
        if self.num_blocks < 1:
            raise RunError(
                f"text.context is {self._config.context}, but the training text has only "
                f"{self.tokens['train'].shape[1]} tokens; a block is context + 1. Lower it, or add text"
            )
        for split in SPLITS[1:]:
            self.eval_windows(split)

    def train_windows(self, indices: Sequence[int]) -> Tensor:
        """Blocks of the training text by index (pass * num_blocks + block); returns (B, context + 1) int64.

        Blocks of one pass do not overlap; each pass begins at another place, so borders move.
        """
        return self._cut(self.tokens["train"][0], [self._start(index) for index in indices])

    def _start(self, index: int) -> int:
        number, block = divmod(index, self.num_blocks)
        if number not in self._offsets:
            generator = torch.Generator().manual_seed((self._seed << 20) + number)
            self._offsets[number] = int(torch.randint(self._width, (), generator=generator))
        return int(self._offsets[number] + block * self._width)

    def eval_windows(self, split: TextSplit) -> list[int]:
        """Where disjoint windows begin, spread evenly over the split: eval_tokens // context of them.

        Every token of a window after its first is scored once. RunError where the split is too short.
        """
        whole = self.tokens[split].shape[1] // self._width
        count = self._config.eval_tokens // self._config.context
        if count > whole:
            limit = whole * self._config.context
            raise RunError(
                f"text.eval_tokens is {self._config.eval_tokens}, but whole windows of the {split} text "
                f"score {limit} tokens at most; write text.eval_tokens: {limit}, or add text"
            )
        return [number * whole // count * self._width for number in range(count)]

    def take(self, split: TextSplit, starts: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Windows of a split: ids (B, context + 1) int64, and bytes of the tokens that each scores."""
        ids, counts = (self._cut(row, starts) for row in self.tokens[split])
        return ids, counts[:, 1:].sum(dim=1).tolist()

    def _cut(self, row: Block, starts: Sequence[int]) -> Tensor:
        """row: (N,);  returns windows (B, context + 1) int64."""
        places = numpy.asarray(starts)[:, None] + numpy.arange(self._width)
        return torch.from_numpy(row[places].astype(numpy.int64))

    def token_texts(self) -> list[str]:
        """(V,) what each id stands for; made when asked for."""
        return self._encoder.texts()

    def facts(self) -> dict[str, Any]:
        """What the text is, in numbers, for the record."""
        windows = self._config.eval_tokens // self._config.context
        train_files, eval_files = _files(self._config)
        # whichever text it was, by its content
        digests = {path: hash_file(path) for path in (*train_files, *eval_files)}
        sources = {split: eval_files or train_files for split in SPLITS} | {"train": train_files}
        splits = {
            split: {
                # of the files that it is cut from, in order
                "sha256": [digests[path] for path in sources[split]],
                "tokens": self.tokens[split].shape[1],
                "bytes": self.num_bytes[split],
                "bytes_per_token": self.num_bytes[split] / self.tokens[split].shape[1],
                "unknown_tokens": self.unknown[split],
            }
            for split in SPLITS
        }
        return {
            "sha256": {path.name: digest for path, digest in digests.items()},
            "vocab_size": self.vocab_size,
            "train_blocks": self.num_blocks,
            "eval_windows": windows,
            "eval_scored_tokens": windows * self._config.context,
            "splits": splits,
        }


def _save(path: Path, tokens: Block) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        numpy.save(file, tokens)
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def unigram_bits_per_byte(corpus: Corpus, split: TextSplit) -> float:
    """What a split costs who knows how frequent each token of it is, and nothing else."""
    counts = numpy.bincount(corpus.tokens[split][0]).astype(float)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * numpy.log2(shares)).sum() * counts.sum() / corpus.num_bytes[split])
