import json
from itertools import count
from typing import Any

import pytest
import torch

from latentbridge.nn.norm import rms
from latentbridge.train.seeding import reseed
from latentbridge.translator import prompts
from latentbridge.translator.config import TeacherConfig
from latentbridge.translator.teacher import Lesson, Teacher
from latentbridge.translator.train import Translation

DIT = {"model": {"kind": "dit", "gate_init": 0.0}}
# what each term needs beside its weight
TERMS: dict[str, dict[str, Any]] = {
    "lm": {},
    "info_nce": {},
    "kl": {},
    "decode": {},
    "format": {},
    "prompt_alignment": {},
    "token_alignment": {"teacher": {"text": "answer"}},
    "probe": {},
    "flow": DIT,
}


@pytest.fixture
def workload(configure, make_run):
    """Makes a workload whose loss is one term alone."""
    number = count()

    def make(term: str, changes: dict[str, Any] | None = None) -> Translation:
        alone = {f"losses.{name}.weight": float(name == term) for name in ("lm", "info_nce", term)}
        config = configure({**alone, **(changes or {})})
        made = Translation(config, make_run(f"{term}-{next(number)}"))
        if config.model.kind == "dit":
            for block in made.bridge.blocks:
                torch.nn.init.normal_(block.modulation.weight, std=0.3)
        return made

    return make


def value(made: Translation, term: str, indices: list[int], step: int = 1) -> torch.Tensor:
    reseed(step)
    terms = made.losses(made.model, made.load_batch(indices), step)
    assert list(terms) == [term]
    return terms[term].value


@pytest.mark.parametrize("term", TERMS)
def test_every_term_reaches_the_bridge(workload, term: str):
    """Of the seed's nine terms three had no gradient and one had a constant one."""
    made = workload(term, TERMS[term])
    value(made, term, [0, 1, 2]).backward()

    first = made.bridge.align.weight if term == "flow" else made.bridge.queries
    assert first.grad.isfinite().all()
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("term", [term for term in TERMS if term not in ("info_nce", "flow")])
def test_a_term_is_a_mean_that_no_neighbour_changes(workload, term: str):
    made = workload(term, TERMS[term])
    tables = {"lm": made.prompts.answer, "decode": made.prompts.answer}
    alone = [value(made, term, [index]).item() for index in (0, 1)]
    counts = [tables[term].lengths[index] if term in tables else 1 for index in (0, 1)]

    expected = sum(a * n for a, n in zip(alone, counts, strict=True)) / sum(counts)
    assert value(made, term, [0, 1]).item() == pytest.approx(expected, rel=1e-4)
    assert alone[0] != alone[1]


def test_the_format_term_is_the_likelihood_of_the_marker_alone(workload):
    made = workload("format")
    tokenizer = made.target.tokenizer
    ids, marker = (
        made.prompts.answer.take([3], "right").values[0],
        made.prompts.marker.take([3], "right").values[0],
    )

    assert tokenizer.decode(ids[marker.bool()]) == "####"
    assert len(made.prompts.marker.lengths) == len(made.prompts.answer.lengths)
    assert made.prompts.marker.lengths == made.prompts.answer.lengths


def test_info_nce_has_as_many_negatives_as_asked_for_and_never_the_own_question(workload, monkeypatch):
    """With a batch of two a rank of the seed had one negative."""
    seen: list[tuple[int, int]] = []

    def spy(
        soft: torch.Tensor, targets: torch.Tensor, own: torch.Tensor, _: float, ignore: torch.Tensor
    ) -> Any:
        seen.append((len(targets), int(ignore.sum())))
        distinct = ignore | (torch.cdist(targets[own], targets) > 1e-6)
        distinct[torch.arange(len(own)), own] = True
        assert distinct.all()
        return soft.sum(dim=(1,))

    monkeypatch.setattr("latentbridge.translator.objectives.info_nce_per_row", spy)
    made = workload("info_nce", {"losses.info_nce.negatives": 40})
    value(made, "info_nce", [0, 1])

    ((targets, ignored),) = seen
    assert targets == 2 + 40
    # 40 draws of 12 training problems meet the batch's own two
    assert ignored > 0


def test_decode_reads_the_whole_prompt_and_only_every_so_many_updates(workload):
    made = workload("decode", {"losses.decode.every": 3, "losses.lm.weight": 1.0})

    assert [sorted(made.config.losses.weights_at(step)) for step in (1, 2, 3, 6)] == [
        ["lm"],
        ["lm"],
        ["decode", "lm"],
        ["decode", "lm"],
    ]
    shown = workload("lm", {"prompt_mode": "soft_plus_text"})
    assert value(workload("decode"), "decode", [0, 1]).item() == pytest.approx(
        value(shown, "lm", [0, 1]).item(), rel=1e-5
    )


