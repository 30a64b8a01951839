"""Each fault that makes a language model's numbers void, put back: the rehearsal finds it and says so."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from latentbridge.config import Tree, build, read_yaml
from latentbridge.lm import model as lm_model
from latentbridge.lm import rehearsal
from latentbridge.lm.config import LmConfig
from latentbridge.nn import decoder
from latentbridge.rehearsal import checks
from latentbridge.rehearsal.contract import Caught, Stage

BASE = Path(__file__).parents[2] / "configs" / "language_model" / "tiny.yaml"
MINE = rehearsal.LmRehearsal()
# as the bench has it: where the other differs from the tiny config
BENCH = {
    "model": {
        "dim": 64,
        "layers": 3,
        "heads": 4,
        "positions": "learned",
        "norm": "layernorm",
        "tied": False,
        "bias": True,
        "dropout": 0.1,
        "init_std": None,
    }
}
TEMPERATURE = {
    "text.tokenizer": "bpe",
    "model.scale_embeddings": True,
    "model.activation": "silu",
    "model.dropout": 0.1,
    "model.dropout_everywhere": True,
}


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    """Makes the stage of the config that ships, with changes."""
    number = count()

    def make(**changes: Any) -> Stage:
        tree = read_yaml(BASE)
        config = build(LmConfig, tree.override(Tree(changes, {(): tree.origin(())})))
        return Stage(MINE, MINE.shrink(config, tmp_path), tmp_path / f"stage{next(number)}", [config])

    return make


@pytest.mark.parametrize("changes", [{}, BENCH, TEMPERATURE], ids=["tiny", "bench", "temperature"])
def test_dense_models_of_all_kinds_pass_every_check(stage, ranks, changes):
    def every(made: Stage) -> list[str]:
        return [check.prove(made) for check in (*checks.CHECKS, *MINE.checks)]

    (found,) = ranks(every, stage(**changes), world_size=1)
    assert len(found) == 9


def test_a_small_model_keeps_its_heads_and_whether_sizes_differ(stage):
    small, wide = stage().config, stage(**{"model.dim": 256, "model.layers": 1}).config

    assert (small.model.heads, small.model.layers, wide.model.layers) == (4, 2, 1)
    assert small.model.dim < wide.model.dim < 256
    assert small.text.context < 20


@pytest.mark.parametrize(
    ("read", "targets", "complaint"),
    [
        (slice(0, -1), slice(0, -1), "a model that copies its input is .* less than chance"),
        (slice(0, -2), slice(2, None), "labels are not shifted once"),
    ],
)
def test_labels_that_are_not_shifted_once_are_caught(stage, monkeypatch, read, targets, complaint: str):
    """13 temperature runs were void: their model had to predict what it was reading."""
    assert "1 terms are of the next token" in rehearsal.labels(stage())

    def forward(self: Any, blocks: Tensor) -> Any:
        states, extras = self.decoder(blocks[:, read])
        return lm_model.Scored(*self.decoder.head(states, blocks[:, targets]), extras)

    monkeypatch.setattr(lm_model.LanguageModel, "forward", forward)
    with pytest.raises(Caught, match=complaint):
        rehearsal.labels(stage())


def test_scores_that_are_not_of_their_own_text_are_caught(stage):
    made = stage()
    known = made.evaluated
    known["test_nll"] = known["val_nll"]

    with pytest.raises(Caught, match=r"test_nll is .*; read one token after the other"):
        rehearsal.labels(made)


def test_a_missing_causal_mask_is_caught(stage, monkeypatch):
    attend = decoder.F.scaled_dot_product_attention
    assert "each changes only what comes after it" in rehearsal.causality(stage())

    monkeypatch.setattr(
        decoder.F, "scaled_dot_product_attention", lambda *w, **k: attend(*w, **{**k, "is_causal": False})
    )
    with pytest.raises(Caught, match="another token at place 2 changes logits before it"):
        rehearsal.causality(stage())


def test_a_leak_in_training_mode_alone_is_caught(stage):
    """Expert choice: who gets a place in training depends on tokens that come later."""
    made = stage()

    def leak(module: nn.Module, _: Any, states: Tensor) -> Tensor:
        return states + states.mean(dim=1, keepdim=True) if module.training else states

    made.workload.model.decoder.embedding.register_forward_hook(leak)
    with pytest.raises(Caught, match="changes logits before it"):
        rehearsal.causality(made)


def test_sequences_that_change_each_other_are_caught(stage):
    """Capacity that is shared by a batch: one sequence takes another's places."""
    made = stage()
    assert "2 sequences, none changes with the others" in rehearsal.neighbours(made)

    made.workload.model.decoder.embedding.register_forward_hook(lambda *w: w[2] + w[2].mean(dim=0))
    with pytest.raises(Caught, match="the logits of sequence 1 change with the others of its batch"):
        rehearsal.neighbours(made)


def test_a_paragraph_in_two_splits_is_caught(stage, monkeypatch):
    assert "none in two of them" in rehearsal.splits(stage())

    load_splits = rehearsal.load_splits

    def leaking(config: Any) -> Any:
        found = load_splits(config)
        return {**found, "test": [*found["test"], found["validation"][5]]}

    monkeypatch.setattr(rehearsal, "load_splits", leaking)
    with pytest.raises(Caught, match="validation and test share 1 paragraphs"):
        rehearsal.splits(stage())


def test_a_term_that_is_detached_is_caught(stage, monkeypatch):
    from latentbridge.lm import train

    mean_nats = train.mean_nats
    monkeypatch.setattr(train, "mean_nats", lambda scored: mean_nats(scored).detach())
    with pytest.raises(Caught, match=r"losses.lm has a weight in update 1, but sends no gradient"):
        checks.gradients(stage())
