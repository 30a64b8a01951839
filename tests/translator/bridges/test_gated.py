import pytest
import torch
from torch import Tensor

from latentbridge.nn.norm import rms
from latentbridge.translator.bridges.base import embedding_rms
from latentbridge.translator.bridges.gated import GatedBridge, initial_queries
from latentbridge.translator.config import BridgeConfig


def small_bridge(**changes: float | bool) -> GatedBridge:
    """Q=3, D=8, Ds=12, Dt=20."""
    torch.manual_seed(0)
    config = BridgeConfig(**{"soft_tokens": 3, "dim": 8, "depth": 2, "heads": 4, **changes})
    return GatedBridge(config, source_dim=12, target_dim=20, target_rms=0.0107)


def states() -> tuple[Tensor, Tensor]:
    """B=2, S=5, Ds=12; the second row has two real positions."""
    torch.manual_seed(1)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    return torch.randn(2, 5, 12), mask


@pytest.mark.parametrize(
    ("soft_tokens", "dim", "depth", "heads", "parameters"),
    [
        (64, 1024, 8, 16, 188_964_536),
        (48, 1024, 6, 16, 142_773_258),
        (32, 768, 4, 12, 61_437_708),
    ],
)
def test_the_three_published_sizes_have_the_published_number_of_parameters(
    soft_tokens: int, dim: int, depth: int, heads: int, parameters: int
):
    config = BridgeConfig(soft_tokens=soft_tokens, dim=dim, depth=depth, heads=heads)
    with torch.device("meta"):
        bridge = GatedBridge(config, source_dim=4096, target_dim=4096, target_rms=0.0107)

    assert sum(parameter.numel() for parameter in bridge.parameters()) == parameters


def test_with_closed_gates_the_bridge_ignores_its_input_and_most_of_it_gets_no_gradient():
    bridge = small_bridge(gate_init=0.0)
    hidden, mask = states()
    first, second = bridge(hidden, mask), bridge(hidden + 1, mask)
    (second * torch.randn_like(second)).sum().backward()
    trained = {
        n.rsplit(".", 1)[-1] if "gate_" in n else n for n, p in bridge.named_parameters() if p.grad.any()
    }

    assert torch.equal(first, second)
    assert trained <= {
        *("queries", "gate_self", "gate_cross", "gate_ffn"),
        *("norm_out.weight", "out.weight", "out.bias"),
    }


def test_with_open_gates_it_reads_the_source_and_everything_is_trained():
    bridge = small_bridge(gate_init=0.5)
    hidden, mask = states()
    soft = bridge(hidden, mask)
    (soft * torch.randn_like(soft)).sum().backward()

    assert soft.shape == (2, 3, 20)
    assert not torch.allclose(bridge(hidden + 1, mask), soft)
    assert [name for name, p in bridge.named_parameters() if not p.grad.any()] == []


def test_padding_of_the_source_changes_nothing():
    bridge = small_bridge(gate_init=0.5)
    hidden, mask = states()
    alone = bridge(hidden[1:, :2], mask[1:, :2])
    hidden[~mask] += 3

    assert torch.allclose(bridge(hidden, mask)[1:], alone, atol=1e-6)


def test_queries_are_orthogonal_to_each_other_with_unit_rms():
    """The seed orthogonalised a 3-D tensor, which made one unit vector of all queries (D8)."""
    queries = initial_queries(soft_tokens=5, dim=8)

    assert torch.allclose(queries @ queries.T, 8 * torch.eye(5), atol=1e-5)


def test_every_soft_token_has_the_scale_of_the_targets_embeddings():
    """The seed clamped the factor, which left tokens 20 to 79 times too large (D5)."""
    matched, free = small_bridge(gate_init=0.5), small_bridge(gate_init=0.5, rms_match=False)
    for bridge in (matched, free):
        bridge.out.weight.data *= 100

    assert torch.allclose(rms(matched(*states())), torch.full((2, 3, 1), 0.0107))
    assert rms(free(*states())).min() > 1


def test_embedding_rms_is_the_median_row_so_that_unused_rows_do_not_matter():
    # rows of rms 2, 0 (never trained) and 5
    rows = torch.tensor([[2.0, -2.0], [0.0, 0.0], [1.0, 7.0]])

    assert embedding_rms(rows) == pytest.approx(2.0)
