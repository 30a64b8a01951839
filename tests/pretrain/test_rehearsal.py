"""Each fault that makes a language model's numbers void, put back: the rehearsal finds it and says so."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from latentbridge.config import Tree, build, load, read_yaml
from latentbridge.data.tokenizers import build_tokenizer
from latentbridge.pretrain import rehearsal, train
from latentbridge.pretrain.config import PretrainConfig
from latentbridge.rehearsal import checks
from latentbridge.rehearsal.contract import Caught, Stage
from latentbridge.train import checkpoint
from latentbridge.train.engine import Engine
from latentbridge.train.loop import LossTerm

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
LLAMA, GPT2 = "target_llama", "source_gpt2"
MINE = rehearsal.PretrainRehearsal()


@pytest.fixture(scope="session", autouse=True)
def tokenizer() -> None:
    """The pieces of one tokenizer are found once for all tests, also for those that fork."""
    rehearsal._build_once("bpe")
    rehearsal._build_once("characters")


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    """Makes the stage of a base config that ships, with changes."""
    number = count()

    def make(name: str = GPT2, **changes: Any) -> Stage:
        path = CONFIGS / f"{name}.yaml"
        here = {(): read_yaml(path).origin(())}
        config = build(PretrainConfig, read_yaml(path).override(Tree(changes, here)))
        return Stage(MINE, MINE.shrink(config, tmp_path), tmp_path / f"stage{next(number)}", [config])

    return make


@pytest.fixture
def verdict(ranks: Any) -> Callable[..., tuple[bool, str]]:
    """Makes a check in a process of its own: the loop joins a group of ranks, which no fork may inherit."""

    def judge(check: Callable[[Stage], str], stage: Stage) -> tuple[bool, str]:
        def prove() -> tuple[bool, str]:
            try:
                return True, check(stage)
            except Caught as caught:
                return False, str(caught)

        (answer,) = ranks(prove, world_size=1)
        return answer

    return judge


@pytest.mark.parametrize("name", [LLAMA, GPT2])
def test_the_models_that_ship_pass_every_check(stage, verdict, name: str):
    def every(made: Stage) -> str:
        return "\n".join(check.prove(made) for check in (*checks.CHECKS, *MINE.checks))

    is_good, text = verdict(every, stage(name))
    assert is_good, text
    assert len(text.splitlines()) == 10


def test_a_small_model_keeps_family_heads_and_whether_sizes_differ():
    big = load(PretrainConfig, CONFIGS / f"{LLAMA}.yaml")
    wide = big.model_copy(update={"model": big.model.model_copy(update={"width": 512, "layers": 1})})
    one, other = (MINE.shrink(config, Path()).model for config in (big, wide))

    assert (one.family, one.heads, one.kv_heads, one.layers, other.layers) == ("llama", 8, 4, 2, 1)
    assert one.width < other.width < big.model.width


def misplaced(shift: int) -> Any:
    """The loss with labels that are moved by so many places more."""
    cross_entropy = train.F.cross_entropy

    def moved(logits: Tensor, targets: Tensor, **words: Any) -> Tensor:
        return cross_entropy(logits, targets.roll(shift), **words)

    return moved


@pytest.mark.parametrize(
    ("shift", "complaint"),
    [
        (1, r"losses.answer of a model that copies its input is .* nats, less than chance \(4.\d+\)"),
        (-1, "losses.answer of a model that knows the next token is .* labels are not shifted once"),
    ],
)
def test_labels_that_are_not_shifted_once_are_caught(stage, monkeypatch, shift: int, complaint: str):
    """13 temperature runs were void: their model had to predict what it was reading."""
    assert "2 terms are of the next token" in rehearsal.labels(stage())

    monkeypatch.setattr(train.F, "cross_entropy", misplaced(shift))
    with pytest.raises(Caught, match=complaint):
        rehearsal.labels(stage())


def test_a_gold_answer_that_the_evaluation_reads_is_caught(stage, monkeypatch):
    prompt_text = train.prompt_text
    monkeypatch.setattr(train, "prompt_text", lambda p, c: f"{prompt_text(p, c)}{p.gold} ")

    with pytest.raises(Caught, match=r"answer_nll is .*; read one token after the other"):
        rehearsal.labels(stage())
    with pytest.raises(Caught, match=r"before the answer of train problem 0 stands '.*' *, which is not its"):
        rehearsal.answers(stage())


@pytest.mark.parametrize("name", [LLAMA, GPT2])
def test_a_missing_causal_mask_is_caught(stage, monkeypatch, name: str):
    def blind(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **words: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value, None, **{**words, "is_causal": False})

    build_model = train.build_model

    def leaking(*words: Any) -> nn.Module:
        model = build_model(*words)
        model.config._attn_implementation = "blind"
        return model

    assert "each changes only what comes after it" in rehearsal.causality(stage(name))
    AttentionInterface.register("blind", blind)
    monkeypatch.setattr(train, "build_model", leaking)
    with pytest.raises(Caught, match="another token at place 2 changes logits before it"):
        rehearsal.causality(stage(name))


def test_a_leak_in_training_mode_alone_is_caught(stage):
    """Expert choice: who gets a place in training depends on tokens that come later."""
    made = stage()

    def leak(module: nn.Module, _: Any, states: Tensor) -> Tensor:
        return states + states.mean(dim=1, keepdim=True) if module.training else states

    made.workload.model.base_model.wte.register_forward_hook(leak)
    with pytest.raises(Caught, match="changes logits before it"):
        rehearsal.causality(made)


def test_a_model_that_reads_nothing_is_caught(stage):
    made = stage()
    made.workload.model.base_model.wte.register_forward_hook(lambda *words: torch.zeros_like(words[2]))

    with pytest.raises(Caught, match="another token at place 2 changes no logit at all"):
        rehearsal.causality(made)


def test_sequences_that_change_each_other_are_caught(stage):
    """Capacity that is shared by a batch: one sequence takes another's places."""
    made = stage()
    assert "2 sequences, none changes with the others" in rehearsal.neighbours(made)

    made.workload.model.base_model.wte.register_forward_hook(lambda *words: words[2] + words[2].mean(dim=0))
    with pytest.raises(Caught, match="the logits of sequence 1 change with the others of its batch"):
        rehearsal.neighbours(made)


