"""Each fault of the published systems, put back: the rehearsal finds it and says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from latentbridge.audit import ablations
from latentbridge.config import Tree, build, read_yaml
from latentbridge.data import gsm8k
from latentbridge.data import problem as problem_module
from latentbridge.job import Run
from latentbridge.launch import keep, preserve
from latentbridge.launch.spec import read_base
from latentbridge.rehearsal import checks, problems
from latentbridge.rehearsal.contract import Caught, Stage
from latentbridge.train import checkpoint
from latentbridge.train.engine import Engine
from latentbridge.translator import evaluate, inference, metrics, objectives, prompts, rehearsal, train
from latentbridge.translator.bridges import base, dit
from latentbridge.translator.config import TranslatorConfig

ROOT = Path(__file__).parents[2]
HERE = read_yaml(ROOT / "configs/translator/phase1.yaml").origin(())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def stage(tmp_path: Path, tiny: Path) -> Callable[..., Stage]:
    """Makes the stage of a base config that ships, with changes; real: those of the cells it stands for."""
    number = count()

    def make(
        name: str = "translator/phase1",
        changes: dict[str, Any] | None = None,
        real: list[dict[str, Any]] | None = None,
    ) -> Stage:
        base = read_base(name, ROOT, HERE).override(Tree(changes or {}, {(): HERE}))
        cells = [build(TranslatorConfig, base.override(Tree(more, {(): HERE}))) for more in real or [{}]]
        mine = rehearsal.TranslatorRehearsal()
        return Stage(mine, mine.shrink(cells[0], tiny), tmp_path / f"stage{next(number)}", cells)

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


def test_a_flow_loss_that_is_detached_is_caught(stage, monkeypatch):
    """D4: it contributed exactly 0 to every run."""
    error = dit.flow_error_per_row
    assert "terms reach" in checks.gradients(stage("translator/dit"))

    monkeypatch.setattr(dit, "flow_error_per_row", lambda *a: error(*a).detach())
    with pytest.raises(Caught, match=r"losses.flow has a weight in update 1, but sends no gradient"):
        checks.gradients(stage("translator/dit"))


def test_an_info_nce_of_equal_targets_is_caught(stage, monkeypatch):
    """D6: pooled over worked examples that all rows share, it was ln 2 with no gradient."""
    pooled = objectives.Objectives._mean_embedding

    def constant(self: Any, indices: Any) -> torch.Tensor:
        return pooled(self, [0]).expand(len(indices), -1)

    monkeypatch.setattr(objectives.Objectives, "_mean_embedding", constant)
    with pytest.raises(Caught, match=r"losses.info_nce has a weight in update 376, but sends no gradient"):
        checks.gradients(stage())


def test_a_format_loss_that_counts_instead_of_scoring_is_caught(stage, monkeypatch):
    """D11: the share of replies without a marker has no gradient."""

    def share(self: Any, done: Any, scored: Any) -> torch.Tensor:
        return (scored.nll.argmax(dim=-1) > 0).float().mean()

    monkeypatch.setattr(objectives.Objectives, "_format", share)
    with pytest.raises(Caught, match=r"losses.format has a weight in update 1, but sends no gradient"):
        checks.gradients(stage(changes={"losses.format.weight": 0.1}))


def test_a_weight_that_nothing_trains_is_caught(stage, monkeypatch):
    made = stage()
    made.workload.model.register_parameter("forgotten", torch.nn.Parameter(torch.ones(3)))

    with pytest.raises(Caught, match="forgotten: no term of the loss reaches it"):
        checks.gradients(made)


@pytest.mark.parametrize("kind", ["gated", "dit"])
def test_a_bridge_of_one_soft_token_trains_all_that_it_says_it_trains(stage, kind: str):
    """demo_gpu.yaml was refused: among one token there is nothing to attend to, so that the query is idle."""
    model = {"soft_tokens": 1, "kind": kind, "gate_init": 0.5 if kind == "gated" else 0.0}
    assert "terms reach" in checks.gradients(stage("translator/demo_gpu", {"model": model}))


def test_evaluation_mode_left_on_is_caught(stage, verdict, monkeypatch):
    """D1: dropout and the teacher's branch were dead in all runs."""
    set_training = Engine.set_training
    monkeypatch.setattr(Engine, "set_training", lambda self, on: None if on else set_training(self, on))
    monkeypatch.setattr(base.Bridge, "train", lambda self, on=True: torch.nn.Module.train(self, on))

    made = stage()
    is_good, text = verdict(checks.training_mode, made)
    assert not is_good
    assert re.search(r"an update \(call 2 of 6\) is made in evaluation mode", text)


