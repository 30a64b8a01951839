from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from products import Products

from latentbridge.data.problems import Problem, load_problems
from latentbridge.translator import prompts
from latentbridge.translator.train import Translation

QUIET = {"losses.info_nce.weight": 0.0, "problems.train_examples": 40, "eval.max_new_tokens": 3}


@pytest.fixture
def workload(configure, make_run, monkeypatch) -> Callable[[dict[str, Any]], Translation]:
    """Reads no padding: rows are as wide as the longest, and a test takes rows of equal prompts."""
    monkeypatch.setattr(prompts, "_BUCKET", 1)
    names = (f"run{number}" for number in count())
    return lambda changes: Translation(configure({**QUIET, **changes}), make_run(next(names)))


def of_equal_prompts(made: Translation) -> list[int]:
    """Three problems whose prompts have one length and whose answers do not."""
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(made.prompts.source.lengths):
        by_length.setdefault(length, []).append(index)
    chosen = max(by_length.values(), key=len)[:3]
    assert len(chosen) == 3
    return chosen


def counted(made: Translation, indices: list[int], step: int) -> int:
    """What an update multiplies, but for what all prompts begin with."""

    def update() -> None:
        terms = made.losses(made.model, made.load_batch(indices), step)
        torch.stack([term.weight * term.value for term in terms.values()]).sum().backward()

    # reads beginnings that are shared
    update()
    with Products() as products:
        update()
    return products.total


WHOLE = {"prompt_mode": "soft_plus_text"}
KL = {"losses.kl": {"weight": 0.1, "tokens": 5}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cache_source_states": True},
        {"model": {"depth": 3, "dim": 12, "soft_tokens": 5}},
        WHOLE,
        {**WHOLE, "injection": "adapter"},
        KL,
        {**KL, "losses.lm.weight": 0.0},
        {"losses.format.weight": 0.5, "losses.lm.weight": 0.0},
        {"losses.decode": {"weight": 0.5, "every": 1}},
        {"losses.token_alignment.weight": 0.5, "teacher": {"text": "question", "layer": 1}},
        {"model": {"kind": "dit", "gate_init": 0.0}},
        {"model": {"kind": "dit", "gate_init": 0.0, "dit": {"pool": "attention"}}},
        {
            "model": {"kind": "dit", "gate_init": 0.0},
            "model.dit": {"train_sampling_steps": 3, "guidance": 1.5, "drop_condition": 0.3},
            "losses.flow.weight": 0.5,
        },
    ],
    ids=lambda changes: " ".join(f"{key}={value}" for key, value in changes.items())[:60],
)
def test_flops_of_an_update_are_those_that_torch_counts(workload, changes: dict[str, Any]):
    made = workload(changes)
    indices = of_equal_prompts(made)

    assert made.flops(made.load_batch(indices), 2) == pytest.approx(counted(made, indices, 2), rel=0.005)


def test_a_beginning_that_all_prompts_share_is_not_counted_again(configure, make_run, monkeypatch):
    """Of eight worked examples the source and the teacher of kl read each once in a run."""
    monkeypatch.setattr(prompts, "_BUCKET", 1)
    for module in ("states", "objectives", "flops"):
        monkeypatch.setattr(f"latentbridge.translator.{module}.WORTH_SHARING", 30)
    opening = "All of this is true of a small town. "

    def told(config: Any, split: Any) -> list[Problem]:
        return [replace(p, question=opening + p.question) for p in load_problems(config, split)[:]]

    made = Translation(configure({**QUIET, **KL}), make_run(), problems=told)
    assert len(made.prompts.source.shared) > len(made.prompts.prompt.shared) >= len(opening)
    indices = of_equal_prompts(made)

    assert made.flops(made.load_batch(indices), 2) == pytest.approx(counted(made, indices, 2), rel=0.005)


def test_terms_count_from_the_update_in_which_they_begin(workload):
    made = workload({"losses.kl": {"weight": 0.1, "start_step": 3}, "train.steps": 6})
    batch = made.load_batch([1, 4])
    each = [made.flops(batch, step) for step in range(1, 7)]

    assert each[0] == each[2] < each[3] == each[5]


def test_a_curriculum_counts_the_rows_that_show_their_text_on_average(workload):
    shown = workload(WHOLE)
    hidden, half = workload({}), workload({"text_curriculum_steps": 4, "train.steps": 6})
    batch = shown.load_batch([1, 4])
    most, least = shown.flops(batch, 1), hidden.flops(batch, 1)

    assert [half.flops(batch, step) for step in (1, 3, 5)] == [most, (most + least) / 2, least]
