from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from latentbridge.errors import RunError
from latentbridge.job import Run
from latentbridge.rundir import RunDir, read_json, read_jsonl
from latentbridge.train import checkpoint
from latentbridge.train.config import EarlyStopConfig
from latentbridge.train.loop import begin, fit


def _curve(folder: Path) -> list[tuple[int, float, float]]:
    return [
        (record["step"], record["loss"], record["grad_norm"])
        for record in read_jsonl(RunDir(folder).train_log)
    ]


def _labels(folder: Path) -> list[str]:
    return [record["label"] for record in read_jsonl(RunDir(folder).metrics_log)]


def _best_weights(folder: Path) -> dict[str, Any]:
    weights = load_file(folder / "checkpoints" / "best" / "model.safetensors")
    return {name: tensor.tolist() for name, tensor in weights.items()}


def _kill_at(moment: int | str) -> Any:
    def hook(now: int | str) -> None:
        if now == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


class AskedToStop(Run):
    """A run that is asked to stop as soon as `moment` (an update, or an evaluation's label) begins."""

    def __init__(self, folder: Path, workload: Any, moment: int | str) -> None:
        super().__init__(RunDir(folder), attempt=folder)
        self.asked = False
        workload.hooks["losses"] = workload.hooks["evaluate"] = self._begin
        self._moment = moment

    def _begin(self, now: int | str) -> None:
        self.asked = self.asked or now == self._moment

    def should_stop(self) -> bool:
        return self.asked


KILLS: list[Any] = [
    pytest.param(1, {"engine": "torch"}, 5, id="torch"),
    pytest.param(2, {"engine": "torch", "precision": "bf16", "micro_batch_size": 1}, 4, id="torch-bf16"),
    pytest.param(2, {"zero_stage": 1, "micro_batch_size": 1}, 5, id="zero 1, 2 ranks, accumulation"),
    pytest.param(1, {"zero_stage": 3}, 4, id="zero 3"),
    pytest.param(1, {"zero_stage": 1, "precision": "bf16"}, 6, id="bf16"),
    pytest.param(1, {"zero_stage": 0}, 2, id="zero 0, before any checkpoint"),
]


@pytest.mark.parametrize(("world_size", "train", "killed_at"), KILLS)
def test_a_run_killed_and_resumed_equals_an_uninterrupted_one_bit_for_bit(
    ranks: Any, toy: Any, tmp_path: Path, world_size: int, train: dict[str, Any], killed_at: int
) -> None:
    config = toy.make_config(**train)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    ranks(toy.run, whole, config, toy.Workload(dropout=0.5), world_size=world_size)
    killed = toy.Workload(dropout=0.5, losses=_kill_at(killed_at))
    ranks.until_killed(toy.run, resumed, config, killed, world_size=world_size)
    ranks(toy.run, resumed, config, toy.Workload(dropout=0.5), world_size=world_size)

    assert _best_weights(resumed) == _best_weights(whole)
    assert _curve(resumed) == _curve(whole)
    assert _labels(resumed) == _labels(whole) == ["3", "6", "final"]


@pytest.mark.parametrize("train", [{"engine": "torch"}, {"zero_stage": 1}, {"zero_stage": 3}], ids=str)
def test_a_run_that_backs_off_half_way_trains_on_as_if_it_had_not(
    ranks: Any, toy: Any, tmp_path: Path, train: dict[str, Any]
) -> None:
    # one record over the change: two updates of one forward before it, and two of two after it
    config = toy.make_config(log_every=4, eval_every=6, **train)
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    ranks(toy.run, tmp_path / "whole", config)
    ranks.until_killed(toy.run, tmp_path / "resumed", config, toy.Workload(losses=_kill_at(3)), world_size=2)
    RunDir(tmp_path / "resumed").write_manifest({"backoff": 1})
    ranks(toy.run, tmp_path / "resumed", config)

    for resumed, whole in zip(_curve(tmp_path / "resumed"), _curve(tmp_path / "whole"), strict=True):
        assert resumed == pytest.approx(whole, rel=3e-6)


