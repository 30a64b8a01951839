"""A tracker holds what the logs hold, and is never in the way."""

from __future__ import annotations

import json
import logging
import struct
from pathlib import Path
from typing import Any

import pytest

from latentbridge import trackers as trackers_module
from latentbridge.job import Run
from latentbridge.metric import Metric, void
from latentbridge.rundir import RunDir
from latentbridge.trackers import TrackerName, Trackers, check_installed, numbers

NLL = Metric(value=0.5, n=7, low=0.25, high=0.75).as_record()
VOID = void("no samples").as_record()


def begin(folder: Path, *names: TrackerName) -> Run:
    """The next attempt of a run in this folder."""
    run = RunDir(folder)
    run.config.write_text("seed: 3\noptim: {lr: 0.5, betas: [0.5, 0.75]}\n")
    run.write_manifest({"launch": "s_20260101_000000", "trackers": list(names)})
    return Run(run)


def make_updates(run: Run, *steps: int) -> None:
    for step in steps:
        run.log({"step": step, "loss": 1 / step, "losses": {"lm": 2.0 * step}, "is_odd": True, "note": "x"})


def evaluate(run: Run, step: int, label: str) -> None:
    run.log_metrics({"step": step, "label": label, "metrics": {"nll": NLL, "accuracy": VOID}})


def first_attempt(folder: Path, *names: TrackerName) -> None:
    """Updates 1 to 4, of which the last two are not saved."""
    run = begin(folder, *names)
    make_updates(run, 1, 2)
    evaluate(run, 2, "2")
    make_updates(run, 3, 4)
    run.close()


def second_attempt(folder: Path, *names: TrackerName) -> None:
    """On from update 2; the best weights are of update 3."""
    run = begin(folder, *names)
    run.forget_after(2)
    make_updates(run, 3, 4)
    evaluate(run, 4, "4")
    evaluate(run, 3, "final")
    run.close()


HELD = {
    "train/loss": [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)],
    "train/losses/lm": [(1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0)],
    "eval/nll": [(2, 0.5), (4, 0.5)],
    "eval/nll/low": [(2, 0.25), (4, 0.25)],
    "eval/nll/high": [(2, 0.75), (4, 0.75)],
    "final/step": [(4, 3.0)],
    "final/nll": [(4, 0.5)],
    "final/nll/low": [(4, 0.25)],
    "final/nll/high": [(4, 0.75)],
}


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(RunDir(folder).trackers / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_each_step_of_a_resumed_run_once_and_no_void_metric(tmp_path: Path) -> None:
    first_attempt(tmp_path, "tensorboard")
    second_attempt(tmp_path, "tensorboard")

    assert read_tensorboard(tmp_path) == HELD


def test_mlflow_holds_each_step_of_a_resumed_run_once_and_no_void_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: Any
) -> None:
    pytest.importorskip("mlflow", reason="pip install -e '.[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def train_and_read() -> Any:
        import mlflow

        second_attempt(tmp_path, "mlflow")
        client = mlflow.MlflowClient()
        (experiment,) = client.search_experiments(filter_string="name = 's_20260101_000000'")
        (run,) = client.search_runs([experiment.experiment_id])
        names = run.data.metrics
        history = {
            name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            for name in names
        }
        return run.info.run_name, run.info.status, run.data.params, history

    ranks(first_attempt, tmp_path, "mlflow", world_size=1)
    ((name, status, settings, history),) = ranks(train_and_read, world_size=1)
    assert (name, status) == (tmp_path.name, "FINISHED")
    assert settings == {"seed": "3", "optim.lr": "0.5", "optim.betas": "[0.5, 0.75]"}
    assert history == HELD
    assert (tmp_path / "trackers" / "mlflow" / "mlflow.db").exists()


def test_wandb_stays_offline_and_holds_each_step_of_a_resumed_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: Any
) -> None:
    pytest.importorskip("wandb", reason="pip install -e '.[wandb]'")
    monkeypatch.delenv("WANDB_MODE", raising=False)

    for attempt in (first_attempt, second_attempt):
        ranks(attempt, tmp_path, "wandb", world_size=1)

    (record,) = (tmp_path / "trackers" / "wandb").glob("offline-run-*/*.wandb")
    assert read_wandb(record) == HELD


