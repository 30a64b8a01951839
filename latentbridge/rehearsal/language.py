"""The proofs that hold for every language model: what it may read, and what it is scored on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from latentbridge.data.language_model import FrozenLM
from latentbridge.rehearsal.contract import Caught
from latentbridge.train.seeding import reseed

# what changed less than this share of the largest logit is rounding
_SAME = 1e-4
# logit of what a `Speaker` says, beside 0 for all else: far more than any vocabulary's logarithm
_SURE = 50.0

# ids (B, T) to logits (B, T, V)
Logits = Callable[[Tensor], Tensor]


class Speaker(nn.Module):
    """Stands for a language model, and is sure that the token at each place is the one `ahead` of it.

    ahead: 0 copies the input, 1 knows what comes next, 2 is one too far
    """

    def __init__(self, ahead: int, vocabulary: int) -> None:
        super().__init__()
        self._ahead, self._vocabulary = ahead, vocabulary

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        """input_ids: (B, T);  returns logits (B, T, V)."""
        said = input_ids.roll(-self._ahead, dims=1)
        return CausalLMOutput(logits=_SURE * F.one_hot(said, self._vocabulary).float())


def refuse_misplaced_labels(terms: Callable[[nn.Module], Mapping[str, Tensor]], vocabulary: int) -> str:
    """Labels are shifted once: who copies its input scores no better than chance, who knows the next token 0.

    terms: of the loss, by name, in nats per token, where the given module is the model
    """
    chance = float(torch.tensor(float(vocabulary)).log())
    scores = {ahead: terms(Speaker(ahead, vocabulary)) for ahead in (0, 1, 2)}
    for name in scores[1]:
        copied, known, too_far = (float(scores[ahead][name]) for ahead in (0, 1, 2))
        if copied < chance:
            raise Caught(
                f"losses.{name} of a model that copies its input is {copied:.3f} nats, less than chance "
                f"({chance:.3f}): labels are not shifted, so that nothing has to be predicted"
            )
        if known > 0.1 * chance:
            raise Caught(
                f"losses.{name} of a model that knows the next token is {known:.3f} nats, where "
                f"one that knows the token after it has {too_far:.3f}: labels are not shifted once"
            )
    return f"{len(scores[1])} terms are of the next token"


@torch.no_grad()
def nats_one_by_one(lm: FrozenLM, before: Tensor, ids: Tensor) -> Tensor:
    """Nats (A,) of each token after all tokens before it, which are read one after the other.

    before: (T, D) what is read first;  ids: (A,)
    """
    nats = []
    for place in range(len(ids)):
        read = torch.cat([before, lm.embed(ids[:place]).to(before.dtype)])[None]
        logits = lm.model(inputs_embeds=read).logits[0, -1].float()
        nats.append(-logits.log_softmax(-1)[ids[place]])
    return torch.stack(nats)


@torch.no_grad()
def nats_of_next(logits: Logits, ids: Tensor) -> Tensor:
    """Nats (T - 1,) of each token of a text after the first, read one after the other; ids: (T,)."""
    nats = []
    for place in range(1, len(ids)):
        nats.append(-logits(ids[None, :place])[0, -1].float().log_softmax(-1)[ids[place]])
    return torch.stack(nats)


def in_both_modes(
    model: nn.Module, prove: Callable[[Logits, Tensor], str], logits: Logits, ids: Tensor
) -> str:
    """A proof about logits in training and in evaluation mode, in which the model is left."""
    shown = ""
    for is_training in (True, False):
        model.train(is_training)
        shown = prove(logits, ids)
    return shown


@torch.no_grad()
def refuse_reading_ahead(logits: Logits, ids: Tensor) -> str:
    """A later token changes no earlier logit, and does change later ones; ids: (B, T) without padding."""
    known = _drawn_alike(logits, ids)
    places = sorted({1, ids.shape[1] // 2, ids.shape[1] - 1})
    for place in places:
        other = ids.clone()
        other[:, place] = _another(ids[:, place], known.shape[-1])
        found = _drawn_alike(logits, other)
        if (change := _change(known[:, :place], found[:, :place])) > _SAME:
            raise Caught(
                f"another token at place {place + 1} changes logits before it (by {change:.2g} of the "
                "largest): the model reads what it is to predict"
            )
        if _change(known[:, place:], found[:, place:]) <= _SAME:
            raise Caught(f"another token at place {place + 1} changes no logit at all")
    return f"{len(places)} tokens, each changes only what comes after it"


@torch.no_grad()
def refuse_reading_neighbours(logits: Logits, ids: Tensor) -> str:
    """Another sequence of the batch changes no logit; ids: (B, T) without padding, B at least 2."""
    known = _drawn_alike(logits, ids)
    for row in range(len(ids)):
        other = _another(ids, known.shape[-1])
        other[row] = ids[row]
        if (change := _change(known[row], _drawn_alike(logits, other)[row])) > _SAME:
            raise Caught(
                f"the logits of sequence {row + 1} change with the others of its batch (by {change:.2g} of "
                "the largest)"
            )
    return f"{len(ids)} sequences, none changes with the others"


def _drawn_alike(logits: Logits, ids: Tensor) -> Tensor:
    reseed("rehearsal", "logits")
    return logits(ids)


def _another(ids: Tensor, vocabulary: int) -> Tensor:
    return (ids + 1) % vocabulary


def _change(first: Tensor, second: Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((first - second).abs().max() / first.abs().max())
