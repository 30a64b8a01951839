"""A language model with mixtures at toy size: what is taught, what is counted, what an update sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latentbridge.config import Origin, Tree, build
from latentbridge.errors import ConfigError
from latentbridge.job import Run
from latentbridge.lm.mixture import MixtureLm, train
from latentbridge.lm.mixture_config import MixtureLmConfig, TemperatureConfig, temperature_at
from latentbridge.nn.routers import Router
from latentbridge.rundir import RunDir, read_json, read_jsonl
from latentbridge.train import distributed
from latentbridge.train.checkpoint import full_weights, load_weights, write_best
from latentbridge.train.loop import begin, fit

TINY = {
    "seed": 5,
    "text": {"context": 11, "eval_tokens": 77},
    "model": {"dim": 24, "layers": 2, "heads": 3, "ffn_mult": 2},
    "mixture": {"num_experts": 5},
    "optim": {"lr": 1e-2},
    "train": {"engine": "torch", "steps": 6, "batch_size": 4},
    "eval": {"batch_size": 3},
}
STRATEGIES = {
    "top1": {"mixture.router": {"strategy": "top1", "top_k": 1}},
    "topk_hard": {"mixture.router.strategy": "topk_hard"},
    "softk": {},
    "hash": {"mixture": {"router.strategy": "hash", "balance.weight": 0.0}},
    "expert_choice": {"mixture": {"router.strategy": "expert_choice", "balance.weight": 0.0}},
    "bias_balanced": {"mixture.router.strategy": "bias_balanced"},
}
RECORDED = {"engine": "torch", "precision": "bf16", "recorded": True}


def config_of(changes: dict[str, Any]) -> MixtureLmConfig:
    origins = {(): Origin("test.yaml", 1)}
    return build(MixtureLmConfig, Tree(TINY, origins).override(Tree(changes, origins)))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., MixtureLm]:
    def workload(changes: dict[str, Any] | None = None) -> MixtureLm:
        folder = tmp_path / "launch" / "run"
        folder.mkdir(parents=True, exist_ok=True)
        return MixtureLm(config_of(changes or {}), Run(RunDir(folder)))

    return workload


def first_router(made: MixtureLm) -> Router:
    return next(part for part in made.model.modules() if isinstance(part, Router))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_measures_what_its_config_says(make, strategy: str):
    made = make(STRATEGIES[strategy])
    made.losses(made.model, made.load_batch([0, 1]), 1)
    made.model.eval()
    found = made.evaluate(made.model, 1, "final")

    assert set(found) == set(made.config.metric_names())
    assert all(metric.value is not None for metric in found.values())


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "hash"])
def test_the_text_alone_teaches_every_router(make, strategy: str):
    """Two published strategies never trained their routers, and the balance term had no gradient either."""
    made = make(STRATEGIES[strategy])
    made.losses(made.model, made.load_batch(range(6)), 1)["lm"].value.backward()

    for router in (part for part in made.model.modules() if isinstance(part, Router)):
        assert all(float(weight.grad.norm()) > 0 for weight in router.parameters())


def test_balance_and_z_are_terms_of_their_own(make):
    made = make({"mixture.balance": {"weight": 0.01, "z_weight": 0.001}})
    terms = made.losses(made.model, made.load_batch([0, 1, 2]), 1)

    assert {name: term.weight for name, term in terms.items()} == {
        "lm": 1.0,
        "temperature": 0.0,
        "balance": 0.01,
        "router_z": 0.001,
    }
    assert terms["balance"].value.item() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("weight", [0.5, 0.02])
def test_the_balance_weight_of_the_config_reaches_the_loss(make, weight: float):
    """Bug E: the study's was never passed on, so that every run trained with 0.01."""
    made = make({"mixture.balance.weight": weight})

    assert made.losses(made.model, made.load_batch([0, 1]), 1)["balance"].weight == weight


