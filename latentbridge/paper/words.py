"""What may be said about static and dynamic choice of a mixer, by outcome; every claim has its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentbridge.paper.routing import RoutingPaper


def summary(paper: RoutingPaper) -> str:
    """Outcome, losses and split."""
    losses = (
        f"{paper.roles.split} loss {paper.quote.value(paper.roles.dynamic, paper.loss)} against "
        f"{paper.quote.value(paper.roles.baseline, paper.loss)}"
    )
    if paper.won():
        gain = paper.quote.gain(paper.roles.dynamic, paper.roles.baseline, paper.loss)
        return f"Dynamic routing improves on the static baseline by {gain} ({losses}); {_splits(paper)}."
    return f"Dynamic routing: {_splits(paper)}. {paper.judged()} ({losses})."


def discussion(paper: RoutingPaper) -> str:
    """Sections 6.1 to 6.3 by the choice rule; of collapse wherever it is seen."""
    parts = [_won(paper)] if paper.won() else [_static(paper)]
    if paper.collapsed():
        parts.append(_collapse(paper))
    elif paper.won():
        parts.append(_balance(paper))
    if not paper.won():
        number = "6.3" if paper.collapsed() else "6.2"
        parts.append(
            f"### {number} Alternative directions\n\nOther static ratios of the two mixers, a choice for "
            "each head, and longer contexts, where softmax attention costs more, are open."
        )
    return "\n\n".join(parts)


def _won(paper: RoutingPaper) -> str:
    quote, roles = paper.quote, paper.roles
    verdict = quote.verdict(roles.dynamic, roles.baseline, paper.metric)
    return (
        f"### 6.1 Performance\n\nA choice for each token lowers the {roles.split} loss by "
        f"{quote.gain(roles.dynamic, roles.baseline, paper.loss)}, beyond the seeds' spread: {verdict}. "
        f"Accuracy moves by {quote.points(roles.dynamic, roles.baseline, paper.accuracy)}.\n\n"
        f"### 6.2 Patterns\n\nOf the tokens, {_splits(paper)}. A split alone does not say what "
        "a layer learned to tell apart."
    )


def _static(paper: RoutingPaper) -> str:
    verdict = paper.quote.verdict(paper.roles.dynamic, paper.roles.baseline, paper.metric)
    numbers = "" if paper.outcome == "void" else f": {verdict}"
    return (
        f"### 6.1 Why a static choice suffices\n\n{paper.judged()}{numbers}. Three reasons are "
        "possible, and these runs do not tell them apart:\n\n"
        "1. The router, and mixers that a token does not take, are overhead.\n"
        "2. A choice by layer is fine enough; by token it adds nothing at this size.\n"
        "3. Balancing and sampled routes make the model harder to train."
    )


def _collapse(paper: RoutingPaper) -> str:
    _, cell = paper.quote.results.cell(paper.roles.dynamic)
    weight = next((found for keys in _WEIGHTS if (found := cell.setting(*keys)) is not None), "as configured")
    layers = "; ".join(f"layer {layer.number}: {layer.status.lower()}" for layer in paper.layers)
    number = "6.3" if paper.won() else "6.2"
    return (
        f"### {number} Collapse\n\nRouting collapsed to {paper.larger_mixer()}, which takes "
        f"{paper.largest_share()} of the tokens of one layer ({layers}). The balance weight, {weight}, was "
        "too small to prevent it; 0.05 is the next to try."
    )


def _balance(paper: RoutingPaper) -> str:
    if paper.balanced():
        text = "Every seed splits every routed layer within 40 to 60 %: the balance weight was sufficient."
    else:
        text = "No layer collapsed, but not every split is within 40 to 60 %: balance holds only in part."
    return f"### 6.3 Balance\n\n{text}"


_WEIGHTS = (("routing", "balance_weight"), ("routing", "balance", "weight"))


def _splits(paper: RoutingPaper) -> str:
    return ", ".join(
        f"gated delta reads {paper.share(layer)} in layer {layer.number}" for layer in paper.layers
    )
