"""A run's numbers in TensorBoard, Weights & Biases or MLflow too, through accelerate's trackers.

A tracker holds what train.jsonl and metrics.jsonl hold: every attempt fills it anew from them, so that a
resumed run neither repeats a step nor lacks one. It stays on this disk, in RUN/trackers, unless the
environment says otherwise (WANDB_MODE, MLFLOW_TRACKING_URI). One that fails is left out for the rest of the
attempt.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from latentbridge.config import read_yaml
from latentbridge.rundir import RunDir, read_jsonl

TrackerName = Literal["tensorboard", "wandb", "mlflow"]

# of a server that does not answer: MLflow's own patience is an hour, in which no rank would train
_BRIEF = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}

log = logging.getLogger(__name__)


def check_installed(names: list[TrackerName]) -> list[TrackerName]:
    """The names, for a settings class; ValueError where this interpreter lacks a package."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"'{name}' is not installed here; pip install -e '.[{name}]', or leave it out")
    return list(dict.fromkeys(names))


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """What a tracker is told of one record of a run, by name; a void metric is left out, not 0."""
    if "metrics" not in record:
        return dict(_leaves("train", {key: value for key, value in record.items() if key != "step"}))
    is_final = record["label"] == "final"
    found: dict[str, float] = {"final/step": record["step"]} if is_final else {}
    for name, metric in record["metrics"].items():
        known = {f"/{part}": metric[part] for part in ("low", "high") if part in metric}
        values = {"": metric["value"], **known} if "value" in metric else {}
        found |= {f"{'final' if is_final else 'eval'}/{name}{part}": value for part, value in values.items()}
    return found


def _leaves(prefix: str, values: dict[str, Any]) -> Iterable[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(f"{prefix}/{key}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{key}", value


class Trackers:
    """The trackers of one attempt; for rank 0. Nothing here raises."""

    def __init__(self, folder: RunDir, names: Iterable[str]) -> None:
        self._folder, self._names = folder, tuple(names)
        # open ones by name, each an accelerate GeneralTracker; None before the first record
        self._open: dict[str, Any] | None = None
        self._last_step = 0

    def follow(self, record: dict[str, Any]) -> None:
        """Tell every tracker what was just added to a log; the first one brings all that is there with it."""
        if not self._names or self._open == {}:
            return
        is_first = self._open is None
        if self._open is None:
            self._open = {}
        told: list[tuple[int, dict[str, float]]] = []
        # a damaged log may hold anything
        self._guarded(lambda: told.extend(_told(self._folder, None if is_first else record)), *self._names)
        if is_first and told:
            for name in self._names:
                self._guarded(partial(self._begin, name), name)
        for made_at, values in told:
            # the best weights are evaluated once more at the end, and trackers take steps in order
            self._last_step = step = max(self._last_step, made_at)
            for name, tracker in list(self._open.items()):
                self._guarded(partial(tracker.log, values, step=step, **_LOG_WORDS.get(name, {})), name)

    def close(self) -> None:
        """Have every tracker end its run."""
        for name, tracker in list((self._open or {}).items()):
            self._guarded(partial(_end, name, tracker), name)

    def _begin(self, name: str) -> None:
        from accelerate import tracking

        # accelerate's own logger wants a PartialState, for which rank 0 would wait for all others
        tracking.logger = logging.getLogger(tracking.__name__)
        place = self._folder.trackers / name
        if name != "tensorboard":
            shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        tracker = _MAKERS[name](tracking, self._folder, place)
        # asked for by this attribute, too
        tracker.main_process_only = False
        tracker.start()
        if name == "mlflow":
            tracker.store_init_configuration(_settings(self._folder))
        assert self._open is not None
        self._open[name] = tracker

    def _guarded(self, act: Callable[[], None], *names: str) -> None:
        """Do what may fail, and leave these trackers out if it does."""
        try:
            act()
        except Exception as error:
            assert self._open is not None
            for name in names:
                self._open.pop(name, None)
            log.warning(
                "%s fails, and is left out from here on; training goes on: %s", ", ".join(names), error
            )


def _end(name: str, tracker: Any) -> None:
    if name == "mlflow":
        import mlflow

        mlflow.flush_async_logging()
    tracker.finish()


def _told(folder: RunDir, record: dict[str, Any] | None) -> list[tuple[int, dict[str, float]]]:
    """Step and numbers of this record; None: of all of a run as they were made.

    Of one step the updates come before the evaluation.
    """
    records = [*read_jsonl(folder.train_log), *read_jsonl(folder.metrics_log)] if record is None else [record]
    records.sort(key=lambda each: (each.get("label") == "final", each["step"]))
    return [(int(each["step"]), numbers(each)) for each in records]


def _settings(folder: RunDir) -> dict[str, Any]:
    """The run's settings by dotted key."""
    return read_yaml(folder.config).flat() if folder.config.exists() else {}


def _launch(folder: RunDir) -> str:
    return str(folder.read_manifest().get("launch", folder.path.parent.name))


def _tensorboard(tracking: Any, folder: RunDir, place: Path) -> Any:
    # hides what earlier attempts wrote; a TensorBoard that looks on bears no deletion
    return tracking.TensorBoardTracker(place.name, logging_dir=place.parent, purge_step=0)


def _wandb(tracking: Any, folder: RunDir, place: Path) -> Any:
    mode = os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    launch = _launch(folder)
    return tracking.WandBTracker(
        os.environ.get("WANDB_PROJECT", launch),
        id=hashlib.sha256(f"{launch}/{folder.name}".encode()).hexdigest()[:16],
        name=folder.name,
        group=launch,
        # W&B makes its folder `wandb` in there
        dir=str(place.parent),
        config=_settings(folder),
        # what the server has of earlier attempts stays, and it takes no step twice
        resume=None if mode == "offline" else "allow",
        # what a rank prints is in attempts/
        settings={"console": "off"},
    )


def _mlflow(tracking: Any, folder: RunDir, place: Path) -> Any:
    is_local = "MLFLOW_TRACKING_URI" not in os.environ
    for name, value in {"MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", **_BRIEF}.items():
        os.environ.setdefault(name, value)
    artifacts = str(place / "artifacts") if is_local else None
    return tracking.MLflowTracker(_launch(folder), logging_dir=artifacts, run_name=folder.name)


# SQLite takes 50 ms a record, with which a long run's logs would be filled in for minutes; in the background
# MLflow joins what waits
_LOG_WORDS = {"mlflow": {"synchronous": False}}
_MAKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
