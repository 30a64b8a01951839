"""Routed language models at toy size: each published fault of per-token routing, put right by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from products import Products

from latentbridge.errors import ConfigError
from latentbridge.job import Run
from latentbridge.layer_routing.config import HYBRIDS
from latentbridge.layer_routing.metrics import Split, split_metrics, status, summed
from latentbridge.layer_routing.train import LayerRoutingLm, train
from latentbridge.rundir import RunDir, read_json, read_jsonl

STATIC = ["gdn", "gdn", "gdn", "softmax"]


def evaluated(workload: LayerRoutingLm, label: str = "final") -> dict[str, Any]:
    workload.model.eval()
    with torch.no_grad():
        return {name: metric.value for name, metric in workload.evaluate(workload.model, 1, label).items()}


def test_the_weight_of_balance_is_in_no_score_of_the_text(make):
    """P: a reported loss of 4.43 was 3.92 nats and half of the balance loss."""
    light, heavy = make(), make(**{"routing.balance_weight": 0.5})
    terms = heavy.losses(heavy.model.train(), heavy.load_batch([0, 1, 2]), 1)

    assert evaluated(light)["val_nll"] == evaluated(heavy)["val_nll"]
    assert terms["balance"].weight == 0.5
    assert 0.9 < terms["balance"].value.item() < 2
    assert terms["lm"].value.item() < 1.1 * math.log(heavy.corpus.vocab_size)


def test_evaluating_twice_gives_the_same_numbers(make):
    """Q: noise of the choice stayed on, so that repeated evaluations differed by 0.002 nats."""
    workload = make()

    first, second = evaluated(workload), evaluated(workload)

    assert first == second


def test_windows_are_scored_for_each_of_their_targets_and_no_token_more(make):
    """X: nats were multiplied by T and divided by T - 1."""
    workload = make()
    torch.nn.init.zeros_(workload.model.decoder.head.weight)

    assert evaluated(workload)["val_nll"] == pytest.approx(math.log(workload.corpus.vocab_size), rel=1e-6)


def test_annealing_ends_in_the_last_update(make):
    """V: annealed over 5,000 updates, a run of 1,500 ended at 0.85 instead of 0.5."""
    workload, seen = make(**{"train.steps": 5}), []
    for step in range(1, 6):
        workload.begin_update(step)
        seen.append(float(workload._router.temperature))

    assert seen == pytest.approx([1.0, 0.875, 0.75, 0.625, 0.5])


def test_the_balance_loss_is_of_the_routes_that_are_taken(make):
    """W: the load was that of likelier choices, while tokens went where noise sent them."""
    workload = make()
    scored = workload.model.train()(workload.load_batch([0, 1, 2]).blocks)
    terms = workload.extra_losses(scored.extras)
    by_hand = 0.0
    for told in scored.extras:
        share = told["counts"] / 33
        by_hand += (share * told["mean_probs"]).sum().item()

    assert [int(told["counts"].sum()) for told in scored.extras] == [33, 33]
    assert terms["balance"].value.item() == pytest.approx(by_hand)
    assert terms["gdn_share"].weight == terms["temperature"].weight == 0.0


def test_shares_are_those_of_the_text_that_is_named(make):
    """Z: shares of training samples were labelled as validation."""
    workload = make()
    found = evaluated(workload)
    ids, _ = workload.corpus.take("validation", workload.corpus.eval_windows("validation"))
    by_hand = [
        1 - float(told["softmax"].float().mean()) for told in workload.model.eval()(ids.to("cpu")).extras
    ]

    assert [found["val_layer_1_gdn_share"], found["val_layer_2_gdn_share"]] == pytest.approx(by_hand)
    assert found["val_gdn_share"] == pytest.approx(sum(by_hand) / 2)
    assert set(found) == set(workload.config.metric_names())


def test_arms_tell_their_weights_and_can_be_made_equal(make):
    """S: arms that differed by 18.9 M weights were claimed to be equal."""
    routed = make()
    static = make(mixers=STATIC)
    # two softmax mixers more, 4 D^2 each, and a router
    more = 2 * 4 * 24**2 + 4 * 24 + 4
    counts = [evaluated(workload) for workload in (routed, static)]
    wide = make(mixers=STATIC, ffn_width=96 + 16)

    assert counts[0]["total_parameters"] - counts[1]["total_parameters"] == more
    assert counts[1]["active_parameters"] == counts[1]["total_parameters"]
    # 4 layers x 3 D x 16
    assert evaluated(wide)["total_parameters"] == counts[0]["total_parameters"] - 100


def test_active_weights_are_those_that_tokens_meet(make):
    """T: a token meets the queries and output of its own mixer, and keys, values and state of both."""
    workload = make()
    found = evaluated(workload)
    of_softmax, of_gdn = 2 * 24**2, 2 * 24 * 3 * 7 + 7
    shares = [found[f"test_layer_{layer}_gdn_share"] for layer in (1, 2)]
    spared = sum(share * of_softmax + (1 - share) * of_gdn for share in shares)

    assert found["total_parameters"] - found["active_parameters"] == pytest.approx(spared)


@pytest.mark.parametrize("changes", [{"mixers": STATIC}, {"routing.compute": "dense"}])
def test_flops_are_those_that_torch_counts_and_those_of_short_convolutions(make, changes):
    workload = make(**changes)
    batch = workload.load_batch([7, 0, 31])
    workload.begin_update(1)
    with Products() as products:
        workload.losses(workload.model, batch, 1)["lm"].value.backward()

    # three layers of four places and 3 heads x (5 + 5 + 7) channels, forward and both gradients
    assert workload.flops(batch, 1) - products.total == 6 * 33 * 3 * 4 * 51


def test_a_static_model_has_no_router_and_no_term_of_one(make):
    workload = make(mixers=STATIC)
    terms = workload.losses(workload.model, workload.load_batch([0, 1]), 1)

    assert terms.keys() == {"lm"}
    assert not [name for name in evaluated(workload) if "share" in name]


def test_a_run_says_who_takes_what(ranks, config_of, tmp_path: Path):
    folder = tmp_path / "launch" / "run"
    folder.mkdir(parents=True)
    RunDir(folder).write_manifest({"name": "run"})
    config = config_of(**{"routing.z_weight": 0.001})
    (summary,) = ranks(train, config, Run(RunDir(folder)), world_size=1)
    told, classes = read_json(folder / "routing.json"), read_json(folder / "specialisation.json")
    (first, *_) = read_jsonl(folder / "train.jsonl")

    manifest = RunDir(folder).read_manifest()
    assert [manifest[part]["name"] for part in ("gated_delta", "routed_softmax")] == ["torch", "plain"]
    assert told["label"] == "final"
    assert {*told["layers"]} == {"val", "test"}
    assert {*told["layers"]["test"]} == {"1", "2"}
    assert told["layers"]["val"]["2"]["status"] == status(summary["final"]["val_layer_2_gdn_share"]["value"])
    assert [sum(map(sum, layer["load"])) for layer in classes["layers"]] == [77, 77]
    assert first["losses"].keys() == {"lm", "temperature", "gdn_share", "balance", "router_z"}


def test_one_rank_and_two_measure_the_same(ranks, config_of, tmp_path):
    """Routes are balanced over all ranks together, and evaluation draws nothing."""
    found = []
    for n in (1, 2):
        folder = tmp_path / f"ranks{n}" / "run"
        folder.mkdir(parents=True)
        # drawn routes differ between ranks: only what is not trained can be compared
        config = config_of(**{"train.steps": 0})
        found.append(ranks(train, config, Run(RunDir(folder)), world_size=n)[0]["final"])

    assert found[0].keys() == found[1].keys()
    for name, record in found[0].items():
        assert found[1][name]["value"] == pytest.approx(record["value"], rel=1e-5), name


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_ranks_train_one_model_though_each_has_other_routes(ranks, config_of, tmp_path, engine: str):
    folder = tmp_path / "launch" / "run"
    folder.mkdir(parents=True)
    config = config_of(**{"train.engine": engine, "train.steps": 2, "train.eval_every": 2})
    one, other = ranks(train, config, Run(RunDir(folder)), world_size=2)
    (record, *_) = read_jsonl(folder / "train.jsonl")

    assert one["final"] == other["final"]
    assert record["losses"]["balance"] == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.4, "balanced"),
        (0.6, "balanced"),
        (0.61, "skewed to gdn"),
        (0.9, "skewed to gdn"),
        (0.91, "collapsed to gdn"),
        (0.39, "skewed to softmax"),
        (0.09, "collapsed to softmax"),
    ],
)
def test_status_is_as_published(share: float, expected: str):
    assert status(share) == expected


def test_splits_add_up_over_batches():
    layers = summed([[Split(3, 1, 2.0), Split(0, 4, 1.0)], [Split(2, 4, 1.0), Split(0, 6, 0.5)]])
    found = split_metrics(layers, (1, 4), "val")

    assert layers == [Split(5, 5, 3.0), Split(0, 10, 1.5)]
    assert found["val_layer_1_gdn_share"].value == 0.5
    assert found["val_layer_4_gdn_share"].value == 0.0
    assert found["val_route_entropy"].value == pytest.approx(0.225)
    assert found["val_split_entropy"].value == pytest.approx(math.log(2) / 2)
    assert found["val_gdn_share"].n == 10


def test_nothing_routed_is_void():
    assert split_metrics([Split(0, 0, 0.0)], (1,), "val")["val_gdn_share"].value is None


def test_the_published_hybrids_have_the_shares_of_their_names():
    assert len(HYBRIDS) == 13
    for name, softmax in HYBRIDS.items():
        assert name == f"softmax_{100 * len(softmax) / 12:.0f}"
        assert sorted({*softmax} & {*range(12)}) == list(softmax)


def test_a_hybrid_by_name_is_twelve_layers(config_of):
    pattern = config_of(mixers="softmax_17", **{"model.layers": 12}).pattern

    assert pattern == ("gdn",) * 5 + ("softmax",) + ("gdn",) * 5 + ("softmax",)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mixers": ["routed", "gdn", "gdn", "softmax"]}, "layer 0 is routed"),
        ({"mixers": ["gdn", "softmax"]}, r"of 2 layers, but model.layers is 4"),
        ({"mixers": "softmax_17"}, r"of 12 layers, but model.layers is 4"),
        ({"mixers": "sparse"}, "one of softmax_0, softmax_8"),
        ({"mixers": STATIC, "routing.balance_weight": 0.5}, "none of mixers is routed"),
        ({"mixers": ["softmax"] * 4}, "gdn is set, but no layer"),
        ({"model.activation": "gelu"}, "write activation: silu"),
        ({"routing.router_gradient": "both"}, "write compute: dense"),
        ({"routing.temperature": {"acts_on": "choice"}}, "acts_on is choice"),
        ({"model": {"dropout": 0.1, "dropout_everywhere": True}}, "drops attention weights"),
        ({"train": {"engine": "deepspeed", "zero_stage": 3}}, "write zero_stage: 2"),
    ],
)
def test_impossible_settings_are_refused(config_of, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        config_of(**changes)
