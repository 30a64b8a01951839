"""Pretraining on CPU at toy size: the terms mean what they say, and the export is a model anyone can load."""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
import yaml
from products import Products

from latentbridge.config import Origin, Tree, build, load, to_yaml
from latentbridge.data.language_model import FrozenLM, load_frozen
from latentbridge.data.problems import load_problems
from latentbridge.errors import ConfigError
from latentbridge.job import Run
from latentbridge.pretrain.config import PretrainConfig
from latentbridge.pretrain.train import Pretraining, score, train
from latentbridge.rundir import RunDir, read_json, read_jsonl

TINY = {
    "seed": 5,
    "model": {
        "family": "llama",
        "tokenizer": "bpe",
        "width": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "ffn": 48,
    },
    "problems": {"train_examples": 48, "eval_examples": 6, "templates": "one_step"},
    "optim": {"lr": 3e-3},
    "train": {
        "engine": "torch",
        "steps": 12,
        "batch_size": 8,
        "eval_every": 6,
        "checkpoint_every": 6,
        "log_every": 3,
    },
    "eval": {"batch_size": 4, "max_new_tokens": 12},
}
GPT2 = {"family": "gpt2", "tokenizer": "characters", "width": 24, "layers": 2, "heads": 3, "ffn": 40}
CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"


def config_of(**changes) -> PretrainConfig:
    return build(PretrainConfig, Tree({**TINY, **changes}, {(): Origin("test.yaml", 1)}))


@pytest.mark.parametrize("changes", [{}, {"model": GPT2}], ids=["llama", "gpt2"])
def test_flops_are_those_that_torch_counts_but_for_padding(changes):
    workload = Pretraining(config_of(**changes), Mock())
    batch = workload.load_batch([7, 0, 31])
    with Products() as products:
        terms = workload.losses(workload.model, batch, step=1)
        (terms["answer"].value + terms["question"].value).backward()

    assert batch.num_tokens < batch.ids.numel()
    assert workload.flops(batch, 1) * batch.ids.numel() / batch.num_tokens == products.total


@pytest.mark.parametrize("changes", [{}, {"model": GPT2}], ids=["llama", "gpt2"])
def test_the_loss_terms_are_the_mean_nats_of_question_and_answer_tokens(changes):
    workload = Pretraining(config_of(**changes), Mock())
    batch = workload.load_batch([7, 0, 31])
    terms = workload.losses(workload.model, batch, step=1)

    sums = {"question": [0.0, 0], "answer": [0.0, 0]}
    for row, index in enumerate([7, 0, 31]):
        problem = load_problems(workload.config.problems, "train")[index]
        lm = FrozenLM(workload.model, workload.tokenizer)
        question, _ = lm.encode([f"{problem.question}\nA: "], add_bos=True, padding="right")
        answer, _ = lm.encode([problem.answer], add_bos=False, add_eos=True, padding="right")
        ids = torch.cat([question, answer], dim=1)
        assert batch.ids[row, : ids.shape[1]].tolist() == ids[0].tolist()
        each = F.cross_entropy(workload.model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        start = question.shape[1] - 1
        for name, part in (("question", each[:start]), ("answer", each[start:])):
            sums[name][0] += part.sum().item()
            sums[name][1] += len(part)
    for name, (total, count) in sums.items():
        assert terms[name].value.item() == pytest.approx(total / count, rel=1e-5)
    assert (terms["answer"].weight, terms["question"].weight) == (1.0, 0.2)
    assert batch.num_tokens == sum(count for _, count in sums.values()) + 3


def test_scores_do_not_depend_on_the_evaluation_batch():
    workload = Pretraining(config_of(), Mock())
    lm = FrozenLM(workload.model.eval(), workload.tokenizer)
    one, many = (
        score(lm, config_of(eval={"batch_size": size, "max_new_tokens": 9}), Mock()) for size in (1, 5)
    )

    assert one["accuracy"] == many["accuracy"]
    assert one["accuracy"].n == 6
    assert one["answer_nll"].value == pytest.approx(many["answer_nll"].value, rel=1e-5)
    # random weights know nothing: about the logarithm of the vocabulary
    assert one["answer_nll"].value == pytest.approx(math.log(len(workload.tokenizer)), rel=0.1)


def test_a_run_learns_and_exports_half_precision_weights_with_their_origin(tmp_path, ranks):
    config = config_of()
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (summary,) = ranks(train, config, Run(RunDir(tmp_path)), world_size=1)

    losses = [record["losses"]["answer"] for record in read_jsonl(tmp_path / "train.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    export = tmp_path / "export"
    origin = read_json(export / "provenance.json")
    assert (origin["seed"], origin["steps"]) == (5, 12)
    assert origin["scores_fp16"] == summary["export"]
    assert json.loads((export / "config.json").read_text())["dtype"] == "float16"
    lm = load_frozen(str(export), torch.float16, torch.device("cpu"))
    assert lm.embedding.dtype == torch.float16
    best = min(r["metrics"]["answer_nll"]["value"] for r in read_jsonl(tmp_path / "metrics.jsonl"))
    assert summary["export"]["answer_nll"]["value"] == pytest.approx(best, abs=2e-3)


def test_the_shipped_configs_are_valid_and_fit_in_fifteen_megabytes_together():
    sizes = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        config = load(PretrainConfig, path)
        small = build(PretrainConfig, Tree(yaml.safe_load(to_yaml(config)), {(): Origin(path.name, 1)}))
        small = small.model_copy(update={"problems": small.problems.model_copy(update={"train_examples": 2})})
        sizes[path.stem] = sum(p.numel() for p in Pretraining(small, Mock()).model.parameters())

    assert sizes.keys() == {"source_gpt2", "target_llama"}
    assert 3_500_000 < sizes["target_llama"] < 4_700_000
    assert 2_700_000 < sizes["source_gpt2"] < 3_300_000
    assert 2 * sum(sizes.values()) < 15_000_000


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ({**TINY["model"], "heads": 5}, "heads 5"),
        ({**TINY["model"], "kv_heads": 3}, "kv_heads 3"),
        ({**GPT2, "kv_heads": 1}, "gpt2"),
    ],
)
def test_impossible_models_are_refused(model, word):
    with pytest.raises(ConfigError, match=word):
        config_of(model=model)


def test_gsm8k_is_refused_since_the_tokenizers_do_not_know_it():
    with pytest.raises(ConfigError, match="word_problems"):
        config_of(problems={"name": "gsm8k"})