def test_a_final_evaluation_of_the_last_weights_is_caught(stage, verdict, monkeypatch):
    """D2: "Saved BEST", the reload and the final evaluation all used the last weights."""
    monkeypatch.setattr(checkpoint, "load_best", lambda *_: None)

    is_good, text = verdict(checks.best_weights, stage())
    assert not is_good
    assert re.search("the final evaluation has not the weights of update 1", text)


def test_a_best_checkpoint_that_later_updates_overwrite_is_caught(stage, verdict, monkeypatch):
    from safetensors.torch import save_file

    save_last = checkpoint.save_last

    def aliasing(root: Path, engine: Engine, state: dict[str, Any]) -> None:
        save_last(root, engine, state)
        best = root / "best" / "model.safetensors"
        if best.exists():
            save_file({n: p.detach().clone() for n, p in engine.module.named_parameters()}, best)

    monkeypatch.setattr(checkpoint, "save_last", aliasing)
    # the loop itself compares what it reads with what it wrote
    is_good, text = verdict(checks.best_weights, stage())
    assert not is_good
    assert re.search(r"the loop refuses it: .*model.safetensors", text)


def test_a_reply_that_cannot_be_timed_is_known_before_the_training(stage, verdict, monkeypatch):
    assert verdict(checks.phases, stage("translator/phase1"))[0]

    monkeypatch.setattr(inference, "MEASURED", ("bridged", "source"))
    is_good, text = verdict(checks.phases, stage("translator/phase1"))
    assert not is_good
    assert "it breaks in the loop: KeyError: 'source'" in text


def test_noise_without_a_seed_is_caught(stage, monkeypatch):
    """D7: 21 of 200 verdicts flipped between two evaluations of the same weights."""
    assert "twice the same" in checks.repeatable(stage("translator/dit"))

    monkeypatch.setattr(train, "seeded_normal", lambda shape, *_: torch.randn(shape))
    with pytest.raises(Caught, match="two evaluations of the same weights differ"):
        checks.repeatable(stage("translator/dit"))


def test_a_crash_of_the_first_evaluation_is_caught(stage, verdict, monkeypatch):
    """Nine runs died in their first update after an 8-minute evaluation; five of memory, four of this."""

    def broken(*_: Any) -> None:
        raise TypeError("metrics_of() got an unexpected keyword argument 'modes'")

    monkeypatch.setattr(evaluate, "metrics_of", broken)
    is_good, text = verdict(checks.phases, stage())
    assert not is_good
    assert re.search("it breaks in the loop: TypeError: metrics_of", text)


def test_a_run_is_archived_to_its_end(stage, verdict):
    is_good, text = verdict(checks.phases, stage())

    assert is_good
    assert text == "2 updates, 4 evaluations, stopped and resumed once, 12 files archived"


@pytest.mark.parametrize(
    ("place", "name"), [(ablations, "render"), (ablations, "read_run"), (preserve, "deposit")]
)
def test_a_crash_of_summary_or_archive_is_caught(stage, verdict, monkeypatch, place: Any, name: str):
    """It would show when the last run of a launch has ended."""

    def broken(*_: Any) -> None:
        raise KeyError("cascade")

    monkeypatch.setattr(place, name, broken)
    is_good, text = verdict(checks.phases, stage())
    assert not is_good
    assert text == "the finished run cannot be summarised and archived: KeyError: 'cascade'"


