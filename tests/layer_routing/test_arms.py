"""The specs that ship: arms of one comparison come to as many weights as they claim, at their real sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentbridge.config import Origin, build
from latentbridge.data.text import Corpus
from latentbridge.launch.cells.expand import read_cells
from latentbridge.launch.spec import read_base
from latentbridge.layer_routing.config import COUNTED, LayerRoutingConfig
from latentbridge.layer_routing.model import build_model, unmet

ROOT = Path(__file__).parents[2]


def counted(config: LayerRoutingConfig) -> dict[str, float]:
    """Weights, and those that a token meets where half of the tokens take each mixer; without embeddings."""
    with torch.device("meta"):
        model = build_model(config, 7)
    total = sum(parameter.numel() for parameter in model.parameters())
    spared = sum(sum(sizes) / 2 for sizes in unmet(model)) if config.routing.compute == "sparse" else 0
    return dict(zip(COUNTED, (total, total - spared), strict=True))


@pytest.fixture(scope="module")
def arms() -> dict[str, dict[str, float]]:
    _, cells = read_cells(ROOT / "configs" / "layer_routing.yaml", [], ROOT)
    return {
        cell.cell.removesuffix("_lr=0.001"): counted(cell.config) for cell in cells if cell.config.seed == 42
    }


def test_arms_that_are_called_equal_are(arms):
    """S: arms that differed by 13 % were claimed to be equal."""
    dynamic, straight = arms["dynamic"], arms["straight_through"]
    # a router of 2 layers x 2 choices
    assert dynamic["total_parameters"] - arms["baseline_wide"]["total_parameters"] == 4 * 768 + 4
    assert straight["active_parameters"] == straight["total_parameters"] == dynamic["total_parameters"]
    narrow = arms["baseline_narrow"]["active_parameters"]
    assert dynamic["active_parameters"] == pytest.approx(narrow, rel=1e-4)
    assert arms["baseline"]["total_parameters"] > narrow


def test_hybrids_are_matched_in_weights_where_the_published_ones_are_not():
    """U, exp7: models that were ranked differed by 1.6 times in weights."""
    spans = []
    for name in ("hybrids", "hybrids_matched"):
        _, cells = read_cells(ROOT / "configs" / f"{name}.yaml", [], ROOT)
        first = [cell.config for cell in cells if cell.config.seed == 42 and cell.config.optim.lr == 1e-3]
        totals = [counted(config)["total_parameters"] for config in first]
        spans.append(max(totals) / min(totals))

    assert spans[0] > 1.6
    assert spans[1] < 1.001


def test_every_arm_has_every_learning_rate_and_every_seed():
    """R, L: 1e-3 for one arm and 2e-3 for another, one seed each."""
    grids = {
        "layer_routing": (7, 4),
        "layer_routing_demo": (5, 2),
        "hybrids": (13, 3),
        "hybrids_matched": (13, 3),
    }
    for name, (arms, different) in grids.items():
        _, cells = read_cells(ROOT / "configs" / f"{name}.yaml", [], ROOT)
        found = {(cell.cell.rpartition("_lr=")[0], cell.config.optim.lr, cell.config.seed) for cell in cells}
        names, rates, seeds = ({part[place] for part in found} for place in range(3))

        assert (len(names), len(rates), len(seeds)) == (arms, different, 3)
        assert len(found) == arms * different * 3


def test_the_text_that_ships_is_enough_for_what_bases_evaluate(tmp_path):
    """Both published sizes scored more than there was, and no run of theirs began."""
    for name in ("base", "demo", "hybrids"):
        config = build(LayerRoutingConfig, read_base(f"layer_routing/{name}", ROOT, Origin("test", 1)))
        corpus = Corpus(config.text, tmp_path, config.seed)

        assert len(corpus.eval_windows("test")) == config.text.eval_tokens // config.text.context