def test_positions_that_count_padding_are_caught(stage, monkeypatch):
    from latentbridge.data import decoding, language_model, scoring

    def naive(mask: Tensor) -> Tensor:
        return torch.arange(mask.shape[1]).expand_as(mask)

    for module in (decoding, language_model, scoring):
        monkeypatch.setattr(module, "positions", naive)
    with pytest.raises(Caught, match=r"answer_nll is .* in batches of 2 and .* one by one"):
        rehearsal.neighbours(stage())


def test_a_term_that_is_detached_and_a_weight_that_nothing_trains_are_caught(stage, monkeypatch):
    made = stage()
    made.workload.model.register_parameter("forgotten", nn.Parameter(torch.ones(3)))
    with pytest.raises(Caught, match="forgotten: no term of the loss reaches it"):
        checks.gradients(made)

    losses = train.Pretraining.losses

    def detached(*words: Any) -> dict[str, LossTerm]:
        terms = losses(*words)
        question = terms["question"]
        return {**terms, "question": LossTerm(question.value.detach(), question.weight)}

    monkeypatch.setattr(train.Pretraining, "losses", detached)
    with pytest.raises(Caught, match=r"losses.question has a weight in update 1, but sends no gradient"):
        checks.gradients(stage())


def test_an_evaluation_that_draws_is_caught(stage, monkeypatch):
    answer_nll = train.answer_nll

    def noisy(*words: Any) -> tuple[Tensor, Tensor]:
        nll, counts = answer_nll(*words)
        return nll + torch.rand_like(nll), counts

    monkeypatch.setattr(train, "answer_nll", noisy)
    with pytest.raises(Caught, match="two evaluations of the same weights differ in 1 metrics: answer_nll"):
        checks.repeatable(stage())


def test_a_final_evaluation_of_the_last_weights_is_caught(stage, verdict, monkeypatch):
    monkeypatch.setattr(checkpoint, "load_best", lambda *_: None)

    is_good, text = verdict(checks.best_weights, stage())
    assert not is_good
    assert text.startswith("the final evaluation has not the weights of update 1")


def test_evaluation_mode_left_on_is_caught(stage, verdict, monkeypatch):
    set_training = Engine.set_training
    monkeypatch.setattr(Engine, "set_training", lambda self, on: None if on else set_training(self, on))

    is_good, text = verdict(checks.training_mode, stage())
    assert not is_good
    assert "is made in evaluation mode" in text


def test_an_export_of_other_weights_is_caught(stage, monkeypatch):
    assert "weights, loaded as others load them" in rehearsal.export(stage())

    monkeypatch.setattr(train, "load_weights", lambda *_: None)
    with pytest.raises(Caught, match=r"the export's transformer\..* is not the checkpoint's"):
        rehearsal.export(stage())


def test_an_export_that_says_something_else_is_caught(stage, monkeypatch):
    """Weights alone are no model: here the number of heads is lost on the way."""
    build_model = train.build_model
    made = stage()
    assert made.workload.model.config.n_head == 6
    fewer = lambda config, tokenizer: build_model(config.model_copy(update={"heads": 3}), tokenizer)  # noqa: E731

    monkeypatch.setattr(train, "build_model", fewer)
    with pytest.raises(Caught, match="has the checkpoint's weights, but says something else"):
        rehearsal.export(made)


def test_the_tokenizer_of_a_rehearsal_is_the_runs():
    assert rehearsal._build_once("characters").get_vocab() == build_tokenizer("characters").get_vocab()
