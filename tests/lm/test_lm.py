"""Language models on CPU at toy size: what is scored, what is apart from it, and that ranks agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from products import Products
from torch import Tensor, nn

from latentbridge.config import load
from latentbridge.data.text import Corpus, unigram_bits_per_byte
from latentbridge.errors import ConfigError
from latentbridge.job import Run
from latentbridge.lm.config import LmConfig
from latentbridge.lm.train import LanguageModeling, train
from latentbridge.metric import mean
from latentbridge.nn.decoder import MakeFfn
from latentbridge.rundir import RunDir, read_json, read_jsonl
from latentbridge.train.first_minute import Weighable
from latentbridge.train.loop import LossTerm, Ordered

CONFIGS = Path(__file__).parents[2] / "configs" / "language_model"


def evaluated(workload: LanguageModeling, label: str = "final") -> dict[str, Any]:
    workload.model.eval()
    return {name: metric.value for name, metric in workload.evaluate(workload.model, 1, label).items()}


def test_the_loss_is_the_mean_nats_of_each_next_token(make):
    workload = make()
    batch = workload.load_batch([7, 0, 31])
    terms = workload.losses(workload.model, batch, step=1)
    logits = workload.model.logits(batch.blocks[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), batch.blocks[:, 1:].flatten())

    assert batch.blocks.shape == (3, 12)
    assert batch.num_tokens == 33
    assert terms["lm"].weight == 1.0
    assert terms["lm"].value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_model_that_copies_what_it_reads_scores_no_better_than_chance(make):
    """13 published runs trained a model to copy its input: 0.0002 nats in training, 24 when held out."""
    workload = make()
    V = workload.corpus.vocab_size

    class Copier(nn.Module):
        def forward(self, ids: Tensor) -> tuple[Tensor, list[Any]]:
            return 50.0 * F.one_hot(ids, V).float(), []

    copier = Copier()
    copier.head = workload.model.decoder.head
    copier.head.weight = nn.Parameter(torch.eye(V))
    workload.model.decoder = copier

    assert workload.losses(workload.model, workload.load_batch([0, 1]), 1)["lm"].value > math.log(V)
    assert evaluated(workload)["val_nll"] > math.log(V)


@pytest.mark.parametrize(("tokenizer", "V"), [("characters", 76), ("bytes", 256), ("bundled:llama_bpe", 658)])
def test_a_uniform_model_pays_the_logarithm_of_its_vocabulary_for_each_token(make, tokenizer: str, V: int):
    workload = make(**{"text.tokenizer": tokenizer})
    nn.init.zeros_(workload.model.decoder.head.weight)
    found = evaluated(workload)
    ids, num_bytes = workload.corpus.take("test", workload.corpus.eval_windows("test"))

    assert ids.shape == (7, 12)
    assert found["test_nll"] == pytest.approx(math.log(V))
    assert found["test_bits_per_byte"] == pytest.approx(math.log2(V) * 77 / sum(num_bytes))
    assert found["test_perplexity"] == pytest.approx(V)


def test_examples_come_in_an_order_that_tells_the_pass(make):
    workload = make()
    later = workload.order.take(workload.num_examples, 2)

    assert isinstance(workload, Ordered)
    assert all(index // workload.num_examples == 1 for index in later)
    assert workload.load_batch(later).blocks.shape == (2, 12)


def test_the_test_text_is_scored_at_the_end_only(make, config_of):
    workload = make()
    during, final = evaluated(workload, "3"), evaluated(workload, "final")

    assert set(final) == set(config_of().metric_names())
    assert set(during) == {name for name in final if name.startswith("val_")}
    assert final["val_nll"] != final["test_nll"]


def test_scores_do_not_depend_on_the_evaluation_batch(make):
    one, many = (evaluated(make(**{"eval.batch_size": size})) for size in (1, 5))

    assert one == pytest.approx(many, rel=1e-5)


class Routed(nn.Module):
    """Stands for a mixture of experts: it says something beside its output."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.ones(24))

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.scale * x, {"balance": self.scale.sum() + self.layer}


