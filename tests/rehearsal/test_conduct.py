"""Whole rehearsals of real specs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentbridge.data.config import ProblemsConfig
from latentbridge.data.problem import Problem
from latentbridge.launch.checks.rehearse import _request
from latentbridge.launch.plan import make_plan
from latentbridge.rehearsal.conduct import conduct
from latentbridge.translator import prompts
from latentbridge.translator.config import LossesConfig

ROOT = Path(__file__).parents[2]

Verdicts = dict[str, list[dict[str, Any]]]


@pytest.fixture
def rehearsed(tmp_path: Path, ranks: Any) -> Callable[..., Verdicts]:
    """Rehearses runs over translator/phase1, in a process of its own; verdicts by check."""

    def judge(runs: dict[str, Any], off: tuple[str, ...] = (), **spec: Any) -> Verdicts:
        (answer,) = ranks(verdicts_on, tmp_path, runs, off, spec, world_size=1)
        return answer

    return judge


def verdicts_on(folder: Path, runs: dict[str, Any], off: tuple[str, ...], spec: dict[str, Any]) -> Verdicts:
    path = folder / "spec.yaml"
    path.write_text(
        yaml.safe_dump({"name": "s", "job": "translator", "base": "translator/phase1", "runs": runs, **spec})
    )
    plan = make_plan(str(path), cluster="local", settings=[], root=ROOT)
    report = conduct(_request(plan, off), folder, lambda *_: None)
    found: Verdicts = {}
    for verdict in report["verdicts"]:
        found.setdefault(verdict["check"], []).append(verdict)
    return found


def test_phase_1_and_its_ablations_differ_and_pass(rehearsed):
    verdicts = rehearsed({"base": {}, "kl_only": {"losses.info_nce.weight": 0.0}}, seeds=[1, 2])

    assert {name for name, found in verdicts.items() if not all(v["ok"] for v in found)} == set()
    assert verdicts["ablation"][1]["text"] == "1 overrides, each with an effect"
    # seeds are repetitions: looked at once
    assert [v["runs"] for v in verdicts["gradients"]] == [
        ["base-s1", "base-s2"],
        ["kl_only-s1", "kl_only-s2"],
    ]


def test_an_ablation_whose_setting_is_never_read_is_caught(rehearsed, monkeypatch):
    """Ablations B and C and phase 1 were one experiment: their one flag was inert."""
    weights_at = LossesConfig.weights_at

    def deaf(self: LossesConfig, step: int) -> dict[str, float]:
        return {name: weight for name, weight in weights_at(self, step).items() if name != "prompt_alignment"}

    monkeypatch.setattr(LossesConfig, "weights_at", deaf)
    verdicts = rehearsed({"B": {}, "C": {"losses.prompt_alignment.weight": 0.1}})

    assert [v["ok"] for v in verdicts["ablation"]] == [True, False]
    assert verdicts["ablation"][1]["text"].startswith(
        "it computes what 'B' does: they differ by losses.prompt_alignment.weight, which changes nothing"
    )


def test_an_override_that_its_own_cell_switches_off_is_caught(rehearsed):
    dit = {"model": {"kind": "dit", "gate_init": 0.0}, "losses.info_nce.weight": 0.0}
    verdicts = rehearsed({"gates": {**dit, "optim.gate_lr_multiplier": 5.0}})

    (verdict,) = verdicts["ablation"]
    assert not verdict["ok"]
    assert verdict["text"].startswith("optim.gate_lr_multiplier changes nothing in this run")


def test_of_cells_that_shrink_to_one_every_real_prompt_is_read(rehearsed, monkeypatch):
    prompt_text = prompts.prompt_text

    def telling(problem: Problem, config: ProblemsConfig) -> str:
        return prompt_text(problem, config) + (problem.answer if config.few_shot == 4 else "")

    monkeypatch.setattr(prompts, "prompt_text", telling)
    verdicts = rehearsed({"eight": {}, "four": {"problems.few_shot": 4}}, off=("phases", "gradients"))

    (verdict,) = verdicts["answers"]
    assert verdict["runs"] == ["eight", "four"]
    assert verdict["text"].startswith("the prompt of eval problem 0 holds its solution")


def test_language_models_are_rehearsed_too(rehearsed):
    spec = {"job": "pretrain", "base": "pretrain/source_gpt2"}
    verdicts = rehearsed({"base": {}, "no_question": {"question_weight": 0.0}}, **spec)

    assert [v["text"] for found in verdicts.values() for v in found if not v["ok"]] == []
    assert {"labels", "causality", "neighbours", "export"} < set(verdicts)
    assert verdicts["ablation"][1]["text"] == "1 overrides, each with an effect"


def test_an_unknown_check_cannot_be_left_out(rehearsed):
    with pytest.raises(
        pytest.fail.Exception, match=r"--no-check gradient: there is no such check; checks: phases, gradients"
    ):
        rehearsed({"a": {}}, off=("gradient",))


def test_a_size_that_a_passthrough_bridge_does_not_read_is_caught(rehearsed):
    """Its config takes them, for bases of several kinds of bridge set them for all."""
    verdicts = rehearsed({"deep": {"model.depth": 4}}, base="translator/passthrough")

    (verdict,) = verdicts["ablation"]
    assert not verdict["ok"]
    assert verdict["text"].startswith("model.depth changes nothing in this run")


def test_cells_that_start_a_term_at_another_update_are_two_experiments(rehearsed):
    kl = {"losses.kl.weight": 0.03}
    verdicts = rehearsed(
        {"early": {**kl, "losses.kl.start_step": 100}, "late": {**kl, "losses.kl.start_step": 200}}
    )

    assert [v["ok"] for v in verdicts["ablation"]] == [True, True]


def test_a_bridge_that_is_only_evaluated_and_a_layer_counted_from_the_end_pass(rehearsed):
    only = {"train.steps": 0, "warm_start": "bundled:forward_16"}
    verdicts = rehearsed({"only": only, "tap": {"source.layer": -9}}, off=("ablation",))

    assert [v["text"] for found in verdicts.values() for v in found if not v["ok"]] == []