def test_what_is_dropped_is_logged_and_weighs_nothing(make):
    made = make({"mixture.dispatch": {"kind": "padded", "capacity_factor": 0.5}})
    term = made.losses(made.model, made.load_batch(range(6)), 1)["drop_rate"]

    assert term.weight == 0
    # 5 experts of ceil(0.5 · 132 / 5) slots
    assert 1 - 5 * 14 / 132 - 1e-6 <= term.value.item() < 1
    made.model.eval()
    assert made.evaluate(made.model, 1, "1")["val_experts_per_token"].value == 2


def test_a_bias_moves_once_an_update_against_the_load(make):
    made = make(STRATEGIES["bias_balanced"])
    router = first_router(made)
    made.losses(made.model, made.load_batch([0, 1]), 1)
    made.losses(made.model, made.load_batch([2, 3]), 1)
    load = router.load.clone()
    assert load.sum() == 2 * 2 * 11 * 2
    assert not router.bias.any()

    made.losses(made.model, made.load_batch([4, 5]), 2)

    moved = (load.mean() - load).sign() * 1e-3
    torch.testing.assert_close(router.bias, moved - moved.mean())
    assert router.load.sum() == 2 * 11 * 2


def test_a_best_checkpoint_keeps_what_a_router_knows_beside_its_weights(make, tmp_path):
    made = make(STRATEGIES["bias_balanced"])
    router = first_router(made)
    router.bias.copy_(torch.tensor([0.5, -0.25, 0.0, 0.125, -0.375]))
    folder = tmp_path / write_best(tmp_path, full_weights(made.model), {"step": 1})
    kept = router.bias.clone()
    router.bias.zero_()

    load_weights(made.model, folder / "model.safetensors")

    assert torch.equal(router.bias, kept)


def test_active_parameters_count_the_experts_that_a_token_meets(make):
    """Bug M: the seed called all that is no expert active: 28.4 % where top-2 of 8 meets 46.3 %."""
    made = make()
    made.model.eval()
    made.evaluate(made.model, 1, "1")
    (record,) = read_jsonl(made._run.folder.path / "experts.jsonl")
    counted = record["parameters"]
    # up and down: 24 x 48 each, in 2 layers, of which a token meets 2 of 5
    idle = 2 * 3 * (2 * 24 * 48)

    assert counted["total"] == sum(p.numel() for p in made.model.parameters())
    assert counted["active"] == counted["total"] - idle


def test_each_evaluation_keeps_the_load_of_every_expert_and_one_made_again_takes_its_place(make):
    """Bug H: the study's was a running mean over training and evaluation, of all layers together."""
    made = make({"mixture.router.temperature.start": 2.5})
    made.model.eval()
    for step, label in ((3, "3"), (6, "6"), (6, "6"), (3, "final")):
        made.evaluate(made.model, step, label)
    records = list(read_jsonl(made._run.folder.path / "experts.jsonl"))

    assert [(record["step"], record["label"]) for record in records] == [(3, "3"), (6, "6"), (3, "final")]
    assert {record["temperature"] for record in records} == {2.5}
    assert [set(record["load"]) for record in records] == [{"val"}, {"val"}, {"val", "test"}]
    for loads in records[2]["load"].values():
        # 2 layers of 5 experts; 7 windows of 11 tokens, 2 experts each
        assert [len(layer) for layer in loads] == [5, 5]
        assert [sum(layer) for layer in loads] == [7 * 11 * 2] * 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_final_evaluation_tells_what_each_expert_takes(make, strategy: str):
    """Promised upstream, with names for its files, and never coded."""
    made = make(STRATEGIES[strategy])
    made.losses(made.model, made.load_batch([0, 1]), 1)
    made.model.eval()
    made.evaluate(made.model, 1, "1")
    folder = made._run.folder.path
    assert not (folder / "specialisation.json").exists()
    metrics = made.evaluate(made.model, 1, "final")

    told = read_json(folder / "specialisation.json")
    loads = list(read_jsonl(folder / "experts.jsonl"))[-1]["load"]["test"]
    assert [[sum(column) for column in zip(*layer["load"], strict=True)] for layer in told["layers"]] == loads
    assert sum(told["tokens"]) == 77
    assert sum(len(passage["tokens"]) for passage in told["passages"]) == 3 * 11
    token = [layer["information"]["token"] for layer in told["layers"]]
    assert metrics["test_token_information"].value == pytest.approx(sum(part["bits"] for part in token) / 2)
    assert all(part["share"] == pytest.approx(1) for part in token) == (strategy == "hash")