@pytest.mark.parametrize("killed_at", ["3", "6", "final"])
@pytest.mark.parametrize("checkpoint_every", [2, 3])
def test_an_evaluation_that_was_cut_short_is_made_once_and_none_is_skipped(
    ranks: Any, toy: Any, tmp_path: Path, killed_at: str, checkpoint_every: int
) -> None:
    config = toy.make_config(engine="torch", checkpoint_every=checkpoint_every)
    ranks.until_killed(toy.run, tmp_path, config, toy.Workload(evaluate=_kill_at(killed_at)))

    def resume() -> list[str]:
        workload = toy.Workload()
        toy.run(tmp_path, config, workload)
        return workload.evaluated

    ((*evaluated,),) = ranks(resume, world_size=1)
    assert _labels(tmp_path) == ["3", "6", "final"]
    assert evaluated == ["3", "6", "final"][["3", "6", "final"].index(killed_at) :]


def test_an_evaluation_without_improvement_is_remembered_too(ranks: Any, toy: Any, tmp_path: Path) -> None:
    # the largest nll is the best here, so the second evaluation improves nothing
    config = toy.make_config(engine="torch", checkpoint_every=2, eval_every=2)
    config = config.model_copy(update={"early_stop": EarlyStopConfig(metric="nll", patience=2)})
    ranks.until_killed(toy.run, tmp_path, config, toy.Workload(losses=_kill_at(5)))

    def resume() -> list[str]:
        workload = toy.Workload()
        summary = toy.run(tmp_path, config, workload)
        assert (summary["best_step"], summary["stopped_early"]) == (2, True)
        return workload.evaluated

    assert ranks(resume, world_size=1) == [["6", "final"]]
    assert _labels(tmp_path) == ["2", "4", "6", "final"]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("where", ["write_best", "rewrite_last_state", "link_best"])
def test_a_crash_after_an_evaluations_record_does_not_double_it(
    ranks: Any, toy: Any, tmp_path: Path, where: str, before: bool
) -> None:
    config = toy.make_config(engine="torch", checkpoint_every=3)
    real = getattr(checkpoint, where)

    def arm(label: str) -> None:
        if label == "6":  # by then there is an older best to lose
            kill = _kill_at("now")
            setattr(checkpoint, where, lambda *args: (before or real(*args), kill("now")))

    ranks.until_killed(toy.run, tmp_path, config, toy.Workload(evaluate=arm))
    checkpoints = tmp_path / "checkpoints"
    assert (checkpoints / read_json(checkpoints / "last" / "state.json")["best_folder"]).is_dir()
    ranks(toy.run, tmp_path, config, world_size=1)

    assert _labels(tmp_path) == ["3", "6", "final"]
    assert read_json(checkpoints / "best" / "state.json")["step"] == 6


def test_better_weights_go_to_disk_with_the_next_checkpoint_as_they_were(
    ranks: Any, toy: Any, tmp_path: Path
) -> None:
    # the largest nll is the best: that of update 2, which the first checkpoint comes three updates after
    config = toy.make_config("nll", engine="torch", eval_every=2, checkpoint_every=5)
    config = config.model_copy(update={"early_stop": EarlyStopConfig(metric="nll", mode="max")})

    def run() -> tuple[list[str], dict[str, Any]]:
        calls: list[str] = []
        seen: dict[str, Any] = {}
        workload = toy.Workload()

        def look(label: str) -> None:
            calls.append(f"evaluate {label}")
            seen.setdefault("down", workload.model.down.weight.tolist())

        for name in ("write_best", "save_last"):
            real = getattr(checkpoint, name)
            setattr(checkpoint, name, lambda *args, n=name, real=real: (calls.append(n), real(*args))[1])
        workload.hooks["evaluate"] = look
        toy.run(tmp_path, config, workload)
        return calls, seen

    ((calls, seen),) = ranks(run, world_size=1)
    assert calls[:4] == ["evaluate 2", "evaluate 4", "write_best", "save_last"]
    assert calls[4:] == ["evaluate 6", "save_last", "evaluate final"]
    assert _best_weights(tmp_path)["down.weight"] == seen["down"]


