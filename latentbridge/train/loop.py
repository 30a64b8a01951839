"""The one training loop: any workload, any engine, exact resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from latentbridge.errors import ConfigError, RunError
from latentbridge.job import Run
from latentbridge.metric import Metric
from latentbridge.rundir import keep_records, write_json
from latentbridge.train import checkpoint, distributed
from latentbridge.train.config import EarlyStopConfig, OptimConfig, TrainConfig
from latentbridge.train.engine import build_engine
from latentbridge.train.first_minute import FIRST_MINUTE, Weighable, first_minute
from latentbridge.train.flops import Counted, utilisation
from latentbridge.train.optim import lr_factor
from latentbridge.train.recorded import RecordedStep, compiled_model
from latentbridge.train.seeding import SampleOrder, reseed
from latentbridge.train.stopping import StopPoll
from latentbridge.train.tally import Tally

FINAL = "final"


@dataclass(frozen=True)
class LossTerm:
    """One named part of the loss: a differentiable scalar and its weight in the sum."""

    value: Tensor
    weight: float


class Workload(Protocol):
    """What a workload plugs into the loop; one that is `Counted` too tells its share of the device's peak.

    model          what is trained; frozen models live outside of it
    num_examples   size of the training set
    """

    model: nn.Module
    num_examples: int

    def load_batch(self, indices: Sequence[int]) -> Any:
        """These examples on this rank's device; an int `num_tokens` on the result yields tokens_per_s."""

    def losses(self, model: nn.Module, batch: Any, step: int) -> dict[str, LossTerm]:
        """Named loss terms of one micro-batch; step: the update being made, from 1.

        Call `model` itself, which may be a DeepSpeed engine; it returns tensors, or tuples or dicts of them.
        """

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        """Metrics of the current weights, measured by all ranks together; label: the step, or "final".

        Every rank must call `model` equally often at ZeRO-3, and where ranks share experts.
        """


@runtime_checkable
class Recordable(Protocol):
    """What a workload has whose updates may be recorded: its batches are dataclasses of one shape."""

    def begin_update(self, step: int) -> None:
        """Set what follows from the number of the update, in tensors that `fixed_losses` reads."""

    def fixed_losses(self, model: nn.Module, batch: Any) -> dict[str, LossTerm]:
        """Its `losses` after that, made of tensors alone."""


@runtime_checkable
class Ordered(Protocol):
    """What a workload has whose examples come in an order of its own, such as a `PassOrder`."""

    order: SampleOrder


class FitConfig(Protocol):
    """What `fit` reads of a job's config."""

    @property
    def seed(self) -> int: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def early_stop(self) -> EarlyStopConfig: ...


@runtime_checkable
class Sharing(Protocol):
    """What a config has whose experts can be shared by ranks."""

    @property
    def expert_parallel(self) -> int:
        """Ranks that share one set."""


def begin(config: FitConfig, run: Run) -> None:
    """Join the ranks, and refuse at once what would be refused after the workload was built; safe to repeat.

    ConfigError where these ranks cannot share a batch or the experts; RunError where they cannot read
    checkpoints/last.
    """
    distributed.init()
    if distributed.world_size() % _sharing(config):
        raise ConfigError(
            f"expert_parallel is {_sharing(config)}, but the ranks are {distributed.world_size()}: no whole "
            "number of such sets; make it a divisor of the number of ranks"
        )
    config.train.micro_batches(distributed.world_size(), distributed.from_rank_0(run.backoff))
    found = distributed.from_rank_0(checkpoint.read_last(run.folder.checkpoints))
    if found is None:
        return
    folder, record = found
    if record["written_by"] != _writer(config):
        raise RunError(
            f"{folder}: written by {_spell(record['written_by'])}; this is {_spell(_writer(config))}. "
            "Resume with what wrote it, or remove checkpoints/last to train from the start"
        )


def _sharing(config: FitConfig) -> int:
    return config.expert_parallel if isinstance(config, Sharing) else 1


