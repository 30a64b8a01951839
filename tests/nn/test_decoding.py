"""A text read in parts is the text read at once, whatever its layers read by."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from latentbridge.nn.decoder import CausalAttention, Decoder
from latentbridge.nn.gated_deltanet import GatedDeltaNet
from latentbridge.nn.layer_routing import RoutedDecoder, RoutedMixer

B, T, D, H, V = 3, 13, 12, 3, 17


class Ffn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.layer(x).tanh()


def decoder(pattern: str, **settings: Any) -> Decoder:
    """g: gated delta, s: softmax, r: routed; by layer."""
    torch.manual_seed(3)

    def mixer(layer: int) -> nn.Module:
        attention = CausalAttention(D, H, True, 0.0)
        gdn = GatedDeltaNet(D, 2, 5, 7, init_std=0.3)
        return {"g": gdn, "s": attention, "r": RoutedMixer(gdn, attention)}[pattern[layer]]

    given = V, T, D, len(pattern), H, lambda layer: Ffn()
    routed = [layer for layer, kind in enumerate(pattern) if kind == "r"]
    if routed:
        made: Decoder = RoutedDecoder(routed, "chosen", True, *given, make_mixer=mixer, **settings)
        nn.init.normal_(made.router.linear.weight, std=1.0)
    else:
        made = Decoder(*given, make_mixer=mixer, **settings)
    nn.init.normal_(made.embedding.weight, std=1.0)
    return made.eval()


def ids() -> torch.Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("pattern", ["ggs", "grrs"])
@torch.no_grad()
def test_a_prefill_and_then_token_by_token_is_the_whole_at_once(pattern: str, positions: str):
    model, read = decoder(pattern, positions=positions), ids()
    if positions == "learned":
        nn.init.normal_(model.position_embedding.weight)
    whole, told = model(read)
    # 5 at once, 3 after them, and the rest one by one
    outs, memory = [], None
    for part in read.split([5, 3, 1, 1, 1, 1, 1], dim=1):
        out, memory = model.go_on(part, memory)
        outs.append(out)

    torch.testing.assert_close(torch.cat(outs, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert memory.tokens == T
    # both choices are taken, or routing would not have been tried
    assert all(0 < layer["counts"][0] < B * T for layer in told if layer)


@torch.no_grad()
def test_gated_delta_s_memory_stays_as_it_is_and_attention_s_grows_by_its_keys_and_values():
    sizes = {}
    for pattern in ("ggg", "sgg", "gsr"):
        memory, found = None, []
        for part in ids()[:, :11].split([6, 1, 3, 1], dim=1):
            _, memory = decoder(pattern).go_on(part, memory)
            found.append(memory.num_bytes())
        sizes[pattern] = [after - before for before, after in pairwise(found)]
    of_token = B * 2 * D * 4

    # a window of 3 places of 2 (5 + 5 + 7) channels, and two tables of 5 by 7, by layer
    _, memory = decoder("ggg").go_on(ids())
    assert memory.num_bytes() == 3 * B * 4 * (3 * 34 + 2 * 35)
    # nor does a view keep all of the text
    assert sum(x.untyped_storage().nbytes() for state in memory.states for x in state) == memory.num_bytes()
    assert sizes["ggg"] == [0, 0, 0]
    assert sizes["sgg"] == [of_token, 3 * of_token, of_token]
    assert sizes["gsr"] == [2 * of_token, 6 * of_token, 2 * of_token]


def test_no_more_tokens_than_there_are_positions():
    model = decoder("gs")
    _, memory = model.go_on(ids())

    with pytest.raises(ValueError, match=r"14 tokens are more than max_length \(13\)"):
        model.go_on(ids()[:, :1], memory)