def test_a_run_that_ended_without_its_marker_only_repeats_the_final_evaluation(
    ranks: Any, toy: Any, tmp_path: Path
) -> None:
    def run() -> list[str]:
        workload = toy.Workload()
        toy.run(tmp_path, toy.make_config(engine="torch"), workload)
        return workload.evaluated

    assert ranks(run, world_size=1) == [["3", "6", "final"]]
    assert ranks(run, world_size=1) == [["final"]]
    assert _labels(tmp_path) == ["3", "6", "final"]


def test_a_run_whose_last_was_removed_starts_anew(ranks: Any, toy: Any, tmp_path: Path) -> None:
    config = toy.make_config(engine="torch")
    ranks(toy.run, tmp_path, config, world_size=1)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "last").unlink()
    stale = {path.name for path in checkpoints.iterdir()} - {"best"}
    ranks.until_killed(toy.run, tmp_path, config, toy.Workload(losses=_kill_at(1)))

    assert list(checkpoints.iterdir()) == []
    assert len(stale) == 2
    assert _labels(tmp_path) == []


def test_a_stop_request_to_one_rank_stops_all_of_them_at_a_checkpoint(
    ranks: Any, toy: Any, tmp_path: Path
) -> None:
    def stop() -> Any:
        workload = toy.Workload()
        moment = 5 if os.environ["RANK"] == "1" else "never"
        return fit(workload, toy.make_config(), AskedToStop(tmp_path, workload, moment))

    assert ranks(stop) == [None, None]
    assert read_json(tmp_path / "checkpointed.json") == {"step": 5}
    assert read_json(tmp_path / "checkpoints" / "last" / "state.json")["step"] == 5
    assert read_json(tmp_path / "progress.json")["stage"] == "training"


@pytest.mark.parametrize(
    ("moment", "evaluated_first"), [(3, []), ("3", ["3"]), (4, ["3"]), ("6", ["3", "6"])]
)
def test_a_stop_at_an_evaluation_neither_skips_nor_repeats_it(
    ranks: Any, toy: Any, tmp_path: Path, moment: int | str, evaluated_first: list[str]
) -> None:
    def stop() -> tuple[Any, list[str]]:
        workload = toy.Workload()
        run = AskedToStop(tmp_path, workload, moment)
        return fit(workload, toy.make_config(engine="torch"), run), workload.evaluated

    def resume() -> list[str]:
        workload = toy.Workload()
        toy.run(tmp_path, toy.make_config(engine="torch"), workload)
        return workload.evaluated

    assert ranks(stop, world_size=1) == [(None, evaluated_first)]
    ((*evaluated,),) = ranks(resume, world_size=1)
    assert evaluated_first + evaluated == ["3", "6", "final"]
    assert _labels(tmp_path) == ["3", "6", "final"]


def test_zero_checkpoints_of_another_number_of_ranks_are_refused_with_the_remedy(
    ranks: Any, toy: Any, tmp_path: Path
) -> None:
    ranks(toy.run, tmp_path, toy.make_config(zero_stage=2))

    def resume() -> None:
        # before there is a workload, which can take minutes to build
        with pytest.raises(RunError, match=r"ranks 2; this is .*ranks 1\. Resume with what wrote it, or"):
            begin(toy.make_config(zero_stage=2), Run(RunDir(tmp_path)))

    ranks(resume, world_size=1)


def test_a_tracker_of_a_run_that_was_killed_and_resumed_holds_what_its_logs_hold(
    ranks: Any, toy: Any, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = toy.make_config(zero_stage=1)
    RunDir(tmp_path).write_manifest({"trackers": ["tensorboard"]})
    ranks.until_killed(toy.run, tmp_path, config, toy.Workload(losses=_kill_at(6)), world_size=2)
    ranks(toy.run, tmp_path, config, world_size=2)

    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard"))
    events.Reload()
    for tag, place in {"train/loss": 1, "train/grad_norm": 2}.items():
        told = [(event.step, event.value) for event in events.Scalars(tag)]
        assert told == [(record[0], pytest.approx(record[place])) for record in _curve(tmp_path)]
    assert [event.step for event in events.Scalars("eval/nll")] == [3, 6]
    assert [event.step for event in events.Scalars("final/nll")] == [6]