def _writer(config: FitConfig) -> dict[str, Any]:
    """What must stay the same for a checkpoint to be read."""
    train = config.train
    shared = {"expert_parallel": _sharing(config)} if _sharing(config) > 1 else {}
    writer = {"engine": train.engine, "precision": train.precision, "zero_stage": train.zero_stage, **shared}
    if train.engine == "torch":
        bf16 = {"precision": "bf16"} if train.precision == "bf16" else {}
        return {"engine": "torch", **bf16, **shared}
    # ZeRO splits the optimiser over the ranks
    return {**writer, "ranks": distributed.world_size()} if train.zero_stage > 0 else writer


def fit(workload: Workload, config: FitConfig, run: Run) -> dict[str, Any] | None:
    """Train, evaluate and checkpoint `workload`, going on from checkpoints/last where there is one.

    Returns the summary of a finished run, or None when someone asked to stop and a checkpoint was taken.
    """
    begin(config, run)
    loop = _Loop(workload, config, run)
    summary = loop.finish() if loop.train() else None
    distributed.finish()
    return summary


@dataclass
class _State:
    """Where a run is: what a checkpoint remembers beside the engine."""

    step: int = 0
    # of this step; False while it is due, so that a resumed run neither skips nor repeats it
    evaluated: bool = True
    best_folder: str | None = None
    best_step: int | None = None
    best_value: float | None = None
    evaluations_since_best: int = 0
    stopped_early: bool = False
    train_s: float = 0.0


