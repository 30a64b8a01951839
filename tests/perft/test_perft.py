"""Adapters in a tiny frozen mixture: what is scored and trained, what a checkpoint holds, what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig

from latentbridge.data.language_model import FrozenLM, load_frozen
from latentbridge.data.problems import Problem, answer_text, load_problems, prompt_text
from latentbridge.errors import ConfigError
from latentbridge.perft.examples import in_halves
from latentbridge.perft.model import AdaptedModel, mixtures
from latentbridge.perft.train import Perft, train
from latentbridge.rundir import read_json

VARIANTS = ("shared", "embedded", "routed")


def opened(made: Perft) -> Perft:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_measures_what_its_config_says(make, variant: str):
    made = opened(make(variant))
    made.model.eval()
    found = made.evaluate(made.model, 1, "final")

    assert set(found) == set(made.config.metric_names())
    assert all(metric.value is not None for metric in found.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_untrained_adapters_score_exactly_what_the_base_does(make, variant: str):
    made = make(variant)
    made.model.eval()
    found = made.evaluate(made.model, 0, "0")

    assert found["val_nll"] == found["val_base_nll"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_answers_are_scored_and_by_what_the_whole_model_says(make, variant: str):
    """The published loss and evaluation scored the prompts too."""
    made = opened(make(variant))
    made.model.eval()
    config = made.config.problems
    tokenizer = made.lm.tokenizer
    nats = []
    for problem in load_problems(config, "train")[:3]:
        prompt = tokenizer(prompt_text(problem, config)).input_ids
        answer = [*tokenizer(answer_text(problem, config), add_special_tokens=False).input_ids, 2]
        ids = torch.tensor([prompt + answer])
        logits = made.adapted.logits(ids)[0].log_softmax(-1)
        nats += [-logits[len(prompt) + k - 1, token] for k, token in enumerate(answer)]
    batch = made.load_batch([0, 1, 2])

    loss = made.losses(made.model, batch, 1)["answer"].value
    torch.testing.assert_close(loss, torch.stack(nats).mean(), rtol=1e-4, atol=1e-5)
    assert len(batch.targets) == len(nats)


def test_balance_is_a_term_of_its_own_and_no_part_of_what_is_measured(make):
    """The published evaluation added 0.01 K of it, which alone put top-2 above top-1."""
    made = opened(make("routed"))
    terms = made.losses(made.model, made.load_batch([0, 1, 2]), 1)

    assert {name: term.weight for name, term in terms.items()} == {"answer": 1.0, "balance": 0.01}
    assert 0.8 < terms["balance"].value.item() < 2
    heavier = opened(make("routed", **{"adapters.balance_weight": 5.0}))
    for workload in (made, heavier):
        workload.model.eval()
    one, other = (w.evaluate(w.model, 1, "1")["val_nll"].value for w in (made, heavier))
    assert one == other


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gate_of_routed_adapters_gets_its_gradient_from_the_task(make, variant: str):
    made = opened(make(variant))
    made.losses(made.model, made.load_batch([0, 1, 2, 3]), 1)["answer"].value.backward()

    assert all(float(parameter.grad.norm()) > 0 for parameter in made.model.parameters())
    assert all(parameter.grad is None for parameter in made.lm.model.parameters())
    assert not made.lm.model.training


def test_padding_is_neither_routed_nor_counted(make):
    made = opened(make("routed"))
    made.model.eval()
    lengths = [len(made.examples.prompts[i]) + len(made.examples.answers[i]) - 1 for i in range(4)]
    batch = made.load_batch(range(4))
    said = made.model(batch.ids, batch.real, batch.places, batch.targets)

    assert batch.ids.numel() > sum(lengths) == batch.num_tokens
    assert all(told["counts"].sum() == 2 * sum(lengths) for told in said.told)


def test_what_a_token_activates_counts_all_adapters_that_it_meets(make):
    """The published axis charged embedded adapters for one, of which a token meets as many as experts."""
    counts = {variant: make(variant).adapted.counts() for variant in VARIANTS}
    # two layers; an adapter: 2 · 24 · 3;  a gate: 24 · 4 + 4;  2 of 5 experts, 3 · 24 · 24 each
    assert {v: c["trained"] for v, c in counts.items()} == {
        "shared": 2 * 144,
        "embedded": 2 * 5 * 144,
        "routed": 2 * (4 * 144 + 100),
    }
    assert {v: c["activated"] for v, c in counts.items()} == {
        "shared": 2 * 144,
        "embedded": 2 * 2 * 144,
        "routed": 2 * (2 * 144 + 100),
    }
    base = counts["shared"]
    assert base["base"] - base["base_activated"] == 2 * 3 * (3 * 24 * 24)
    made = make("embedded")
    found = made._cost()["activated_percent"].value
    assert found == pytest.approx(100 * 576 / (576 + base["base_activated"]))


def test_a_question_that_was_drawn_twice_is_in_one_half_only():
    drawn = [Problem(number, text, "#### 1", "1") for number, text in enumerate("abcadeb")]
    first, second = in_halves(drawn)

    assert [p.question for p in first + second] == ["a", "b", "c", "d", "e"]
    assert (len(first), [p.index for p in second]) == (2, [2, 4, 5])


def test_the_problems_that_choose_weights_are_not_those_that_are_reported(make):
    made = make()
    val, test = ({tuple(p) for p in made.held_out[split].prompts} for split in ("val", "test"))

    assert (len(made.held_out["val"]), len(made.held_out["test"])) == (4, 5)
    assert not val & test


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_lowers_the_loss_and_its_checkpoint_holds_adapters_only(
    ranks, config_of, run_of, variant: str
):
    run = run_of()
    (summary,) = ranks(train, config_of(variant), run, world_size=1)
    weights = load_file(run.folder.checkpoints / "best" / "model.safetensors")

    assert summary["final"]["test_nll"]["value"] < summary["final"]["test_base_nll"]["value"]
    assert all(name.startswith("layers.") for name in weights)
    trained = sum(weight.numel() for name, weight in weights.items() if "temperature" not in name)
    assert trained == summary["final"]["trained_parameters"]["value"]
    record = read_json(run.folder.path / "adapters.json")
    assert record["parameters"]["trained"] == trained
    assert bool(record["load"]) == (variant == "routed")


@pytest.mark.parametrize(
    ("variant", "engine", "zero_stage"),
    [
        ("routed", "torch", 1),
        ("routed", "deepspeed", 1),
        ("shared", "deepspeed", 3),
        ("routed", "deepspeed", 3),
    ],
)
def test_one_rank_and_two_come_to_the_same(ranks, config_of, run_of, variant, engine, zero_stage):
    config = config_of(variant, **{"train.engine": engine, "train.zero_stage": zero_stage})
    one, two = (ranks(train, config, run_of(f"ranks{n}"), world_size=n)[0]["final"] for n in (1, 2))

    for name in ("val_nll", "test_nll", "test_base_nll"):
        assert two[name]["value"] == pytest.approx(one[name]["value"], rel=2e-3), name


def test_mixtral_is_read_by_the_same_hook(make):
    made = make("embedded")
    shape = MixtralConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    lm = FrozenLM(AutoModelForCausalLM.from_config(shape).eval().requires_grad_(False), None)
    adapted = AdaptedModel(made.config.adapters, lm)
    ids = torch.arange(12).view(2, 6)

    assert len(adapted.layers) == 2
    assert torch.equal(adapted.logits(ids), adapted.logits(ids, adapted=False))
    torch.nn.init.normal_(adapted.layers[1].stack.down)
    assert not torch.equal(adapted.logits(ids), adapted.logits(ids, adapted=False))


def test_a_model_without_experts_is_refused():
    lm = load_frozen("bundled:llama_bpe", torch.float32, torch.device("cpu"))
    with pytest.raises(ConfigError, match="family llama, which has no mixture of experts"):
        mixtures(lm)


@pytest.mark.parametrize(
    ("variant", "changes", "complaint"),
    [
        ("shared", {"adapters.top_k": 2}, "has no gate"),
        ("shared", {"adapters.balance_weight": 0.1}, "has no gate"),
        ("embedded", {"adapters.num_adapters": 4}, "one for each expert"),
        ("embedded", {"adapters.top_k": 1}, "has no gate"),
        ("routed", {"adapters.top_k": 5}, "lower top_k"),
        ("routed", {"adapters": {"num_adapters": 1, "top_k": 1}}, "always 1"),
        ("shared", {"adapters.variant": "routed"}, "needs num_adapters and top_k"),
        ("shared", {"optim.muon.lr": 0.1, "train": {"engine": "deepspeed", "zero_stage": 1}}, "them whole"),
        ("shared", {"problems.eval_examples": 1}, "write 2 or more"),
        ("shared", {"train.recorded": True, "train.precision": "bf16"}, "differ in shape"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(config_of, variant, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        config_of(variant, **changes)


def test_perplexity_is_exp_of_the_answers_nats(make):
    made = opened(make())
    made.model.eval()
    found = made.evaluate(made.model, 1, "1")

    assert found["val_perplexity"].value == pytest.approx(math.exp(found["val_nll"].value))
