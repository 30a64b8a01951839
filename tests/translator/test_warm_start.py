from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from latentbridge.errors import ConfigError, RunError
from latentbridge.translator.bridges.gated import GatedBridge
from latentbridge.translator.config import BridgeConfig
from latentbridge.translator.train import train
from latentbridge.translator.warm_start import fewer_queries, warm_start


def bridge(seed: int, **changes: Any) -> GatedBridge:
    torch.manual_seed(seed)
    config = BridgeConfig(**{"soft_tokens": 6, "dim": 8, "depth": 2, "heads": 4, **changes})
    return GatedBridge(config, source_dim=12, target_dim=20, target_rms=0.1)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with a bridge of six soft tokens."""
    save_file(bridge(1).state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_everything_but_the_number_of_soft_tokens_is_taken_over_exactly(weights: Path):
    trained, fresh = bridge(1), bridge(2, soft_tokens=4)
    record = warm_start(fresh, str(weights))

    for name, parameter in fresh.named_parameters():
        if name != "queries":
            assert torch.equal(parameter, trained.get_parameter(name)), name
    assert record["from"] == str(weights)
    assert record["soft_tokens"] == [6, 4]
    assert len(record["sha256"]) == 64


def test_fewer_queries_are_evenly_spaced_ones():
    queries = torch.arange(6.0)[:, None].expand(6, 2)

    assert fewer_queries(queries, 3)[:, 0].tolist() == [0, 2, 4]
    assert fewer_queries(queries, 4)[:, 0].tolist() == [0, 1, 3, 4]
    assert torch.equal(fewer_queries(queries, 6), queries)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"soft_tokens": 7}, r"queries is \(6, 8\), this bridge's is \(7, 8\); only soft_tokens may differ"),
        ({"dim": 12}, r"only soft_tokens may differ"),
        ({"depth": 1}, "unmatched: blocks.1.*Set model.depth as it was trained"),
    ],
)
def test_a_bridge_of_another_shape_is_refused(weights: Path, changes: dict[str, Any], complaint: str):
    with pytest.raises(RunError, match=complaint):
        warm_start(bridge(2, **changes), str(weights))


def test_a_name_without_weights_is_refused_with_the_place_that_was_looked_at():
    with pytest.raises(ConfigError, match=r"warm_start is 'bundled:none', but .*none/model.safetensors"):
        warm_start(bridge(2), "bundled:none")


def test_a_damaged_file_is_refused(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(RunError, match="cannot be read"):
        warm_start(bridge(2), str(tmp_path))


def test_a_warm_start_is_recorded_in_the_runs_summary(configure, make_run, weights: Path, ranks):
    (summary,) = ranks(train, configure({"warm_start": str(weights)}), make_run(), world_size=1)

    assert summary is not None
    assert summary["warm_start"]["soft_tokens"] == [6, 3]