def test_an_archive_that_loses_results_is_caught(stage, verdict, monkeypatch):
    belongs = keep._belongs
    monkeypatch.setattr(keep, "_belongs", lambda name, kinds: belongs(name, kinds) and "metrics" not in name)

    is_good, text = verdict(checks.phases, stage())
    assert not is_good
    assert text == "its archive does not give the summary that was made of the launch"


def test_records_that_a_summary_cannot_read_are_caught(stage, verdict, monkeypatch):
    """What is damaged is no crash of a summary: it is told as the run's cause."""
    monkeypatch.setattr(Run, "log_metrics", lambda self, record: None)

    is_good, text = verdict(checks.phases, stage())
    assert not is_good
    assert text.startswith("its summary has not what the final evaluation found")


def test_the_gold_answer_in_the_input_is_caught(stage, monkeypatch):
    """The published 81.5 %: prompt + gold went into the source and the target."""
    prompt_text = prompts.prompt_text
    monkeypatch.setattr(prompts, "prompt_text", lambda p, c: f"{prompt_text(p, c)} {p.answer}")

    with pytest.raises(Caught, match="the prompt of eval problem 0 holds its solution"):
        rehearsal.answers(stage())


def test_a_gold_number_in_the_input_is_caught(stage, monkeypatch):
    """It is no part of a text that must not be there, for any number may: what is read changes with it."""
    prompt_text = prompts.prompt_text
    monkeypatch.setattr(prompts, "prompt_text", lambda p, c: f"{prompt_text(p, c)} {p.gold}")

    with pytest.raises(Caught, match="what the source in training reads changes with the gold answer"):
        rehearsal.answers(stage())


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda p: replace(p, gold="12"), "gold is 12, but its solution ends in"),
        (lambda p: replace(p, gold="12", answer="#### 12"), "the gold answer of all 63 problems is 12"),
    ],
)
def test_a_gold_answer_that_is_another_questions_is_caught(stage, monkeypatch, spoil: Any, complaint: str):
    """42 GPU-hours: the gold answer of every problem was the first worked example's, 12."""
    load = problems.load_problems
    monkeypatch.setattr(problems, "load_problems", lambda *a: [spoil(p) for p in load(*a)])

    with pytest.raises(Caught, match=complaint):
        rehearsal.answers(stage())


def test_invalid_that_equals_invalid_is_caught(stage, monkeypatch):
    """D9: a run without any answer scored 1.000 four times."""
    extract = problem_module.extract_answer
    monkeypatch.setattr(metrics, "extract_answer", lambda text: extract(text) or "[invalid]")

    with pytest.raises(Caught, match=r"an answer that was not found counts as right .* is '\[invalid\]'"):
        rehearsal.answers(stage())


def test_worked_examples_of_the_real_prompt_that_are_trained_on_are_caught(stage, monkeypatch):
    """Tiny models are asked without worked examples; the texts are looked at as the cell has them."""
    monkeypatch.setattr(gsm8k, "load_gsm8k", lambda split, few_shot: list(gsm8k._read(split)))

    assert "prompts with 0 worked examples" in rehearsal.answers(stage(real=[{"problems.few_shot": 0}]))
    with pytest.raises(Caught, match=r"train problem \d+ is a worked example in every prompt"):
        rehearsal.answers(stage(real=[{"problems.few_shot": 0}, {}]))


