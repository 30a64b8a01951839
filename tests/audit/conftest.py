from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentbridge.metric import Metric
from latentbridge.rundir import RunDir, append_jsonl, write_json

Metrics = dict[str, Metric]


def measured(value: float, half: float = 0.02, n: int = 200) -> Metric:
    """A metric with a symmetric interval."""
    return Metric(value=value, n=n, low=value - half, high=value + half)


class LaunchBuilder:
    """Writes a launch folder as planner, worker and loop would, run by run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[dict[str, Any]] = []
        self.compare: list[dict[str, Any]] = []
        path.mkdir(parents=True)

    def run(
        self,
        cell: str,
        seed: int,
        metrics: Metrics | None = None,
        *,
        state: str | None = "DONE",
        label: str = "final",
        config: dict[str, Any] | None = None,
        **marker: Any,
    ) -> RunDir:
        name = f"{cell}-s{seed}"
        folder = RunDir(self.path / name)
        folder.path.mkdir()
        folder.config.write_text(yaml.safe_dump(config or {}))
        write_json(folder.manifest, {"name": name, "warm_start": (config or {}).get("warm_start")})
        if metrics is not None:
            records = {key: metric.as_record() for key, metric in metrics.items()}
            append_jsonl(folder.metrics_log, {"step": 7, "label": label, "metrics": records})
        if state:
            folder.mark(state, marker)
        number = len(self.runs)
        self.runs.append({"name": name, "cell": cell, "seed": seed, "id": f"{number:012x}", "folder": name})
        write_json(self.path / "plan.json", {"name": "demo", "runs": self.runs, "compare": self.compare})
        return folder


@pytest.fixture
def launch(tmp_path) -> LaunchBuilder:
    return LaunchBuilder(tmp_path / "demo_20261122_101500")


@pytest.fixture
def metric() -> Callable[..., Metric]:
    return measured
