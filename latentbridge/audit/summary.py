"""The rows of a launch's summary: runs, cells over their seeds, and verdicts between cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

from latentbridge.audit.verdicts import Verdict
from latentbridge.metric import Metric, void

CLAIM = "context_recovered"
CONTROLS = ("context_recovered_no_source", "context_recovered_shuffled_source")


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run as its folder tells it; `metrics` are those of its last evaluation, called `label`."""

    name: str
    cell: str
    seed: int
    id: str
    state: str  # DONE | FAILED | STOPPED | unfinished | not started
    cause: str = ""
    label: str | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    warm_start: str | None = None
    # how many times the micro-batch was halved after out-of-memory
    backoff: int = 0
    # of every log record, where a text is modelled: of other jobs tokens are no measure of work
    tokens_per_s: list[float] = field(default_factory=list)
    # runs that were on one of its cards at once, itself among them, as far as it is known
    to_a_card: int = 1

    @property
    def flag(self) -> str | None:
        """Why the run's claim to carry the source's content does not stand; None: it does, or makes no claim.

        The claim stands where the lower end of context recovered lies above both controls.
        """
        if CLAIM not in self.metrics or self.label != "final":
            return None
        claim = self.metrics[CLAIM]
        for name in CONTROLS:
            control = self.metrics.get(name, void("not measured"))
            if claim.value is None or claim.low is None or control.value is None:
                return f"CLAIM FLAGGED: {self.name}: cannot be checked: {CLAIM} {claim}, {name} {control}"
            if claim.low <= control.value:
                return (
                    f"CLAIM FLAGGED: {self.name}: {CLAIM} {claim} does not clear {name} {control.value:.3f}"
                )
        return None

    @property
    def beyond(self) -> str | None:
        """What to make of a share above 1, in words; None: it is none."""
        claim = self.metrics.get(CLAIM, void("not measured"))
        if claim.low is None or claim.low <= 1:
            return None
        return (
            f"ABOVE THE TEXT: {self.name}: {CLAIM} {claim} is more than the question as text gives this "
            "target; what lies above 1 is not the question's, but such as the form of the answers"
        )

    @property
    def changed(self) -> str | None:
        """How the run's training differs from its config, in words; None: it does not."""
        if not self.backoff:
            return None
        times = "once" if self.backoff == 1 else f"{self.backoff} times"
        return (
            f"MICRO-BATCH HALVED: {self.name}: {times} after out-of-memory; updates are of as many samples, "
            "but what spans a forward (InfoNCE, means over tokens, the load of experts) spanned fewer"
        )

    @property
    def unended(self) -> str | None:
        """Why nothing of this run is final; None where its final evaluation is there."""
        if self.state == "DONE" and self.label == "final":
            return None
        found = self.state if self.state != "DONE" else "no final evaluation"
        return found + (f" ({self.cause})" if self.cause else "")

    def lacks(self, metric: str) -> str | None:
        """Why this run has no final value of `metric`, or None if it has one."""
        if self.unended:
            return self.unended
        return self.metrics[metric].void if metric in self.metrics else "not measured"

    def value(self, metric: str) -> float:
        """The final value of a metric that the run does not lack."""
        value = self.metrics[metric].value
        assert value is not None
        return value


def gaps(runs: Sequence[RunRow], metric: str) -> str:
    """The runs that lack a metric, and why, in words; empty where none does."""
    return "; ".join(f"seed {run.seed} {why}" for run in runs if (why := run.lacks(metric)))


@dataclass(frozen=True, kw_only=True)
class CellRow:
    """One cell over its seeds; a metric that any seed lacks is void and names the seed.

    Intervals of `metrics` are over seeds, and n counts seeds; of a single seed, over its samples.
    """

    name: str
    runs: list[RunRow]
    metrics: dict[str, Metric]

    @property
    def state(self) -> str:
        """`3/3 done`, or `2/3 done, 1 FAILED`."""
        done, failed = (sum(run.state == state for run in self.runs) for state in ("DONE", "FAILED"))
        return f"{done}/{len(self.runs)} done" + (f", {failed} FAILED" if failed else "")

    @property
    def is_beyond(self) -> bool:
        """Whether a share of any run lies above the whole, with which no other should be compared."""
        return any(run.beyond for run in self.runs)

    @property
    def interval_over(self) -> str:
        """What the intervals of `metrics` range over."""
        return "seeds" if len(self.runs) > 1 else "samples"

    @property
    def tokens_per_s(self) -> dict[str, float] | None:
        """Training alone, over the log records of all runs: p10, p50 and p90; None where none tells it."""
        rates = [rate for run in self.runs for rate in run.tokens_per_s]
        if not rates:
            return None
        tenths = quantiles(rates, n=10, method="inclusive") if len(rates) > 1 else rates * 9
        return {"p10": tenths[0], "p50": tenths[4], "p90": tenths[8]}

    @property
    def to_a_card(self) -> int:
        """The most of its runs'; above 1 tokens a second are not those of a whole card."""
        return max(run.to_a_card for run in self.runs)

    @property
    def soft_tokens(self) -> int | None:
        """How many soft tokens the cell's bridge writes; None for jobs without a bridge."""
        model = self.runs[0].config.get("model")
        return model.get("soft_tokens") if isinstance(model, dict) else None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All that a launch found; holds no times and no paths, so that a restored copy gives the same text."""

    launch: str
    runs: list[RunRow]
    cells: list[CellRow]
    verdicts: list[Verdict]
    headline: str

    @property
    def progress(self) -> str:
        """How many of the runs are done, in words."""
        done = sum(run.state == "DONE" for run in self.runs)
        return f"{done} of {len(self.runs)} runs done"

    @property
    def flags(self) -> list[str]:
        """Every claim that does not stand or says too much, every run unlike its config, in words."""
        return [text for run in self.runs for text in (run.flag, run.beyond, run.changed) if text]

    def as_record(self) -> dict[str, Any]:
        """Plain data for summary.json."""
        return {
            "launch": self.launch,
            "headline": self.headline,
            "flags": self.flags,
            "cells": [
                {
                    "cell": cell.name,
                    "state": cell.state,
                    "seeds": [run.seed for run in cell.runs],
                    "run_ids": [run.id for run in cell.runs],
                    "soft_tokens": cell.soft_tokens,
                    "interval_over": cell.interval_over,
                    "metrics": _records(cell.metrics),
                    **({"tokens_per_s": cell.tokens_per_s} if cell.tokens_per_s else {}),
                }
                for cell in self.cells
            ],
            "runs": [
                {
                    "run": run.name,
                    "cell": run.cell,
                    "seed": run.seed,
                    "id": run.id,
                    "state": run.state,
                    "cause": run.cause,
                    "label": run.label,
                    "warm_start": run.warm_start,
                    "backoff": run.backoff,
                    "flag": run.flag,
                    **({"to_a_card": run.to_a_card} if run.to_a_card > 1 else {}),
                    "metrics": _records(run.metrics),
                }
                for run in self.runs
            ],
            "verdicts": [verdict.as_record() for verdict in self.verdicts],
        }


def _records(metrics: dict[str, Metric]) -> dict[str, Any]:
    return {name: metric.as_record() for name, metric in metrics.items()}
