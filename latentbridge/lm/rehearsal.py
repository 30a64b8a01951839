"""What a language model on a text must prove at a small size before it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.data.config import TextConfig, TextSample
from latentbridge.data.encoders import BPE, BYTES, CHARACTERS
from latentbridge.data.text import load_splits
from latentbridge.job import Run
from latentbridge.lm.config import DecoderConfig
from latentbridge.lm.model import BlockModel, LanguageModel
from latentbridge.lm.train import LanguageModeling, mean_nats
from latentbridge.nn.head import Head
from latentbridge.rehearsal.checks import SAME, any_batch
from latentbridge.rehearsal.contract import Caught, Check, Stage
from latentbridge.rehearsal.language import (
    in_both_modes,
    nats_of_next,
    refuse_misplaced_labels,
    refuse_reading_ahead,
    refuse_reading_neighbours,
)
from latentbridge.rehearsal.shrinking import BATCH, ENGINEERING, TEXT_PROTOCOL, chosen, small_train

# what decides where a paragraph is
_FILES = {"name", "train_files", "eval_files"}
_LAYERS = 2
_CONTEXT = 12
_WINDOWS = 3
# all bytes, and a few pairs
_BPE_ENTRIES = 300
# a narrow model starts out saying nearly the same of everything, which would hide what it reads
_LOUDER = 5.0
_QUIET = 0.1


class LmRehearsal:
    """See `latentbridge.rehearsal.contract.Rehearsal`; a workload with other layers overrides `make`."""

    def __init__(self) -> None:
        self.checks: Sequence[Check] = (
            Check("splits", splits),
            Check("labels", labels),
            Check("causality", causality),
            Check("neighbours", neighbours),
        )

    def make(self, config: Any, run: Run) -> LanguageModeling:
        """The workload of a shrunk config, as it starts."""
        return LanguageModeling(config, run)

    def shrink(self, config: Any, folder: Path) -> Any:
        """Two narrow layers with as many heads, short windows of the same text; schedules as they are."""
        return config.model_copy(
            update={
                "model": small_decoder(config.model),
                "text": small_text(config.text),
                "train": small_train(config.train),
                "eval": config.eval.model_copy(update={"batch_size": BATCH}),
            }
        )

    @torch.no_grad()
    def workload(self, config: Any, run: Run) -> LanguageModeling:
        made = self.make(config, run)
        for parameter in made.model.parameters():
            # a matrix that starts as N(0, 1) is loud enough
            if parameter.dim() > 1 and float(parameter.std()) < _QUIET:
                parameter.mul_(_LOUDER)
        return made

    def moments(self, config: Any) -> list[int]:
        """The first update: no term of the loss changes with them."""
        return [1]

    def protocol(self, config: Any) -> dict[str, Any]:
        return chosen(config, TEXT_PROTOCOL)

    def engineering(self) -> tuple[str, ...]:
        return ENGINEERING


def small_decoder(config: DecoderConfig) -> DecoderConfig:
    """As many heads, each a pair or more wide."""
    width = config.heads * 2 * max(1, round(config.dim / config.heads / 16))
    return config.model_copy(update={"layers": min(config.layers, _LAYERS), "dim": width})


def small_text(config: TextConfig) -> TextConfig:
    """A part of the text in short windows; a vocabulary that a test of all its entries can afford."""
    tokenizer = config.tokenizer if config.tokenizer in (CHARACTERS, BPE) else BYTES
    small = {
        "tokenizer": tokenizer,
        "vocab_size": _BPE_ENTRIES if tokenizer == BPE else None,
        "context": _CONTEXT,
        "eval_tokens": _WINDOWS * _CONTEXT,
    }
    return TextSample(**{**config.model_dump(), **small})


def splits(stage: Stage) -> str:
    """No paragraph of the real text is in two of its splits."""
    texts = {real.text.model_dump_json(include=_FILES): real.text for real in stage.real}
    counts = []
    for config in texts.values():
        found = {name: set(paragraphs) for name, paragraphs in load_splits(config).items()}
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
            if both := found[one] & found[other]:  # type: ignore[index]
                raise Caught(f"{one} and {other} share {len(both)} paragraphs, such as {min(both)[:80]!r}")
        counts.append(" / ".join(f"{len(paragraphs)}" for paragraphs in found.values()))
    return f"{', '.join(counts)} paragraphs to train on, validate and test, none in two of them"


class _Saying(nn.Module):
    """Stands for a decoder whose logits are those that a `Speaker` has for whole blocks."""

    def __init__(self, speaker: nn.Module, blocks: Tensor, vocabulary: int) -> None:
        super().__init__()
        self._blocks, self._said = blocks, speaker(input_ids=blocks).logits
        self.head = Head(vocabulary, vocabulary, torch.eye(vocabulary, device=blocks.device))

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Any]]:
        """Last states (B, T, V), which the head leaves as they are; ids: any part of the blocks."""
        for start in range(self._blocks.shape[1] - ids.shape[1] + 1):
            place = slice(start, start + ids.shape[1])
            if torch.equal(self._blocks[:, place], ids):
                return self._said[:, place], []
        raise Caught("what the decoder reads is no part of its block")


def labels(stage: Stage) -> str:
    """The loss and every score are of the token that comes next."""
    made, model = parts(stage)
    batch, V = made.load_batch(stage.batch), made.corpus.vocab_size

    def terms(speaker: nn.Module) -> dict[str, Tensor]:
        spoken = LanguageModel(_Saying(speaker, batch.blocks, V))  # type: ignore[arg-type]
        return {"lm": mean_nats(spoken(batch.blocks))}

    shown = refuse_misplaced_labels(terms, V)
    model.eval()
    for prefix, split in (("val", "validation"), ("test", "test")):
        ids, _ = made.corpus.take(split, made.corpus.eval_windows(split))  # type: ignore[arg-type]
        nats = torch.cat([nats_of_next(model.logits, row) for row in ids.to(made.device)])
        expected, found = float(nats.mean()), stage.evaluated[f"{prefix}_nll"].value
        if found is None or abs(found - expected) > SAME * (1 + expected):
            raise Caught(
                f"{prefix}_nll is {found}; read one token after the other the windows have "
                f"{expected:.6f} nats a token"
            )
    return f"{shown}; {len(nats)} tokens of each held-out text are scored by what came before them"


def causality(stage: Stage) -> str:
    """No token changes a logit before it, in training or evaluation mode."""
    made, model = parts(stage)
    ids = made.load_batch(stage.batch).blocks[:, :-1]
    return in_both_modes(model, refuse_reading_ahead, model.logits, ids)


def neighbours(stage: Stage) -> str:
    """No sequence changes a logit of another one, and a batch's size changes no number."""
    made, model = parts(stage)
    ids = made.load_batch(stage.batch).blocks[:, :-1]
    shown = in_both_modes(model, refuse_reading_neighbours, model.logits, ids)
    return f"{shown}; {any_batch(stage)}"


def parts(stage: Stage) -> tuple[LanguageModeling, BlockModel]:
    """The workload of a stage, and its model."""
    made = stage.workload
    assert isinstance(made, LanguageModeling)
    assert isinstance(made.model, BlockModel)
    return made, made.model