class Routing(LanguageModeling):
    """A workload with feed-forward layers, a term and a metric of its own."""

    def make_ffn(self) -> MakeFfn:
        return Routed

    def extra_losses(self, extras: list[Any]) -> dict[str, LossTerm]:
        return {"balance": LossTerm(torch.stack([extra["balance"] for extra in extras]).sum(), 0.5)}

    def observe(self, scored: Any, blocks: Tensor, prefix: str) -> Any:
        return len(scored.extras), int(blocks[0, 0])

    def extra_metrics(self, observed: list[Any], prefix: str) -> dict[str, Any]:
        return {f"{prefix}_layers": mean([layers for layers, _ in observed])}


def test_other_terms_stand_beside_the_language_models_and_never_in_it(make):
    workload = make(Routing)
    terms = workload.losses(workload.model, workload.load_batch([0, 1]), 1)
    found = workload.evaluate(workload.model.eval(), 1, "final")

    assert terms["balance"].value.item() == 2 * 24 + 0 + 1
    assert terms["lm"].value < 6
    assert (found["val_layers"].value, found["val_layers"].n) == (2, 3)
    assert "test_layers" in found


@pytest.mark.parametrize("changes", [{}, {"model.tied": False, "model.positions": "learned"}])
def test_flops_are_those_that_torch_counts(make, changes):
    workload = make(**changes)
    batch = workload.load_batch([7, 0, 31])
    with Products() as products:
        workload.losses(workload.model, batch, 1)["lm"].value.backward()

    assert workload.flops(batch, 1) == products.total


def test_its_heaviest_work_can_be_tried_before_the_first_update(make):
    workload, seen = make(), []
    workload.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    for step in workload.heaviest_steps(6):
        workload.losses(workload.model, workload.load_batch(workload.heaviest(5)), step)
    workload.evaluate_heaviest(workload.model)

    assert isinstance(workload, Weighable)
    assert seen == [(5, 12), (3, 12)]


def test_a_run_says_what_its_text_was(make):
    workload = make()
    facts = read_json(workload._run.folder.path / "text.json")

    assert facts == workload.corpus.facts()
    assert (facts["eval_windows"], facts["eval_scored_tokens"]) == (7, 77)


def run_of(folder: Path) -> Run:
    folder.mkdir(parents=True)
    return Run(RunDir(folder))


@pytest.mark.parametrize(("engine", "zero_stage"), [("torch", 1), ("deepspeed", 1), ("deepspeed", 3)])
def test_one_rank_and_two_measure_the_same(ranks, config_of, tmp_path, engine: str, zero_stage: int):
    config = config_of(**{"train.engine": engine, "train.zero_stage": zero_stage, "model.layers": 1})
    one, two = (
        ranks(train, config, run_of(tmp_path / f"ranks{n}" / "run"), world_size=n)[0]["final"] for n in (1, 2)
    )

    assert set(one) == set(two) == set(config.metric_names())
    for name, record in one.items():
        assert two[name]["n"] == record["n"] == 7
        assert two[name]["value"] == pytest.approx(record["value"], rel=1e-4), name


def test_the_tiny_config_that_ships_learns_within_a_few_updates(ranks, tmp_path):
    config = load(LmConfig, CONFIGS / "tiny.yaml")
    few = config.train.model_copy(update={"steps": 30, "eval_every": 30})
    small = config.text.model_copy(update={"eval_tokens": 2048})
    config = config.model_copy(update={"train": few, "text": small})
    (summary,) = ranks(train, config, run_of(tmp_path / "launch" / "run"), world_size=1)

    records = list(read_jsonl(tmp_path / "launch" / "run" / "train.jsonl"))
    assert records[0]["losses"].keys() == {"lm"}
    corpus = Corpus(config.text, tmp_path / "launch" / "cache")
    assert summary["final"]["test_bits_per_byte"]["value"] < unigram_bits_per_byte(corpus, "test") - 0.3


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"model.heads": 5}, "multiple of heads 5"), ({"model.heads": 8}, "dim / heads is 3")],
)
def test_impossible_models_are_refused(config_of, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        config_of(**changes)
