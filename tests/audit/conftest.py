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

    def mixture(self, cell: str, seed: int, changes: dict[str, Any] | None = None, **more: Any) -> RunDir:
        """A run of a mixture with all that it logs: 2 layers, 4 experts, evaluations at 10, 20 and 30 of 30.

        The seed is the noise: losses end at 2 + T / 100 + seed / 1000, and layer 1 has a dead expert.
        """
        config = mixture_config(changes or {})
        config["seed"] = seed
        noise, heat = seed / 1000, config["mixture"]["router"]["temperature"]["start"] / 100
        folder = self.run(cell, seed, _mixture_metrics(2 + heat + noise), config=config, **more)
        folder.metrics_log.unlink()
        for step in (10, 20, 30):
            loss = 2 + heat + noise + (30 - step) / 20
            metrics = {k: m.as_record() for k, m in _mixture_metrics(loss).items() if k.startswith("val_")}
            append_jsonl(folder.metrics_log, {"step": step, "label": str(step), "metrics": metrics})
            losses = {"lm": loss - 0.1, "balance": 1.25, "drop_rate": 0.125}
            if config["mixture"]["dispatch"]["kind"] != "padded":
                del losses["drop_rate"]
            record = {"step": step, "losses": losses, "lr": 1 / step, "grad_norm": 0.5}
            rate = 50.0 if step == 10 else 1000.0 + seed
            append_jsonl(folder.train_log, record | {"elapsed_s": 6.0 * step, "tokens_per_s": rate})
        final = {k: m.as_record() for k, m in _mixture_metrics(2 + heat + noise).items()}
        append_jsonl(folder.metrics_log, {"step": 30, "label": "final", "metrics": final})
        load = {"val": [[4, 4, 4, 4], [8, 8, 0, 0]], "test": [[4, 4, 4, 4], [12, 2, 2, 0]]}
        for step, label in ((10, "10"), (30, "final")):
            texts = load if label == "final" else {"val": [[6, 6, 2, 2], [8, 8, 0, 0]]}
            append_jsonl(folder.path / "experts.jsonl", {"step": step, "label": label, "load": texts})
        write_json(folder.path / "specialisation.json", _specialisation())
        return folder


def mixture_config(changes: dict[str, Any]) -> dict[str, Any]:
    """Settings as a run's config.yaml spells them out, with changes by dotted key."""
    config: dict[str, Any] = {
        "text": {"context": 11},
        "model": {"dim": 24, "layers": 2},
        "train": {"steps": 30, "batch_size": 16},
        "mixture": {
            "num_experts": 4,
            "router": {
                "strategy": "softk",
                "top_k": 2,
                "network": "linear",
                "temperature": {"schedule": "constant", "start": 1.0, "end": None, "acts_on": "weights"},
            },
            "dispatch": {"kind": "dropless", "capacity_factor": 1.25},
            "balance": {"weight": 0.01},
        },
    }
    for path, value in changes.items():
        *above, last = path.split(".")
        inner = config
        for key in above:
            inner = inner[key]
        inner[last] = value
    return config


def _mixture_metrics(nll: float) -> Metrics:
    found = {
        "nll": nll,
        "bits_per_byte": nll * 1.5,
        "perplexity": 7.5 + nll,
        "accuracy": 1 / nll,
        "demand_cv": 0.4,
        "entropy": nll / 2,
        "confidence": 0.75,
    }
    return {f"{split}_{name}": measured(value) for split in ("val", "test") for name, value in found.items()}


def _specialisation() -> dict[str, Any]:
    part = {"bits": 1.5, "shuffled": 0.01, "plain": 1.6, "expert_entropy": 2.0, "tokens": 40, "share": 0.75}
    layer = {
        "load": [[30, 30, 0, 0], [0, 10, 10, 0], [0, 0, 0, 2]],
        "without_expert": 0,
        "information": {"class": part | {"bits": 0.5, "share": 0.25}, "token": part},
    }
    passages = [
        {"tokens": list("A $b"), "experts": [[0, 1, 2, 3], [1, 1, -1, 0]]},
        {"tokens": ["c", "\n"], "experts": [[0, 3], [1, 1]]},
    ]
    classes = ["lower case", "space", "digit"]
    return {"classes": classes, "tokens": [30, 20, 1], "layers": [layer, layer], "passages": passages}


@pytest.fixture
def launch(tmp_path) -> LaunchBuilder:
    return LaunchBuilder(tmp_path / "demo_20261122_101500")


@pytest.fixture
def metric() -> Callable[..., Metric]:
    return measured
