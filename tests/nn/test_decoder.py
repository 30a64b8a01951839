from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentbridge.nn.decoder import CausalAttention, Decoder
from latentbridge.nn.gated_deltanet import GatedDeltaNet
from latentbridge.train.config import OptimConfig
from latentbridge.train.optim import parameter_groups

BENCH = {
    "vocab_size": 80,
    "max_length": 256,
    "dim": 256,
    "layers": 4,
    "heads": 4,
    "positions": "learned",
    "norm": "layernorm",
    "bias": True,
    "dropout": 0.1,
    "init_std": None,
}
TEMPERATURE = {
    "vocab_size": 49_152,
    "max_length": 512,
    "dim": 384,
    "layers": 6,
    "heads": 8,
    "tied": True,
    "scale_embeddings": True,
    "dropout": 0.1,
    "dropout_everywhere": True,
}
SMALL = {"vocab_size": 13, "max_length": 7, "dim": 12, "layers": 2, "heads": 3}
KINDS = [
    {"positions": "rope", "norm": "rmsnorm"},
    {"positions": "learned", "norm": "layernorm", "tied": True},
]


class Doubling(nn.Module):
    """A feed-forward layer that has a say beside its output."""

    def __init__(self, layer: int = 0) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, tuple[int, Tensor]]:
        return 2 * x, (self.layer, ids)


class Plain(nn.Module):
    def __init__(self, layer: int = 0) -> None:
        super().__init__()

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x


def small(**changes) -> Decoder:
    torch.manual_seed(1)
    return Decoder(**{**SMALL, "make_ffn": Doubling, "init_std": 0.5, **changes})


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_two_published_shapes_have_as_many_parameters_outside_their_experts():
    with torch.device("meta"):
        bench, temperature = (Decoder(**kind, make_ffn=Plain) for kind in (BENCH, TEMPERATURE))

    # each layer of the bench: 8 experts of 256 -> 1024 -> 256 with biases, and a linear router with bias
    experts = 8 * (2 * 256 * 1024 + 1024 + 256) + (256 * 8 + 8)
    assert count(bench) + 4 * experts == 17_990_176
    # of 22,436,736 outside experts, six routers of 384 x 8 belong to the layer that is not here
    assert count(temperature) + 6 * 384 * 8 == 22_436_736


def test_what_each_layer_says_beside_its_output_is_handed_on_in_order():
    ids = torch.randint(13, (2, 5))
    states, extras = small()(ids)

    assert states.shape == (2, 5, 12)
    assert [layer for layer, _ in extras] == [0, 1]
    assert all(torch.equal(seen, ids) for _, seen in extras)
    assert small(make_ffn=Plain)(ids)[1] == [None, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_no_token_changes_what_is_before_it_or_beside_it(kind, training):
    model = small(**kind).train(training)
    ids = torch.randint(13, (2, 6))
    other = ids.clone()
    other[0, 3] = (ids[0, 3] + 1) % 13
    with torch.no_grad():
        change = (model(ids)[0] - model(other)[0]).abs().amax(dim=-1)

    assert change[0, :3].max() < 1e-5 and change[1].max() < 1e-5
    assert change[0, 3:].min() > 1e-4


def hybrid(layer: int) -> nn.Module:
    """Three layers of the delta rule, then one of attention."""
    return CausalAttention(12, 3, False, 0.0) if layer % 4 == 3 else GatedDeltaNet(12, 3, 4, 2)


def test_a_hybrid_is_a_decoder_with_a_pattern_and_stays_causal():
    model = small(layers=5, make_mixer=hybrid, make_ffn=Plain).eval()
    ids = torch.randint(13, (2, 6))
    other = ids.clone()
    other[0, 3] = (ids[0, 3] + 1) % 13
    change = (model(ids)[0] - model(other)[0]).detach().abs().amax(dim=-1)

    kinds = [type(block.attention) for block in model.blocks]
    assert kinds == [GatedDeltaNet] * 3 + [CausalAttention, GatedDeltaNet]
    assert change[0, :3].max() < 1e-5 and change[1].max() < 1e-5
    assert change[0, 3:].min() > 1e-4


def test_attention_is_softmax_of_scaled_products_over_what_is_before():
    torch.manual_seed(2)
    layer, x = CausalAttention(8, 2, bias=True, dropout=0.0), torch.randn(1, 3, 8)
    query, key, value = layer.query_key_value(x[0]).split(8, dim=-1)
    read = torch.zeros(3, 8)
    for head in (slice(0, 4), slice(4, 8)):
        for place in range(3):
            weights = (query[place, head] @ key[: place + 1, head].T / 2).softmax(-1)
            read[place, head] = weights @ value[: place + 1, head]

    assert torch.allclose(layer(x, None)[0], layer.out(read), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_token_elsewhere_is_something_else(kind):
    ids = torch.tensor([[4, 9, 4, 9]])
    model = small(**kind)
    if model.position_embedding is not None:
        nn.init.normal_(model.position_embedding.weight)
    states = model.eval()(ids)[0][0]

    assert (states[1] - states[3]).abs().max() > 1e-3


def test_embeddings_are_scaled_by_the_root_of_the_width():
    ids, seen = torch.randint(13, (2, 5)), []
    model = small(scale_embeddings=True)
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(ids)

    assert torch.allclose(seen[0], F.embedding(ids, model.embedding.weight) * math.sqrt(12))


def test_a_tied_head_is_the_embedding():
    model = small(tied=True)
    assert model.head.weight is model.embedding.weight
    assert count(small()) - count(model) == 13 * 12


def test_matrices_start_with_the_spread_that_was_asked_for():
    torch.manual_seed(3)
    model = Decoder(400, 9, 128, 1, 4, Plain, positions="learned", bias=True, init_std=0.02)
    for weight in (model.embedding.weight, model.head.weight, model.blocks[0].attention.out.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert model.blocks[0].attention.query_key_value.bias.abs().max() == 0
    assert model.position_embedding.weight.abs().max() == 0


def test_weight_decay_leaves_norms_biases_and_embeddings_alone():
    for tied in (False, True):
        model = small(positions="learned", norm="layernorm", bias=True, tied=tied)
        (decayed, plain), settings = parameter_groups(model, OptimConfig(lr=0.1, weight_decay=0.3))
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        found = sorted(names[id(parameter)] for parameter in decayed)

        attention = [f"blocks.{n}.attention.{p}.weight" for n in (0, 1) for p in ("out", "query_key_value")]
        assert found == attention + ([] if tied else ["head.weight"])
        assert [setting.weight_decay for setting in settings] == [0.3, 0.0]
        assert len(decayed) + len(plain) == len(names)


def test_dropout_everywhere_is_also_at_both_ends_and_on_attention():
    def rates(**changes) -> list[float]:
        model = small(dropout=0.25, **changes)
        block = model.blocks[0]
        return [model.embedding_dropout.p, block.attention.dropout, block.dropout.p, model.head_dropout.p]

    assert rates() == [0, 0, 0.25, 0]
    assert rates(dropout_everywhere=True) == [0.25] * 4


@pytest.mark.parametrize(
    ("changes", "complaint"), [({"heads": 5}, "multiple of heads"), ({"heads": 4}, "must be even")]
)
def test_impossible_heads_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        small(**changes)


def test_more_tokens_than_there_are_places_are_refused():
    with pytest.raises(ValueError, match="8 tokens are more than max_length"):
        small()(torch.zeros(1, 8, dtype=torch.long))