def test_a_ramp_raises_the_weight_from_its_start(configure):
    losses = configure({"losses.kl": {"weight": 0.4, "start_step": 2, "ramp_steps": 4}}).losses

    weights = [losses.weights_at(step).get("kl") for step in (1, 2, 3, 4, 6, 7)]
    assert weights == [None, None, *[pytest.approx(w) for w in (0.1, 0.2, 0.4, 0.4)]]


def test_the_curriculum_takes_the_text_away_row_by_row(workload):
    made = workload("lm", {"text_curriculum_steps": 10})
    shares = {}
    for step in (1, 6, 11):
        reseed(step)
        rows = made._with_text(range(1000), step)
        shares[step] = None if rows is None else sum(rows) / 1000

    assert shares == {1: 1.0, 6: pytest.approx(0.5, abs=0.06), 11: None}
    text = made.prompts.visible([0, 5], [True, False])
    decoded = [made.target.tokenizer.decode(ids[mask]) for ids, mask in zip(*text, strict=True)]
    assert decoded == [made.prompts.prompt_texts[0], "A: "]


def test_a_teachers_vectors_are_the_targets_own_at_unit_scale(configure, workload):
    made = workload("token_alignment")
    lesson = made.objectives.teacher([2, 5])

    assert isinstance(lesson, Lesson)
    ids = made.prompts.answer.take([2], "right").values[0, :3]
    expected = made.target.embed(ids)
    assert torch.allclose(lesson.vectors[0], expected / rms(expected), atol=1e-5)
    assert lesson.given.all()


def test_a_teacher_of_a_short_text_gives_what_there_is(workload):
    made = workload("token_alignment", {"model.soft_tokens": 90})
    lesson = made.objectives.teacher([2, 5])
    lengths = [made.prompts.answer.lengths[index] for index in (2, 5)]

    assert lesson.given.sum(dim=1).tolist() == lengths
    assert not lesson.vectors[~lesson.given].any()


def test_a_prompts_lesson_is_its_end_which_differs_between_problems(configure, workload):
    """The seed took its beginning, the same eight worked examples for all (64 of 64 tokens equal)."""
    made = workload("token_alignment", {"teacher.text": "prompt"})
    (ids, mask), lesson = made.prompts.prompt.take([2], "right"), made.objectives.teacher([2])

    expected = made.target.embed(ids[0][mask[0]][-3:])
    assert torch.allclose(lesson.vectors[0], expected / rms(expected), atol=1e-5)


def test_a_layer_teacher_reads_the_text_in_the_target(workload):
    made = workload("token_alignment", {"teacher.layer": 2})
    (ids, _), lesson = made.prompts.answer.take([2], "right"), made.objectives.teacher([2])

    opened = torch.cat([torch.tensor([[made.target.tokenizer.bos_token_id]]), ids], dim=1)
    states = made.target.model(opened, output_hidden_states=True).hidden_states[2][0, 1:4]
    assert torch.allclose(lesson.vectors[0], states / rms(states), atol=1e-4)


@pytest.mark.parametrize("term", ["prompt_alignment", "token_alignment"])
def test_alignment_is_zero_for_soft_tokens_that_are_the_lesson(workload, term: str):
    made = workload(term)
    teacher = made.objectives.teacher
    if term == "prompt_alignment":
        config = TeacherConfig(text="question")
        teacher = Teacher(config, 3, made.target, made.prompts, made.prompts.target_frame.opening)
    made.model = lambda *_: teacher([0, 4]).vectors * made.bridge.target_rms  # type: ignore[assignment]

    assert value(made, term, [0, 4]).item() == pytest.approx(0.0, abs=1e-6)


def test_a_passthrough_bridge_is_evaluated_and_leaves_a_summary(configure, make_run, ranks, pair):
    from latentbridge.translator.train import train

    run = make_run("passthrough")
    changes = {
        "source.model": pair["target"],
        "model.kind": "passthrough",
        "train.steps": 0,
    }
    (summary,) = ranks(train, configure(changes), run, world_size=1)

    assert (summary["steps"], summary["best_step"]) == (0, None)
    assert summary["final"]["bridged_accuracy"]["n"] == 7
    (record,) = [json.loads(line) for line in run.folder.metrics_log.read_text().splitlines()]
    assert record["label"] == "final"
    assert not (run.folder.checkpoints / "best").exists()


def test_the_kl_teacher_says_the_same_whether_the_worked_examples_are_read_once_or_each_time(
    workload, monkeypatch
):
    text = prompts.prompt_text
    monkeypatch.setattr(prompts, "prompt_text", lambda *words: "Think twice. " * 6 + text(*words))
    made = workload("kl")
    assert len(made.prompts.prompt.shared) > 64
    once = value(made, "kl", [0, 1])
    monkeypatch.setattr("latentbridge.translator.objectives.WORTH_SHARING", 1000)
    each = value(workload("kl"), "kl", [0, 1])

    assert once.item() == pytest.approx(each.item(), rel=1e-4)
