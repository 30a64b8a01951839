"""One short run, watched through the real loop to its archive: trained, evaluated, stopped, resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from latentbridge.audit.ablations import read_launch, summarize
from latentbridge.audit.table import render
from latentbridge.config import JobConfig, config_id, to_yaml
from latentbridge.errors import LatentbridgeError
from latentbridge.job import Run
from latentbridge.launch.preserve import preserve, verify
from latentbridge.metric import Metric
from latentbridge.rehearsal.contract import Caught, Stage
from latentbridge.rundir import RunDir, write_json
from latentbridge.train.checkpoint import named_tensors
from latentbridge.train.loop import FINAL, LossTerm, Ordered, Recordable, Workload, fit

# evaluated after every update; the first is made the best, so best and last are different weights
STEPS = 2
BEST = 1

Weights = dict[str, Tensor]


@dataclass
class Performance:
    """What was seen.

    training: for every call, whether it was an evaluation and whether each module was in training mode
    weights: of the trained model at each evaluation, by its label;  best: as read back from disk
    num_preserved: files of the archive
    """

    training: list[tuple[str, bool]] = field(default_factory=list)
    weights: dict[str, Weights] = field(default_factory=dict)
    best: Weights = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    num_preserved: int = 0


class _Watched:
    """A workload that lets the loop do everything, and tells the performance."""

    def __init__(self, workload: Workload, seen: Performance, watched: str, mode: str) -> None:
        self._workload, self._seen, self._watched, self._mode = workload, seen, watched, mode
        self.model: nn.Module = workload.model
        self.num_examples = workload.num_examples
        if isinstance(workload, Ordered):
            self.order = workload.order
        if isinstance(workload, Recordable):
            self.begin_update = workload.begin_update
            self.fixed_losses = partial(self._watch, workload.fixed_losses)

    def load_batch(self, indices: Sequence[int]) -> Any:
        return self._workload.load_batch(indices)

    def losses(self, model: nn.Module, batch: Any, step: int) -> dict[str, LossTerm]:
        return self._watch(self._workload.losses, model, batch, step)

    def _watch(self, losses: Callable[..., dict[str, LossTerm]], *given: Any) -> dict[str, LossTerm]:
        modes = {module.training for module in self.model.modules()}
        self._seen.training.append(("an update", modes == {True}))
        return losses(*given)

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        modes = {module.training for module in self.model.modules()}
        self._seen.training.append(("an evaluation", modes == {False}))
        self._seen.weights[label] = _copied(self.model)
        metrics = self._workload.evaluate(model, step, label)
        if label != FINAL and self._watched in metrics:
            # worse with every update
            value = float(-step if self._mode == "max" else step)
            metrics = {**metrics, self._watched: replace(metrics[self._watched], value=value)}
        return metrics


class _Interrupted(Run):
    """Asks to stop once the first update is made and evaluated."""

    def __init__(self, folder: RunDir, seen: Performance) -> None:
        super().__init__(folder)
        self._seen = seen

    def should_stop(self) -> bool:
        return str(BEST) in self._seen.weights

    def stopped_at(self, step: int) -> None:
        """Nobody needs to be told."""


def perform(stage: Stage) -> Performance:
    """Run the shrunk config for two updates, stopped and resumed between them, and archive it.

    Caught if it breaks, or if something is lost on the way.
    """
    config = stage.config
    train = config.train.model_copy(
        update={
            "steps": STEPS,
            "engine": "torch",
            "zero_stage": 0,
            "precision": "fp32",
            "eval_every": 1,
            "checkpoint_every": 1,
            "log_every": 1,
            "eval_at_start": True,
        }
    )
    early_stop = config.early_stop.model_copy(update={"patience": None})
    config = config.model_copy(update={"train": train, "early_stop": early_stop})
    seen, run = Performance(), stage.run()
    try:
        for visit in (_Interrupted(run.folder, seen), run):
            made = _Watched(stage.fresh(), seen, early_stop.metric, early_stop.mode)
            summary = fit(made, config, visit)
    except LatentbridgeError as error:
        raise Caught(f"the loop refuses it: {error}") from error
    except Exception as error:
        raise Caught(f"it breaks in the loop: {type(error).__name__}: {error}") from error
    if summary is None:
        raise Caught("a run that was stopped does not go on to its end")
    seen.summary = summary
    best = run.folder.checkpoints / "best" / "model.safetensors"
    seen.best = load_file(best) if best.exists() else {}
    try:
        seen.num_preserved = _archive(run, config, summary)
    except Caught:
        raise
    except Exception as error:
        raise Caught(
            f"the finished run cannot be summarised and archived: {type(error).__name__}: {error}"
        ) from error
    return seen


def _archive(run: Run, config: JobConfig, summary: dict[str, Any]) -> int:
    """Do what is done at the end of a launch, as if this run were all of it; returns the number of files."""
    folder = run.folder
    folder.config.write_text(to_yaml(config))
    folder.write_manifest({"name": folder.name, "seed": config.seed})
    run.done(summary)
    launch = folder.path.with_name(f"{folder.name}-launch")
    launch.mkdir()
    # an archive holds what its links lead to
    (launch / folder.name).symlink_to(folder.path)
    record = {"name": folder.name, "cell": "rehearsed", "seed": config.seed, "id": config_id("", config)}
    write_json(launch / "plan.json", {"runs": [{**record, "folder": folder.name}]})
    (row,) = summarize(launch).runs
    if row.cause or row.label != FINAL or row.metrics.keys() != summary["final"].keys():
        raise Caught(f"its summary has not what the final evaluation found: {row.label} {row.cause}")
    archive = preserve(launch, launch.with_name(f"{folder.name}-preserved"))
    if problems := verify(archive):
        raise Caught(f"its archive does not verify: {problems[0]}")
    if render(read_launch(archive)) != (archive / "summary.log").read_text():
        raise Caught("its archive does not give the summary that was made of the launch")
    if not (archive / folder.name / "checkpoints" / "best").is_dir():
        raise Caught("its archive lacks the best weights")
    return sum(path.is_file() for path in archive.rglob("*"))


def _copied(model: nn.Module) -> Weights:
    # buffers that are saved too: a router's bias is as much of its model as its weights
    return {name: tensor.detach().cpu().clone() for name, tensor in named_tensors(model)}


def differing(first: Weights, second: Weights) -> list[str]:
    """Names of weights that are not the same to the last bit."""
    both = set(first) & set(second)
    changed = {name for name in both if not torch.equal(first[name], second[name])}
    return sorted(changed | (set(first) ^ set(second)))
