import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentbridge.config import Origin, Tree, build, dump
from latentbridge.job import Run
from latentbridge.translator import objectives
from latentbridge.translator.config import TranslatorConfig
from latentbridge.translator.train import Translation, train


@pytest.fixture
def trained(configure, make_run, ranks) -> Callable[..., tuple[dict[str, Any], Run]]:
    """Trains a cell of this launch for two steps."""

    def fit(name: str = "a", changes: dict[str, Any] | None = None) -> tuple[dict[str, Any], Run]:
        run = make_run(name)
        (summary,) = ranks(train, configure(changes), run, world_size=1)
        assert summary is not None
        return summary, run

    return fit


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder.checkpoints / "best" / "model.safetensors")


def losses(run: Run) -> list[dict[str, float]]:
    return [json.loads(line)["losses"] for line in run.folder.train_log.read_text().splitlines()]


def test_a_run_leaves_weights_metrics_answers_and_a_summary(trained):
    summary, run = trained(changes={"early_stop": {"metric": "bridged_nll", "mode": "min"}})
    labels = [json.loads(line)["label"] for line in run.folder.metrics_log.read_text().splitlines()]

    assert (summary["steps"], summary["best_step"], labels) == (2, 2, ["2", "final"])
    assert summary["final"]["bridged_accuracy"]["n"] == 7
    assert summary["best_metric"] == summary["final"]["bridged_nll"]["value"]
    assert "warm_start" not in summary
    assert len(run.folder.eval_samples("final").read_text().splitlines()) == 7
    assert weights(run)["queries"].shape == (3, 8)


def test_source_and_target_swap_by_exchanging_two_settings(configure, make_run):
    here = Origin("spec.yaml", 1)
    values = dump(configure({"source.layer": 2}))
    swapped = Tree(values, {(): here}).swap("source", "target", here)
    workload = Translation(build(TranslatorConfig, swapped), make_run())

    assert (workload.source.hidden_size, workload.target.hidden_size) == (20, 12)
    assert workload.model.out.weight.shape == (12, 8)
    metrics = workload.evaluate(workload.model, 1, "final")
    assert metrics["bridged_accuracy"].n == 7


def test_terms_are_trained_from_their_start_step_on_and_not_at_all_with_weight_zero(trained):
    changes = {"losses.info_nce.weight": 0.0, "losses.kl": {"weight": 0.1, "start_step": 1}}
    _, run = trained(changes=changes)

    assert [list(record) for record in losses(run)] == [["lm"], ["lm", "kl"]]


@pytest.mark.parametrize(
    "without",
    [
        {"losses.info_nce.weight": 0.0},
        {"optim.gate_lr_multiplier": 1.0},
        {"optim.warmup_steps": 0},
        {"optim.clip_norm": None},
        {"model.rms_match": False},
        {"model.gate_init": 0.0},
    ],
)
def test_each_stability_fix_changes_what_is_trained(trained, without: dict[str, Any]):
    """Two of the seed's ablations were one computation under two names."""
    watched = {"early_stop": {"metric": "bridged_nll", "mode": "min"}}
    fixes = {"losses.info_nce.weight": 1.0, "optim.warmup_steps": 2, "optim.clip_norm": 0.01, **watched}
    with_fix, without_fix = (
        weights(trained(n, c)[1]) for n, c in (("on", fixes), ("off", {**fixes, **without}))
    )

    assert any(not torch.equal(with_fix[name], without_fix[name]) for name in with_fix)


def test_stored_source_states_train_like_fresh_ones(trained):
    live = losses(trained("live")[1])
    stored = losses(trained("stored", {"cache_source_states": True})[1])

    for first, second in zip(live, stored, strict=True):
        assert first == pytest.approx(second, rel=1e-2)


def test_deepspeed_trains_like_plain_torch(trained):
    plain = losses(trained("plain")[1])
    deepspeed = losses(trained("deepspeed", {"train.engine": "deepspeed"})[1])

    for first, second in zip(plain, deepspeed, strict=True):
        assert first == pytest.approx(second, rel=1e-5)


def test_the_kl_teacher_reads_the_whole_prompt_as_text(configure, make_run, monkeypatch):
    """The seed's teacher read the answer alone."""
    widths: list[int] = []
    answer_states = objectives.answer_states

    def spy(lm: Any, vectors: torch.Tensor, *rest: torch.Tensor, after: Any = None) -> torch.Tensor:
        widths.append(vectors.shape[1])
        return answer_states(lm, vectors, *rest, after=after)

    monkeypatch.setattr(objectives, "answer_states", spy)
    workload = Translation(configure({"losses.kl.weight": 1.0}), make_run())
    batch = workload.load_batch([5, 1])
    terms = workload.losses(workload.model, batch, step=1)

    # <bos> and the longer prompt, without soft tokens
    assert widths == [1 + max(workload.prompts.prompt.lengths[index] for index in (5, 1))]
    assert terms["kl"].value > 0


