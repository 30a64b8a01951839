from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from latentbridge.errors import ConfigError, RunError
from latentbridge.metric import Metric, void
from latentbridge.rundir import RunDir, read_json, read_jsonl
from latentbridge.train import distributed
from latentbridge.train.loop import LossTerm
from latentbridge.train.seeding import PassOrder


def _train_records(folder: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(RunDir(folder).train_log))


def _curve(folder: Path) -> list[tuple[int, float, float]]:
    return [(record["step"], record["loss"], record["grad_norm"]) for record in _train_records(folder)]


def _labels(folder: Path) -> list[str]:
    return [record["label"] for record in read_jsonl(RunDir(folder).metrics_log)]


@pytest.fixture(scope="module")
def finished(ranks: Any, toy: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the summary of a run of two ranks; evaluations at 0, 4, 6 and of the best."""
    folder = tmp_path_factory.mktemp("finished")
    summaries = ranks(toy.run, folder, toy.make_config(eval_at_start=True, eval_every=4))
    return folder, summaries[0]


def test_every_record_says_what_was_trained_on_and_how_fast(finished: Any) -> None:
    records = _train_records(finished[0])

    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    # two updates of warm-up, then down to one update before 0
    assert [record["lr"] for record in records] == pytest.approx([0.025, 0.05, 0.05, 0.0375, 0.025, 0.0125])
    for record in records:
        assert record.keys() == {
            *("step", "loss", "losses", "lr", "grad_norm", "samples_per_s", "elapsed_s"),
            *("micro_batch_size", "accumulation"),
        }
        # four samples an update on two ranks
        assert (record["micro_batch_size"], record["accumulation"]) == (2, 1)
        terms = record["losses"]
        assert record["loss"] == pytest.approx(terms["cross_entropy"] + 0.01 * terms["size"], rel=1e-6)
    seconds = [record["elapsed_s"] for record in records]
    assert seconds == sorted(seconds)
    assert records[1]["samples_per_s"] == pytest.approx(4 / (seconds[1] - seconds[0]), rel=1e-6)


def test_evaluations_come_at_the_start_at_their_cadence_at_the_end_and_of_the_best(finished: Any) -> None:
    folder, summary = finished
    records = list(read_jsonl(RunDir(folder).metrics_log))

    assert [(record["label"], record["step"]) for record in records] == [
        ("0", 0), ("4", 4), ("6", 6), ("final", 6),
    ]  # fmt: skip
    assert summary["final"] == records[-1]["metrics"]
    # the best was read back from disk, and is what was best
    assert records[-1]["metrics"]["nll"] == records[-2]["metrics"]["nll"]


def test_the_summary_tells_the_best_step_and_its_value(finished: Any) -> None:
    folder, summary = finished

    assert {key: summary[key] for key in ("steps", "stopped_early", "best_step", "best_metric")} == {
        "steps": 6,
        "stopped_early": False,
        "best_step": 6,
        "best_metric": 6.0,
    }
    assert summary["train_s"] == _train_records(folder)[-1]["elapsed_s"]


def test_records_average_over_the_updates_since_the_one_before(
    ranks: Any, toy: Any, tmp_path: Path, finished: Any
) -> None:
    ranks(toy.run, tmp_path, toy.make_config(log_every=4, eval_every=3))
    losses = [loss for _, loss, _ in _curve(finished[0])]

    assert [step for step, _, _ in _curve(tmp_path)] == [4, 6]
    assert [loss for _, loss, _ in _curve(tmp_path)] == pytest.approx(
        [sum(losses[:4]) / 4, sum(losses[4:]) / 2], rel=1e-6
    )


def test_ranks_share_one_order_of_samples_whatever_their_number(ranks: Any, toy: Any, tmp_path: Path) -> None:
    class Recording(toy.Workload):  # type: ignore[misc, name-defined]
        seen: list[list[int]] = []

        def load_batch(self, indices: Any) -> Any:
            self.seen.append(list(indices))
            return indices

    def seen(folder: Path) -> list[list[int]]:
        toy.run(folder, workload=Recording())
        return Recording.seen

    (alone,) = ranks(seen, tmp_path / "1", world_size=1)
    first, second = ranks(seen, tmp_path / "2")

    assert [a + b for a, b in zip(first, second, strict=True)] == alone
    assert sorted([*alone[0], *alone[1], *alone[2]][:11]) == list(range(11))


def test_seed_fault_d1_training_goes_on_in_train_mode_after_every_evaluation(
    ranks: Any, toy: Any, tmp_path: Path
) -> None:
    class Watching(toy.Workload):  # type: ignore[misc, name-defined]
        modes: list[tuple[bool, bool]] = []

        def losses(self, model: Any, batch: Any, step: int) -> Any:
            self.modes.append((model.training, self.model.dropout.training))
            return super().losses(model, batch, step)

        def evaluate(self, model: Any, step: int, label: str) -> Any:
            self.modes.append((model.training, self.model.dropout.training))
            return super().evaluate(model, step, label)

    def modes() -> list[tuple[bool, bool]]:
        toy.run(tmp_path, toy.make_config(steps=3, eval_every=1, eval_at_start=True), Watching())
        return Watching.modes

    (seen,) = ranks(modes, world_size=1)
    # evaluate 0, then (update, evaluate) three times, then evaluate the best
    assert seen == [(False, False), *[(True, True), (False, False)] * 3, (False, False)]


def test_no_micro_batch_s_graph_outlives_it(ranks: Any, toy: Any, tmp_path: Path) -> None:
    """Recorded runs of two micro-batches an update died in their record: the last graph held a stream."""

    class Watching(toy.Workload):  # type: ignore[misc, name-defined]
        held: list[Any] = []
        alive: list[int] = []

        def losses(self, model: Any, batch: Any, step: int) -> Any:
            self.alive.append(sum(term() is not None for term in self.held))
            terms = super().losses(model, batch, step)
            self.held.extend(weakref.ref(term.value) for term in terms.values())
            return terms

    def alive() -> list[int]:
        toy.run(tmp_path, toy.make_config(steps=2, micro_batch_size=2, engine="torch"), Watching())
        return Watching.alive

    (found,) = ranks(alive, world_size=1)
    assert found == [0, 0, 0, 0]


def test_evaluating_more_often_changes_nothing_in_training(ranks: Any, toy: Any, tmp_path: Path) -> None:
    def draw(_: str) -> None:
        torch.rand(7)

    for eval_every in (1, 6):
        config = toy.make_config(eval_every=eval_every)
        workload = toy.Workload(dropout=0.5, evaluate=draw)
        ranks(toy.run, tmp_path / str(eval_every), config, workload, world_size=1)

    assert _curve(tmp_path / "1") == _curve(tmp_path / "6")


def test_seed_fault_d7_two_evaluations_of_the_same_weights_draw_the_same_noise(
    ranks: Any, toy: Any, tmp_path: Path
) -> None:
    drawn: list[float] = []

    def noise() -> list[float]:
        workload = toy.Workload(evaluate=lambda _: drawn.append(torch.rand(()).item()))
        toy.run(tmp_path, workload=workload)
        return drawn

    ((third, sixth, final),) = ranks(noise, world_size=1)
    assert third == sixth == final


# early stop and best


def _scripted(toy: Any, values: dict[str, float | None]) -> Any:
    """A workload whose metric "score" is set in advance, by label."""

    class Scripted(toy.Workload):  # type: ignore[misc, name-defined]
        def evaluate(self, model: Any, step: int, label: str) -> dict[str, Metric]:
            value = values.get(label, 0.0)
            # another rank's numbers differ; the first one's count
            offset = 100.0 * distributed.rank()
            return {"score": void("not measured") if value is None else Metric(value=value + offset, n=1)}

    return Scripted()


def _summary(ranks: Any, toy: Any, folder: Path, values: dict[str, float | None], **settings: Any) -> Any:
    config = toy.make_config(metric="score", eval_every=1, **settings)
    first, second = ranks(toy.run, folder, config, _scripted(toy, values))
    assert first["final"] == second["final"]
    return first


def test_all_ranks_stop_once_patience_is_used_up(ranks: Any, toy: Any, tmp_path: Path) -> None:
    # equal is no improvement
    values: dict[str, float | None] = {"1": 0.2, "2": 0.5, "3": 0.4, "4": 0.5, "5": 0.9, "6": 0.9}
    summary = _summary(ranks, toy, tmp_path, values, patience=2)

    assert (summary["steps"], summary["stopped_early"]) == (4, True)
    assert (summary["best_step"], summary["best_metric"]) == (2, 0.5)
    assert read_json(tmp_path / "checkpoints" / "best" / "state.json")["step"] == 2


def test_without_patience_the_best_is_kept_and_training_goes_on(ranks: Any, toy: Any, tmp_path: Path) -> None:
    values: dict[str, float | None] = {"1": 0.2, "2": 0.5, "3": 0.4, "4": 0.3, "5": 0.2, "6": 0.1}
    summary = _summary(ranks, toy, tmp_path, values)

    assert (summary["steps"], summary["stopped_early"], summary["best_step"]) == (6, False, 2)


def test_a_void_metric_and_untrained_weights_are_never_the_best(ranks: Any, toy: Any, tmp_path: Path) -> None:
    values: dict[str, float | None] = {"0": 0.9, "1": None, "2": -3.0, "3": None}
    summary = _summary(ranks, toy, tmp_path, values, patience=1, eval_at_start=True)

    # the void at 1 used up the patience of one evaluation; nothing was ever best
    assert (summary["steps"], summary["best_step"], summary["best_metric"]) == (1, None, None)
    assert not (tmp_path / "checkpoints" / "best").exists()


def test_a_metric_that_nobody_measures_is_refused_with_those_that_are(
    ranks: Any, toy: Any, tmp_path: Path
) -> None:
    def run() -> None:
        with pytest.raises(ConfigError, match=r"'accuracy', which .* measures nll, step"):
            toy.run(tmp_path, toy.make_config(metric="accuracy"))

    ranks(run)


# losses that cannot train


def _failing(toy: Any, change: Any) -> Any:
    class Failing(toy.Workload):  # type: ignore[misc, name-defined]
        def losses(self, model: Any, batch: Any, step: int) -> dict[str, LossTerm]:
            return change(super().losses(model, batch, step), step)

    return Failing()


@pytest.mark.parametrize("train", [{"engine": "torch"}, {"zero_stage": 1}], ids=str)
def test_a_loss_that_is_not_finite_stops_all_ranks_before_it_can_be_checkpointed(
    ranks: Any, toy: Any, tmp_path: Path, train: dict[str, Any]
) -> None:
    def spoil(terms: dict[str, LossTerm], step: int) -> dict[str, LossTerm]:
        factor = float("nan") if step == 4 and distributed.rank() == 1 else 1.0
        return terms | {"size": LossTerm(terms["size"].value * factor, 0.01)}

    def run() -> None:
        with pytest.raises(RunError, match=r"update 4: losses\.size is not finite on rank 1"):
            toy.run(tmp_path, toy.make_config(log_every=20, **train), _failing(toy, spoil))

    ranks(run)
    # a checkpoint was due at 4
    assert read_json(tmp_path / "checkpoints" / "last" / "state.json")["step"] == 2
    assert _labels(tmp_path) == ["3"]


def test_seed_fault_d4_a_detached_loss_with_weight_is_refused(ranks: Any, toy: Any, tmp_path: Path) -> None:
    def detach(terms: dict[str, LossTerm], step: int) -> dict[str, LossTerm]:
        return terms | {"size": LossTerm(terms["size"].value.detach(), 0.01)}

    def run() -> None:
        with pytest.raises(RunError, match=r"update 1: losses\.size weighs 0\.01, but has no gradient"):
            toy.run(tmp_path, workload=_failing(toy, detach))

    ranks(run, world_size=1)


def test_an_empty_training_set_is_refused(ranks: Any, toy: Any, tmp_path: Path) -> None:
    def run() -> None:
        workload = toy.Workload()
        workload.num_examples = 0
        with pytest.raises(RunError, match="the training set is empty"):
            toy.run(tmp_path, workload=workload)

    ranks(run, world_size=1)


def test_a_workload_whose_examples_have_an_order_of_their_own_gets_them_so(
    ranks: Any, toy: Any, tmp_path: Path
) -> None:
    seen: list[list[int]] = []

    class Ordered(toy.Workload):
        order = PassOrder(5, 3)

        def load_batch(self, indices: list[int]) -> list[int]:
            seen.append(list(indices))
            return [index % 11 for index in indices]

    def train() -> list[list[int]]:
        toy.run(tmp_path / "run", toy.make_config(steps=2), Ordered())
        return seen

    (found,) = ranks(train, world_size=1)
    assert found == [PassOrder(5, 3).take(0, 4), PassOrder(5, 3).take(4, 4)]