def read_wandb(path: Path) -> dict[str, list[tuple[int, float]]]:
    """What an offline run of less than one block (32 KiB) would tell the server."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list[tuple[int, float]]] = {}
    # after the file's head of 7 bytes, records as LevelDB logs them: a checksum, the length, the kind
    data = path.read_bytes()[7:]
    while data:
        _, length, _ = struct.unpack("<IHB", data[:7])
        record, data = wandb_internal_pb2.Record.FromString(data[7 : 7 + length]), data[7 + length :]
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            if not name.startswith("_"):
                found.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
    return found


class Broken:
    """A tracker that ends its service at a step."""

    def __init__(self, fails_at: int) -> None:
        self.fails_at, self.told, self.finished = fails_at, [], False

    def start(self) -> None:
        if self.fails_at == 0:
            raise OSError("no route to host")

    def log(self, values: dict[str, float], step: int) -> None:
        if step == self.fails_at:
            raise OSError("no route to host")
        self.told.append(step)

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize(("fails_at", "told"), [(0, []), (2, [1])])
def test_a_tracker_that_fails_is_left_out_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, fails_at: int, told: list[int]
) -> None:
    broken, sound = Broken(fails_at), Broken(-1)
    makers = {"wandb": lambda *_: broken, "tensorboard": lambda *_: sound}
    monkeypatch.setattr(trackers_module, "_MAKERS", makers)
    run = begin(tmp_path, "wandb", "tensorboard")

    with caplog.at_level(logging.WARNING):
        make_updates(run, 1, 2, 3)
        run.close()

    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "wandb fails, and is left out from here on; training goes on: no route to host"
    assert (broken.told, broken.finished) == (told, False)
    assert (sound.told, sound.finished) == ([1, 2, 3], True)


@pytest.mark.parametrize("line", ["{torn\n", "3\n", '{"label": "5"}\n', '{"step": "x", "metrics": {}}\n'])
def test_a_damaged_log_leaves_every_tracker_out_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, line: str
) -> None:
    trackers = {name: Broken(-1) for name in ("wandb", "tensorboard")}
    makers = {name: lambda *_, name=name: trackers[name] for name in trackers}
    monkeypatch.setattr(trackers_module, "_MAKERS", makers)
    RunDir(tmp_path).metrics_log.write_text(line)
    run = begin(tmp_path, "wandb", "tensorboard")

    with caplog.at_level(logging.WARNING):
        make_updates(run, 1, 2)
        run.close()

    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("wandb, tensorboard fails, and is left out from here on; training goes on: ")
    assert [tracker.told for tracker in trackers.values()] == [[], []]


def test_only_rank_0_tells_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    run = begin(tmp_path, "tensorboard")
    make_updates(run, 1)
    evaluate(run, 1, "1")
    run.close()

    assert not RunDir(tmp_path).trackers.exists()


def test_a_void_metric_is_no_number_and_neither_are_words_and_flags() -> None:
    evaluation = {"step": 5, "label": "5", "metrics": {"nll": {"value": 0.0, "n": 2}, "accuracy": VOID}}

    assert numbers(evaluation) == {"eval/nll": 0.0}
    assert numbers({"step": 5, "loss": 2, "is_odd": True, "note": "x"}) == {"train/loss": 2}


def test_who_asks_for_no_tracker_imports_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trackers, "_begin", None)
    make_updates(begin(tmp_path), 1)

    assert not RunDir(tmp_path).trackers.exists()


def test_a_package_that_is_missing_is_refused_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers_module, "find_spec", lambda name: None if name == "mlflow" else object())

    assert check_installed(["wandb", "tensorboard", "wandb"]) == ["wandb", "tensorboard"]
    with pytest.raises(ValueError, match=r"'mlflow' is not installed here; pip install -e '\.\[mlflow\]'"):
        check_installed(["tensorboard", "mlflow"])
