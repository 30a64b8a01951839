"""What the capacity bench must prove at a small size before it is launched."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from latentbridge.capacity.bench import Bench
from latentbridge.capacity.closed_form import expected_drop_rate
from latentbridge.capacity.config import CapacityConfig
from latentbridge.capacity.rows import metric_name, metrics_of
from latentbridge.job import Run
from latentbridge.metric import Metric
from latentbridge.rehearsal.contract import Caught, Check, Stage
from latentbridge.rehearsal.shrinking import chosen
from latentbridge.train.loop import LossTerm

_TOKENS = 4096
_ROUNDS = 3
# of so few tokens the drops of so many experts lie within this of arithmetic
_NEAR = 0.02
# settings that matter by what they are
_PROTOCOL = ("num_tokens", "width", "dtype", "iterations", "warmup")


class Measured:
    """The bench as a workload that is only evaluated."""

    num_examples = 0

    def __init__(self, config: CapacityConfig) -> None:
        self.config = config
        self.model: nn.Module = nn.Identity()

    def load_batch(self, indices: Sequence[int]) -> Any:
        raise AssertionError("there is nothing to train")

    def losses(self, model: nn.Module, batch: Any, step: int) -> dict[str, LossTerm]:
        raise AssertionError("there is nothing to train")

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        """All factors once."""
        bench, numbers = Bench(self.config), range(self.config.iterations)
        return metrics_of(
            [
                bench.row(factor, [bench.round(factor, number) for number in numbers])
                for factor in self.config.capacity_factors
            ]
        )


class CapacityRehearsal:
    """See `latentbridge.rehearsal.contract.Rehearsal`."""

    checks: Sequence[Check]

    def __init__(self) -> None:
        self.checks = (Check("drops", drops),)

    def shrink(self, config: CapacityConfig, folder: Path) -> CapacityConfig:
        """Few and narrow tokens for as many experts."""
        small = {"num_tokens": _TOKENS, "width": 2, "dtype": "fp32", "iterations": _ROUNDS, "warmup": 0}
        return config.model_copy(update=small)

    def workload(self, config: CapacityConfig, run: Run) -> Measured:
        return Measured(config)

    def moments(self, config: CapacityConfig) -> list[int]:
        return []

    def protocol(self, config: CapacityConfig) -> dict[str, Any]:
        return chosen(config, _PROTOCOL)

    def engineering(self) -> tuple[str, ...]:
        return ()


def drops(stage: Stage) -> str:
    """What is dropped falls with the factor, and is what arithmetic says; of preferred experts, more."""
    config, found = stage.config, []
    for factor in config.capacity_factors:
        drop = stage.evaluated[metric_name(factor, "drop_rate")].value
        assert drop is not None
        known = expected_drop_rate(config.num_tokens, config.num_experts, config.top_k, factor)
        if drop < known - _NEAR or (drop > known + _NEAR and not config.preference):
            raise Caught(f"{drop:.4f} of the pairs are dropped at factor {factor:g}, not {known:.4f}")
        found.append(drop)
    if any(one < other for one, other in pairwise(found)):
        raise Caught(f"more room drops more: {', '.join(f'{drop:.4f}' for drop in found)}")
    return f"{found[0]:.4f} at factor {config.capacity_factors[0]:g}, {found[-1]:.4f} at the last"
