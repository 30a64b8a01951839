"""The small mixture that ships: what it is trained on, and that others load what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OlmoeForCausalLM

from latentbridge.config import Origin, Tree, build, config_id, load
from latentbridge.data.assets import ASSETS
from latentbridge.errors import ConfigError
from latentbridge.job import Run
from latentbridge.perft.base import MoeBase, train
from latentbridge.perft.config import MoeBaseConfig
from latentbridge.rundir import RunDir, read_json

TINY = {
    "seed": 5,
    "text": {"tokenizer": "bundled:llama_bpe", "context": 11, "eval_tokens": 77},
    "model": {"width": 12, "layers": 2, "heads": 3, "num_experts": 5, "top_k": 2, "expert_width": 8},
    "optim": {"lr": 1e-2},
    "train": {"engine": "torch", "steps": 4, "batch_size": 4, "log_every": 1, "eval_every": 2},
    "eval": {"batch_size": 3},
}


def config_of(**changes: Any) -> MoeBaseConfig:
    origins = {(): Origin("test.yaml", 1)}
    return build(MoeBaseConfig, Tree(TINY, origins).override(Tree(changes, origins)))


def run_of(path: Path) -> Run:
    path.mkdir(parents=True)
    return Run(RunDir(path))


def test_the_loss_is_of_the_next_token_and_balance_is_1_when_balanced(tmp_path):
    made = MoeBase(config_of(), run_of(tmp_path / "launch" / "run"))
    blocks = made.load_batch([0, 1, 2]).blocks
    terms = made.losses(made.model, made.load_batch([0, 1, 2]), 1)
    logits = made.model.logits(blocks[:, :-1])

    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())
    torch.testing.assert_close(terms["lm"].value, expected)
    assert terms["balance"].value.item() == pytest.approx(1, abs=0.3)
    assert terms["balance"].weight == 0.01


def test_the_export_is_the_best_checkpoint_as_anyone_loads_it(ranks, tmp_path):
    run = run_of(tmp_path / "launch" / "run")
    (summary,) = ranks(train, config_of(), run, world_size=1)
    export = run.folder.path / "export"
    origin = read_json(export / "provenance.json")
    model = OlmoeForCausalLM.from_pretrained(export, dtype=torch.float32)

    assert origin["scores_fp16"] == summary["export"]
    assert origin["parameters"] == sum(p.numel() for p in model.parameters())
    trained, exported = (s["test_nll"]["value"] for s in (summary["final"], summary["export"]))
    assert exported == pytest.approx(trained, rel=1e-3)


def test_the_bundled_base_comes_from_the_config_that_ships():
    root = Path(__file__).parents[2]
    origin = read_json(ASSETS / "models" / "olmoe_stories" / "provenance.json")
    shipped = load(MoeBaseConfig, root / "configs" / "perft" / "stories_base.yaml")

    # settings that exist only since it was trained have their defaults
    then = build(MoeBaseConfig, Tree(origin["config"], {(): Origin("provenance.json", 1)}))
    assert origin["config_id"] == config_id("moe_base", origin["config"])
    assert then == shipped
    assert (ASSETS / "models" / "olmoe_stories" / "model.safetensors").stat().st_size < 2.5e6


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"text.tokenizer": "characters"}, "such as bundled:llama_bpe"),
        ({"text.context": 600, "text.eval_tokens": 600}, "lower it"),
        ({"model.heads": 5}, "must be whole and even"),
        ({"model.top_k": 6}, "there are 5 experts"),
        ({"train.steps": 0}, "not worth an export"),
    ],
)
def test_a_base_that_cannot_be_is_refused(changes: dict[str, Any], complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        config_of(**changes)