def test_info_nce_looks_for_the_own_question_among_those_of_all_ranks(configure, make_run, monkeypatch):
    """Whole prompts, cut to their common worked examples, gave the seed a constant (D6)."""
    seen: list[torch.Tensor] = []

    def spy(soft: torch.Tensor, targets: torch.Tensor, own: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seen.append(targets[own])
        return soft.sum(dim=1)

    monkeypatch.setattr(objectives, "info_nce_per_row", spy)
    monkeypatch.setattr(objectives.distributed, "rank", lambda: 1)
    monkeypatch.setattr(objectives.distributed, "gather_rows", lambda rows: torch.cat([rows + 1, rows]))
    workload = Translation(configure(), make_run())
    workload.losses(workload.model, workload.load_batch([5, 1]), step=1)

    questions = [workload.prompts.question.take([index], "left").values for index in (5, 1)]
    expected = [workload.target.embed(ids).mean(dim=1)[0] for ids in questions]
    assert torch.allclose(seen[0], torch.stack(expected), atol=1e-6)


def test_kl_and_lm_are_means_over_the_batch_not_over_its_padding(configure, make_run):
    workload = Translation(configure({"losses.kl": {"weight": 1.0, "tokens": 4}}), make_run())
    alone = [workload.losses(workload.model, workload.load_batch([index]), 1) for index in (0, 1)]
    both = workload.losses(workload.model, workload.load_batch([0, 1]), 1)
    tokens = [workload.prompts.answer.lengths[index] for index in (0, 1)]

    kl = sum(terms["kl"].value for terms in alone) / 2
    lm = sum(t["lm"].value * n for t, n in zip(alone, tokens, strict=True)) / sum(tokens)
    assert tokens[0] != tokens[1]
    assert both["kl"].value.item() == pytest.approx(kl.item(), rel=1e-5)
    assert both["lm"].value.item() == pytest.approx(lm.item(), rel=1e-5)


def test_the_frozen_models_get_no_gradient(configure, make_run):
    workload = Translation(configure({"losses.kl.weight": 1.0}), make_run())
    terms = workload.losses(workload.model, workload.load_batch([0, 1, 2]), 1)
    torch.stack([term.value for term in terms.values()]).sum().backward()

    for lm in (workload.source, workload.target):
        assert not [p for p in lm.model.parameters() if p.requires_grad or p.grad is not None]
    assert workload.model.queries.grad.any()


def test_a_run_goes_on_where_it_was_stopped(trained, configure, make_run, ranks):
    _, whole = trained("whole", {"train.steps": 3})
    run = make_run("stopped")
    run.should_stop = lambda: (run.folder.train_log).exists()
    assert ranks(train, configure({"train.steps": 3}), run, world_size=1) == [None]
    resumed = Run(run.folder)
    assert ranks(train, configure({"train.steps": 3}), resumed, world_size=1) != [None]

    assert losses(resumed) == losses(whole)


def test_the_heaviest_problems_are_the_longest_and_trying_them_out_leaves_nothing_behind(configure, make_run):
    run = make_run()
    workload = Translation(configure(), run)
    heaviest = list(workload.heaviest(3))
    prompts = workload.prompts

    def size(index: int) -> int:
        return sum(table.lengths[index] for table in (prompts.source, prompts.prompt, prompts.answer))

    assert [size(index) for index in heaviest] == sorted(map(size, range(12)), reverse=True)[:3]
    assert len(list(workload.heaviest(15))) == 15
    workload.evaluate_heaviest(workload.model)
    assert list(run.folder.path.iterdir()) == []


def test_a_source_whose_states_are_stored_leaves_the_device_and_is_back_for_its_own_answers(
    configure, make_run, monkeypatch
):
    moves: list[Any] = []
    stored = Translation(configure({"cache_source_states": True}), make_run("stored"))
    monkeypatch.setattr(stored.source.model, "to", moves.append)
    answers = stored.evaluate(stored.model, 1, "final")["source_alone_accuracy"]

    # once for all three batches, and away again; not at all where every answer is known
    assert [str(device) for device in moves] == ["cpu"] * 2
    stored.evaluate(stored.model, 1, "final")
    assert len(moves) == 2
    live = Translation(configure(), make_run("live"))
    assert live.evaluate(live.model, 1, "final")["source_alone_accuracy"] == answers