def test_who_took_a_token_is_gathered_of_the_test_text_alone(make, monkeypatch):
    made, gathered = make(), {}
    metrics_of = made.extra_metrics

    def spy(observed: list[Any], prefix: str) -> Any:
        gathered[prefix] = [seen.choices is not None for seen in observed]
        return metrics_of(observed, prefix)

    monkeypatch.setattr(made, "extra_metrics", spy)
    made.model.eval()
    made.evaluate(made.model, 1, "final")

    # 7 windows in batches of 3
    assert gathered == {"val": [False] * 3, "test": [True] * 3}


def test_training_keeps_no_record_of_who_took_what(make):
    made = make()
    extras = made.model(made.load_batch([0, 1]).blocks).extras

    assert not {"sent", "first"} & set(extras[0])


def run_of(path: Path) -> Run:
    path.mkdir(parents=True)
    return Run(RunDir(path))


@pytest.mark.parametrize(
    ("strategy", "zero_stage", "engine"),
    [
        ("softk", 1, "torch"),
        ("softk", 1, "deepspeed"),
        ("softk", 2, "deepspeed"),
        ("softk", 3, "deepspeed"),
        ("bias_balanced", 1, "deepspeed"),
        ("bias_balanced", 3, "deepspeed"),
    ],
)
def test_one_rank_and_two_come_to_the_same(ranks, tmp_path, strategy: str, zero_stage: int, engine: str):
    """What is balanced is the batch of an update, and a bias sees the load of all ranks."""
    train_settings = {"train": {"engine": engine, "zero_stage": zero_stage}}
    config = config_of(STRATEGIES[strategy] | train_settings)
    one, two = (
        ranks(train, config, run_of(tmp_path / f"ranks{n}" / "run"), world_size=n)[0]["final"] for n in (1, 2)
    )

    for name in ("val_nll", "test_nll", "test_entropy", "test_demand_cv"):
        assert two[name]["value"] == pytest.approx(one[name]["value"], rel=2e-3), name


def test_a_threshold_is_what_all_ranks_have_learnt(ranks, tmp_path):
    """A checkpoint holds one rank's buffers, and a run that goes on gives them to all."""
    config = config_of(STRATEGIES["expert_choice"])

    def learnt(config: MixtureLmConfig, run: Run) -> list[list[float]]:
        begin(config, run)
        made = MixtureLm(config, run)
        # other tokens on each rank
        made.losses(made.model, made.load_batch([4 * distributed.rank() + place for place in range(4)]), 1)
        return [router.threshold.tolist() for router in made._routers]

    one, two = ranks(learnt, config, run_of(tmp_path / "launch" / "run"), world_size=2)

    assert one == two


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_that_was_stopped_comes_to_what_an_unbroken_one_does(ranks, tmp_path, strategy: str):
    config = config_of(STRATEGIES[strategy] | {"train.checkpoint_every": 2, "train.log_every": 1})
    whole, broken = run_of(tmp_path / "whole" / "run"), run_of(tmp_path / "broken" / "run")

    def stopped(config: MixtureLmConfig, run: Run) -> None:
        class Stopped(Exception):
            pass

        class Breaking(MixtureLm):
            def losses(self, model: Any, batch: Any, step: int) -> Any:
                if step == 4:
                    raise Stopped
                return super().losses(model, batch, step)

        begin(config, run)
        with pytest.raises(Stopped):
            fit(Breaking(config, run), config, run)

    (expected,) = ranks(train, config, whole, world_size=1)
    ranks(stopped, config, broken, world_size=1)
    (found,) = ranks(train, config, broken, world_size=1)

    assert found["final"] == expected["final"]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", {1: 5.0, 251: 3.0, 501: 1.0}),
        ("cosine", {1: 5.0, 126: 4.4142, 251: 3.0, 376: 1.5858, 501: 1.0}),
        ("exponential", {1: 5.0, 101: 3.6239, 251: 2.2361, 301: 1.9037, 501: 1.0}),
        ("step", {1: 5.0, 100: 5.0, 101: 5**0.5, 300: 5**0.5, 301: 1.0, 501: 1.0}),
    ],
)
def test_a_schedule_is_of_updates_and_reaches_its_end(schedule: str, expected: dict[int, float]):
    """The seed's never did, and counted micro-steps: 125 of its 500 were updates."""
    config = TemperatureConfig(schedule=schedule, start=5.0, end=1.0)

    found = {step: temperature_at(config, step, 501) for step in expected}

    assert found == pytest.approx(expected, abs=1e-4)


