"""What each expert takes: pairs by class of token, and what a token's first expert tells about the token."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from latentbridge.metric import Metric, void

# of the test text, at the end: bits, means over layers
SPECIALISATION = ("class_information", "token_information")

CHARACTER_CLASSES = ("lower case", "upper case", "digit", "space", "newline", "punctuation", "other")
PIECE_CLASSES = ("word start", "continuation", "number", "punctuation", "whitespace", "other")
# the first expert of a token that none took
NOBODY = -1
# of text that is kept with the experts that took it
_PASSAGE_CHARACTERS = 600
_SHUFFLES = 5

Ids = NDArray[numpy.int64]


@dataclass(frozen=True)
class Choices:
    """One batch: ids (B, T) of what was read, and by layer, (B·T,), the first expert or NOBODY.

    loads: by layer (C, E), pairs of each class of token
    """

    ids: Ids
    first: list[Ids]
    loads: list[Ids]


def classes_of(texts: Sequence[str]) -> tuple[tuple[str, ...], Ids]:
    """The names of the classes, and (V,) the class of each id; texts: what each id stands for.

    Characters and bytes are told apart by themselves, pieces of words by how they begin: one without a space
    before it is a continuation, which the first word of a paragraph is then too.
    """
    single = max(map(len, texts)) <= 1
    names = CHARACTER_CLASSES if single else PIECE_CLASSES
    class_of = _character_class if single else _piece_class
    return names, numpy.array([names.index(class_of(text)) for text in texts])


def _character_class(text: str) -> str:
    if text == "\n":
        return "newline"
    if text.isspace():
        return "space"
    if text.isdigit():
        return "digit"
    if text.isalpha():
        return "upper case" if text.isupper() else "lower case" if text.islower() else "other"
    return "punctuation" if text.isprintable() and text.isascii() and text else "other"


def _piece_class(text: str) -> str:
    bare = text.strip()
    if not bare:
        return "whitespace" if text else "other"
    if bare.isdigit():
        return "number"
    if any(character.isalpha() for character in bare):
        return "word start" if text[0].isspace() else "continuation"
    return "punctuation" if bare.isprintable() and "\ufffd" not in bare else "other"


def class_loads(classes: Ids, sent: NDArray[numpy.bool_], num_classes: int) -> Ids:
    """(C, E) pairs; classes: (N,) of each token, sent: (N, E) whether an expert takes it."""
    members = classes[None, :] == numpy.arange(num_classes)[:, None]  # (C, N)
    loads: Ids = members.astype(numpy.int64) @ sent.astype(numpy.int64)
    return loads


class TokenClasses:
    """The class of each token of a text."""

    def __init__(self, texts: Sequence[str]) -> None:
        """texts: what each id stands for."""
        self.texts = texts
        self.names, self._class_of_id = classes_of(texts)

    def choices(self, ids: Ids, first: Sequence[Ids], sent: Sequence[NDArray[numpy.bool_]]) -> Choices:
        """ids: (B, T);  by layer, first: (B·T,), see `Choices`, and sent: (B·T, E), whom each token met."""
        classes = self._class_of_id[ids.ravel()]
        loads = [class_loads(classes, layer, len(self.names)) for layer in sent]
        return Choices(ids, list(first), loads)


@dataclass(frozen=True)
class Information:
    """Mutual information of a token's first expert and something about the token, in bits.

    A plain estimate is biased upwards, the more the fewer tokens there are for each pair of values. Miller
    and Madow's term (1955) takes off its first order; where the token decides the expert it leaves the
    expert's entropy. What is left of the bias shows in `shuffled`, of experts dealt to tokens at random: its
    truth is 0.
    """

    bits: float
    shuffled: float
    plain: float
    expert_entropy: float
    tokens: int

    def as_record(self) -> dict[str, Any]:
        """Plain data; share: of the entropy of the expert, None where one expert has all."""
        share = self.bits / self.expert_entropy if self.expert_entropy > 0 else None
        return {**vars(self), "share": share}


def information(experts: Ids, values: Ids) -> Information | None:
    """Of tokens that have an expert, both (N,); None where none has."""
    experts, values = experts[experts != NOBODY], values[experts != NOBODY]
    if not len(experts):
        return None
    generator = numpy.random.default_rng(0)
    plain, bits = _mutual(experts, values)
    shuffled = [_mutual(generator.permutation(experts), values)[1] for _ in range(_SHUFFLES)]
    entropy = sum(_entropy(experts))
    return Information(bits, statistics.fmean(shuffled), plain, entropy, len(experts))


def _mutual(experts: Ids, values: Ids) -> tuple[float, float]:
    """Bits, as counted and with Miller and Madow's term."""
    parts = [_entropy(experts), _entropy(values), _entropy(values * (1 + experts.max()) + experts)]
    plain, terms = ([part[index] for part in parts] for index in (0, 1))
    found = plain[0] + plain[1] - plain[2]
    return found, found + terms[0] + terms[1] - terms[2]


def _entropy(values: Ids) -> tuple[float, float]:
    """Bits, and what Miller and Madow add to them."""
    counts = numpy.unique(values, return_counts=True)[1]
    total = int(counts.sum())
    shares = counts / total
    # equal counts add up to the same whatever their order
    bits = -math.fsum(shares * numpy.log2(shares))
    return bits, (len(counts) - 1) / (2 * total * math.log(2))


def describe(batches: Sequence[Choices], texts: Sequence[str]) -> dict[str, Any]:
    """All that figures need, as plain data; texts: what each id stands for."""
    names, class_of_id = classes_of(texts)
    ids = numpy.concatenate([batch.ids.ravel() for batch in batches])
    layers = []
    for layer in range(len(batches[0].first)):
        first = numpy.concatenate([batch.first[layer] for batch in batches])
        found = {"class": information(first, class_of_id[ids]), "token": information(first, ids)}
        layers.append(
            {
                "load": sum(batch.loads[layer] for batch in batches).tolist(),  # type: ignore[union-attr]
                "without_expert": int((first == NOBODY).sum()),
                "information": {name: part and part.as_record() for name, part in found.items()},
            }
        )
    tokens = [int((class_of_id[ids] == number).sum()) for number in range(len(names))]
    passages = _passages(batches[0], texts)
    return {"classes": list(names), "tokens": tokens, "layers": layers, "passages": passages}


def _passages(batch: Choices, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The first windows of a text, which do not follow upon one another, up to some hundred characters."""
    width, room, found = batch.ids.shape[1], _PASSAGE_CHARACTERS, []
    for row, ids in enumerate(batch.ids):
        pieces: list[str] = []
        for number in ids:
            if room <= 0:
                break
            pieces.append(texts[number])
            room -= len(pieces[-1])
        start = row * width
        experts = [layer[start : start + len(pieces)].tolist() for layer in batch.first]
        if pieces:
            found.append({"tokens": pieces, "experts": experts})
    return found


def information_metrics(described: dict[str, Any], prefix: str) -> dict[str, Metric]:
    """Means over layers; n: tokens that have an expert, in the layer with the fewest."""
    metrics = {}
    for name in ("class", "token"):
        found = [layer["information"][name] for layer in described["layers"]]
        if all(found):
            value = statistics.fmean(part["bits"] for part in found)
            metric = Metric(value=value, n=min(part["tokens"] for part in found))
        else:
            metric = void("in some layer no token has an expert")
        metrics[f"{prefix}_{name}_information"] = metric
    return metrics