class _Loop:
    def __init__(self, workload: Workload, config: FitConfig, run: Run) -> None:
        if workload.num_examples < 1:
            raise RunError(f"{run.folder.path}: the training set is empty; there is nothing to train on")
        self.workload, self.config, self.run = workload, config, run
        self.root = run.folder.checkpoints
        # rank 0's: another node may still see the manifest as it was
        backoff = distributed.from_rank_0(run.backoff)
        self.engine = build_engine(workload.model, config.optim, config.train, backoff)
        own = workload.order if isinstance(workload, Ordered) else None
        self.order = own or SampleOrder(config.seed, workload.num_examples)
        self.state = _State(evaluated=not config.train.eval_at_start)
        self.tally = Tally()
        self.stop = StopPoll(run)
        self.model = compiled_model(self.engine.module) if config.train.recorded else self.engine.module
        self.recorded = self._record() if config.train.recorded else None
        self.saved_step = -1
        # weights and what is told of them, see `_save`
        self.unwritten_best: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._resume()
        if self.state.step == 0 and isinstance(workload, Weighable) and self._is_tried_out():
            found = first_minute(workload, self.engine, self.model, config.train.steps, run)
            if run.is_main:
                write_json(run.folder.first_minute, found)
        self.engine.set_training(True)

    def _is_tried_out(self) -> bool:
        """Whether there is a device to fill up, and nobody asked to leave that out (`--no-check`)."""
        wanted = torch.cuda.is_available() and not self.run.leaves_out(FIRST_MINUTE)
        return distributed.from_rank_0(wanted and self.config.train.steps > 0)

    def train(self) -> bool:
        """Make updates and evaluations until done; False if stopped before that, at a checkpoint."""
        train, state = self.config.train, self.state
        while not self.stop.asked(state.step):
            if not state.evaluated:
                self._evaluate()
                self.stop.poll_next()
            elif state.stopped_early or state.step == train.steps:
                self._save()
                return True
            else:
                self._update()
                if state.step % train.log_every == 0 or state.step == train.steps:
                    self._log()
                state.evaluated = state.step % train.eval_every != 0 and state.step != train.steps
                # before the evaluation, which can take longer than the updates since the last checkpoint
                if state.step % train.checkpoint_every == 0:
                    self._save()
        self._save()
        self.run.stopped_at(state.step)
        return False

    def finish(self) -> dict[str, Any]:
        """Evaluate the best weights once more, read back from disk, and sum the run up."""
        state = self.state
        if state.best_folder is not None:
            checkpoint.load_best(self.root, state.best_folder, self.engine.module)
        metrics = self._measure(state.step if state.best_step is None else state.best_step, FINAL)
        return {
            "steps": state.step,
            "stopped_early": state.stopped_early,
            "best_step": state.best_step,
            "best_metric": state.best_value,
            "final": {name: metric.as_record() for name, metric in metrics.items()},
            "train_s": state.train_s,
        }

    def _update(self) -> None:
        engine, config, step = self.engine, self.config, self.state.step + 1
        reseed(config.seed, "update", step, distributed.rank())
        self.tally.start_clock()
        indices = distributed.shard(
            self.order.take((step - 1) * config.train.batch_size, config.train.batch_size)
        )
        for start in range(0, len(indices), engine.micro_batch_size):
            batch = self.workload.load_batch(indices[start : start + engine.micro_batch_size])
            values = self._micro_step(batch, step)
            self.tally.add(step, values, weight=engine.micro_batch_size)
            flops = self.workload.flops(batch, step) if isinstance(self.workload, Counted) else 0
            self.tally.count(engine.micro_batch_size, getattr(batch, "num_tokens", 0), flops)
            self.run.beat()
        norm = engine.update(lr_factor(config.optim, config.train.steps, step - 1))
        self.tally.add(step, {"grad_norm": torch.as_tensor(norm, device=distributed.device())})
        self.state.step = step
        self.run.progress("training", step, config.train.steps)

    def _record(self) -> RecordedStep[dict[str, Tensor]]:
        workload = self.workload
        if not isinstance(workload, Recordable):
            raise ConfigError(
                "train.recorded is true, but this job's updates have no fixed shape; leave it out"
            )
        return RecordedStep(lambda batch: self._backward(workload.fixed_losses(self.model, batch), 1))

    def _micro_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Add one micro-batch's gradients; returns its loss, and the terms of it."""
        if self.recorded is None:
            return self._backward(self.workload.losses(self.engine.model, batch, step), step)
        assert isinstance(self.workload, Recordable)
        self.workload.begin_update(step)
        return self.recorded(batch)

    def _backward(self, terms: dict[str, LossTerm], step: int) -> dict[str, Tensor]:
        loss = _weighted_sum(terms, step)
        self.engine.backward(loss)
        # without their graph: while it lives, so do the streams of its gradients, and no record is taken
        told = {f"losses.{name}": term.value.detach() for name, term in terms.items()}
        return told | {"loss": loss.detach()}

    def _log(self) -> None:
        self._settle()
        totals = self.tally.take()
        means = totals.means()
        optim, steps, step = self.config.optim, self.config.train.steps, self.state.step
        record = {
            "step": step,
            "loss": means["loss"],
            "losses": {k.removeprefix("losses."): v for k, v in means.items() if k.startswith("losses.")},
            "lr": optim.lr * lr_factor(optim, steps, step - 1),
            "grad_norm": means["grad_norm"],
            "samples_per_s": totals.samples / totals.train_s,
            "elapsed_s": self.state.train_s,
            # a run that was out of memory goes on with others than its config says
            "micro_batch_size": self.engine.micro_batch_size,
            "accumulation": self.engine.accumulation,
        }
        if totals.tokens:
            record["tokens_per_s"] = totals.tokens / totals.train_s
        mfu = utilisation(totals.flops, totals.train_s, self.config.train.precision)
        if mfu is not None:
            record["mfu"] = mfu
        if torch.cuda.is_available():
            record["peak_gib"] = max(distributed.gather_in_order([torch.cuda.max_memory_allocated()])) / 2**30
        self.run.log(record)

    def _settle(self) -> None:
        """Wait for the device and refuse what is not finite; before anything that outlives this update."""
        self.state.train_s += self.tally.settle()

    def _evaluate(self) -> None:
        self._settle()
        state, watched = self.state, self.config.early_stop
        metrics = self._measure(state.step, str(state.step))
        if watched.metric not in metrics:
            raise ConfigError(
                f"early_stop.metric is '{watched.metric}', which the evaluation does not measure; "
                f"it measures {', '.join(sorted(metrics))}"
            )
        value = metrics[watched.metric].value
        # untrained weights are measured for the record, and are never the best
        improved = state.step > 0 and value is not None and _is_better(value, state.best_value, watched.mode)
        if improved:
            best = {"step": state.step, "metric": watched.metric, "value": value}
            self.unwritten_best = None  # its memory is free before more is taken
            self.unwritten_best = (checkpoint.full_weights(self.engine.module), best)
            state.best_step, state.best_value, state.evaluations_since_best = state.step, value, 0
        elif state.step > 0:
            state.evaluations_since_best += 1
            state.stopped_early = state.evaluations_since_best == watched.patience
        state.evaluated = True
        if self.saved_step == state.step:
            self._save()

    def _measure(self, step: int, label: str) -> dict[str, Metric]:
        """Evaluate in eval mode without gradients, then restore train mode; rank 0's numbers everywhere."""
        # the same for every evaluation: two of the same weights must agree
        reseed(self.config.seed, "evaluate", distributed.rank())
        self.engine.set_training(False)
        with torch.no_grad():
            metrics = self.workload.evaluate(self.engine.model, step, label)
        self.engine.set_training(True)
        metrics = distributed.from_rank_0(metrics)
        records = {name: metric.as_record() for name, metric in metrics.items()}
        self.run.log_metrics({"step": step, "label": label, "metrics": records})
        return metrics

    def _save(self) -> None:
        """Make `last` the run as it is now, and `best` its best weights.

        Of a step that is saved already, only the state and the best weights are written. In between, the best
        are a copy in rank 0's memory: a run that is killed goes on from `last`, and finds them again.
        """
        state, unwritten = self.state, self.unwritten_best
        if unwritten is not None:
            state.best_folder = checkpoint.write_best(self.root, *unwritten)
        if self.saved_step == state.step:
            checkpoint.rewrite_last_state(self.root, self._as_record())
        else:
            self._settle()
            self.run.beat()
            self.run.sync()
            checkpoint.save_last(self.root, self.engine, self._as_record())
            self.run.beat()
            self.saved_step = state.step
        if unwritten is not None:
            # `last` remembers the new best before the old one goes: a kill in between loses neither
            checkpoint.link_best(self.root, str(state.best_folder))
            self.unwritten_best = None

    def _as_record(self) -> dict[str, Any]:
        writer = _writer(self.config)
        return {**asdict(self.state), "tally": self.tally.as_record(), "written_by": writer}

    def _resume(self) -> None:
        found = distributed.from_rank_0(checkpoint.read_last(self.root))
        if found is None:
            checkpoint.tidy(self.root, best=None)
            self.run.forget_after(-1)
            return
        folder, record = found
        self.engine.load(folder)
        totals = record.pop("tally")
        del record["written_by"]
        self.state, self.tally = _State(**record), Tally(totals)
        self.saved_step = self.state.step
        checkpoint.tidy(self.root, self.state.best_folder)
        self.run.forget_after(self.state.step)
        if self.run.is_main:
            keep_records(self.run.folder.metrics_log, self._is_still_true)

    def _is_still_true(self, record: dict[str, Any]) -> bool:
        """Whether an evaluation's record stays: those that will be made again, the final one too, do not."""
        done = record["step"] < self.state.step or self.state.evaluated
        return done and record["label"] != FINAL


def _weighted_sum(terms: dict[str, LossTerm], step: int) -> Tensor:
    for name, term in terms.items():
        if term.weight and not term.value.requires_grad:
            raise RunError(
                f"update {step}: losses.{name} weighs {term.weight}, but has no gradient and trains nothing; "
                "it is detached, or does not depend on the model"
            )
    return torch.stack([term.weight * term.value.float().reshape(()) for term in terms.values()]).sum()


def _is_better(value: float, best: float | None, mode: str) -> bool:
    return best is None or (value > best if mode == "max" else value < best)


def _spell(writer: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in writer.items())