def test_rate_and_temperature_are_of_updates_and_reach_their_ends_however_many_micro_batches(ranks, tmp_path):
    """Bugs C and D: counted in micro-steps, the study's rate ended at 90 % of its peak."""
    config = config_of(
        {
            "optim": {"schedule": "linear", "floor": 0.1},
            "mixture.router.temperature": {"schedule": "linear", "start": 6.0, "end": 1.0},
            "train": {"micro_batch_size": 1, "log_every": 1},
        }
    )
    run = run_of(tmp_path / "launch" / "run")
    ranks(train, config, run, world_size=1)
    records = list(read_jsonl(run.folder.train_log))

    assert [record["accumulation"] for record in records] == [4] * 6
    assert [record["losses"]["temperature"] for record in records] == pytest.approx([6, 5, 4, 3, 2, 1])
    # 1e-2 falls by 0.9 sixths of it an update, and would be at a tenth after the last
    assert [record["lr"] for record in records] == pytest.approx(
        [1e-2 * (1 - 0.15 * done) for done in range(6)]
    )


def test_the_temperature_of_an_update_is_set_before_it(make):
    made = make({"mixture.router.temperature": {"schedule": "linear", "start": 4.0, "end": 1.5}})
    for step, expected in ((1, 4.0), (6, 1.5)):
        made.losses(made.model, made.load_batch([0]), step)
        assert first_router(made).temperature.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mixture.router.strategy": "top1"}, "write top_k: 1"),
        ({"mixture.router.top_k": 1}, "teaches the router nothing"),
        ({"train": RECORDED, "mixture.dispatch.kind": "loop"}, "reads back who goes where"),
        ({"train": RECORDED, "model.dim": 12, "model.heads": 2}, "takes multiples of 8"),
        ({"mixture.router.top_k": 6}, "there are 5 experts"),
        ({"mixture.dispatch.capacity_factor": 2.0}, "drops nothing"),
        ({"mixture.balance.bias_rate": 0.1}, "has no bias"),
        ({"mixture.router.strategy": "hash"}, "learns nothing"),
        ({"mixture.router.strategy": "expert_choice"}, "balanced by itself"),
        (
            {"mixture": {"router": {"strategy": "expert_choice", "noise": 0.1}, "balance.weight": 0.0}},
            "write noise: 0.0",
        ),
        ({"mixture.router.temperature.end": 2.0}, "leave end out"),
        ({"mixture.router.temperature": {"schedule": "cosine", "start": 2.0}}, "needs an end"),
        (
            {"mixture": {"router": {"strategy": "hash", "noise": 0.1}, "balance.weight": 0.0}},
            "has no network",
        ),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(changes: dict[str, Any], complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        config_of(changes)