def test_a_solution_among_the_worked_examples_of_its_own_prompt_is_caught(stage, monkeypatch):
    prompt_text = prompts.prompt_text

    def telling(problem: Any, config: Any) -> str:
        solved = problem.answer.rsplit("####", 1)[0]
        return (f"Q: ...\nA: {solved}\n" if config.few_shot == 8 else "") + prompt_text(problem, config)

    monkeypatch.setattr(prompts, "prompt_text", telling)
    assert "prompts with 4 worked examples" in rehearsal.answers(stage(real=[{"problems.few_shot": 4}]))
    with pytest.raises(Caught, match="the prompt of eval problem 0 holds its solution: '"):
        rehearsal.answers(stage(real=[{"problems.few_shot": 4}, {"problems.few_shot": 8}]))


def test_labels_that_are_not_shifted_are_caught(stage, monkeypatch):
    assert "each scored by what came before it" in rehearsal.labels(stage())

    states = rehearsal.answer_states
    monkeypatch.setattr(rehearsal, "answer_states", lambda *a: states(*a).roll(-1, dims=1))
    with pytest.raises(Caught, match=r"answer token 1 is scored with .* labels are not shifted once"):
        rehearsal.labels(stage())


def test_training_rows_that_read_each_other_are_caught(stage, monkeypatch):
    packed = rehearsal.packed_answer_states

    def shifted(*words: Any) -> Any:
        made = packed(*words)
        return replace(made, states=made.states.roll(1, dims=0))

    monkeypatch.setattr(rehearsal, "packed_answer_states", shifted)
    with pytest.raises(Caught, match="rows that are laid end to end, as in training, are scored otherwise"):
        rehearsal.labels(stage())


def test_positions_that_count_padding_are_caught(stage, monkeypatch):
    """D10: baselines moved with the number of GPUs, which changed the batches."""
    from latentbridge.data import language_model, scoring

    def naive(mask: torch.Tensor) -> torch.Tensor:
        return torch.arange(mask.shape[1]).expand_as(mask)

    monkeypatch.setattr(language_model, "positions", naive)
    monkeypatch.setattr(scoring, "positions", naive)
    # a model with absolute positions notices; one with rotary ones does so through the gaps in a row
    monkeypatch.setattr(language_model.FrozenLM, "embed", _with_places(language_model.FrozenLM.embed))
    with pytest.raises(Caught, match=r"_nll is .* in batches of 2 and .* one by one"):
        checks.any_batch(stage(changes={"prompt_mode": "soft_plus_text"}))


def _with_places(embed: Any) -> Any:
    def embedded(self: Any, ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[-1], device=ids.device)[:, None]
        return embed(self, ids) * (1 + 0.1 * places)

    return embedded


def test_a_control_that_reads_the_right_source_is_caught(stage, monkeypatch):
    source_of = evaluate.Evaluator.source_of
    monkeypatch.setattr(
        evaluate.Evaluator,
        "source_of",
        lambda self, indices: {
            **source_of(self, indices),
            "shuffled_source": source_of(self, indices)["bridged"],
        },
    )

    with pytest.raises(Caught, match="the control shuffled_source gives the soft tokens of the right source"):
        rehearsal.controls(stage())


def test_records_that_are_lost_are_caught(stage, monkeypatch):
    """D3: a zip over an empty list made 13 preserved runs of zeros."""
    monkeypatch.setattr(evaluate.Evaluator, "_samples", lambda *_: [])

    with pytest.raises(Caught, match=r"bridged_nll is None and counts 0 of 3 problems"):
        rehearsal.controls(stage())


def test_an_rms_match_that_is_clamped_is_caught(stage, monkeypatch):
    """D5: soft tokens stayed 20 to 79 times too large."""

    def clamped(x: torch.Tensor, target_rms: float) -> torch.Tensor:
        now = x.float().square().mean(dim=-1, keepdim=True).sqrt()
        return x * (target_rms / now).clamp(0.25, 4.0)

    assert "of the target's scale" in rehearsal.scale(stage())
    monkeypatch.setattr(base, "match_rms", clamped)
    with pytest.raises(Caught, match="times off the scale of the target's embeddings"):
        rehearsal.scale(stage())
