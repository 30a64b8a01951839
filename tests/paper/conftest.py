import json
from pathlib import Path

import pytest
import yaml

from latentbridge.paper.quote import Quote
from latentbridge.paper.results import Results
from latentbridge.paper.trace import Trace
from latentbridge.rundir import RunDir, append_jsonl, write_json

# the published guide's worked example: means over three seeds
BASELINE = {"nll": 4.294, "perplexity": 73.2, "accuracy": 0.314}
DYNAMIC = {"nll": 4.156, "perplexity": 64.0, "accuracy": 0.321}


class RoutingLaunch:
    """A launch of a static and a dynamic cell; seeds differ by `spread` in loss."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.runs: list[dict] = []

    def cell(self, name, means, *, spread=0.01, shares=(), minutes=10.0, rate=5000.0, seeds=(5, 6, 7)):
        mixers = ["gdn", *["routed" if shares else "gdn"] * 2, "softmax"]
        config = {"mixers": mixers, "text": {"context": 11}, "routing": {"balance_weight": 0.01}}
        config["model"] = {"dim": 24, "layers": len(mixers), "heads": 3}
        for place, seed in enumerate(seeds):
            folder = RunDir(self.path / f"{name}-s{seed}")
            folder.path.mkdir()
            folder.config.write_text(yaml.safe_dump(config))
            write_json(folder.manifest, {"name": folder.name})
            # what helps one cell harms the other
            away = (place - (len(seeds) - 1) / 2) * (-1 if shares else 1)
            values = {**means, "nll": means["nll"] + spread * away}
            metrics = {f"val_{key}": {"value": value, "n": 9} for key, value in values.items()}
            for layer, share in enumerate(shares, start=1):
                metrics[f"val_layer_{layer}_gdn_share"] = {"value": share, "n": 9}
            for step, label in ((10, "10"), (20, "20"), (20, "final")):
                append_jsonl(folder.metrics_log, {"step": step, "label": label, "metrics": metrics})
                if label != "final":
                    losses = {"lm": 5.0, **({"balance": 1.1} if shares else {})}
                    log = {"step": step, "elapsed_s": 60 * minutes * step / 20, "tokens_per_s": rate}
                    append_jsonl(folder.train_log, log | {"losses": losses})
            folder.mark("DONE", {})
            self.runs.append(
                {
                    "name": folder.name,
                    "cell": name,
                    "seed": seed,
                    # the same experiment in another launch has it too
                    "id": folder.name.rjust(12, "0"),
                    "folder": folder.name,
                }
            )
        plan = {"name": "demo", "runs": self.runs, "compare": []}
        (self.path / "plan.json").write_text(json.dumps(plan))
        return self


@pytest.fixture
def launch(tmp_path) -> RoutingLaunch:
    return RoutingLaunch(tmp_path / "demo_20261122_101500")


@pytest.fixture
def another(tmp_path):
    return lambda name: RoutingLaunch(tmp_path / name)


@pytest.fixture
def worked(launch) -> RoutingLaunch:
    """The guide's example, balanced."""
    launch.cell("baseline", BASELINE)
    return launch.cell("dynamic", DYNAMIC, shares=(0.48, 0.55), minutes=11.0, rate=4500.0)


@pytest.fixture
def quote(worked) -> Quote:
    return Quote(Results([worked.path]), Trace())


@pytest.fixture
def template(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "template.md"
        path.write_text(text)
        return path

    return write
