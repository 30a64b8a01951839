"""Routing between two mixers: the saved computation changes no number, and the router learns what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentbridge.nn.decoder import CausalAttention
from latentbridge.nn.ffn import SwiGLU
from latentbridge.nn.gated_deltanet import GatedDeltaNet
from latentbridge.nn.layer_routing import LayerRouter, RoutedDecoder, RoutedMixer, gates, one_hot
from latentbridge.nn.rope import rotations
from latentbridge.nn.takers import find_takers

B, T, D, H, V = 3, 11, 12, 3, 17


class Ffn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = SwiGLU(D, 2 * D)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.layer(x)


@pytest.fixture
def make() -> Callable[..., RoutedDecoder]:
    def decoder(gradient: Any = "chosen", sparse: bool = True, routed: Any = (1, 2)) -> RoutedDecoder:
        torch.manual_seed(3)

        def mixer(layer: int) -> nn.Module:
            attention = CausalAttention(D, H, True, 0.0)
            return (
                RoutedMixer(GatedDeltaNet(D, 2, 5, 7, init_std=0.3), attention)
                if layer in routed
                else attention
            )

        made = RoutedDecoder(routed, gradient, sparse, V, T, D, 4, H, lambda layer: Ffn(), make_mixer=mixer)
        with torch.no_grad():
            # sure enough that tokens differ
            made.router.linear.weight.mul_(40)
            made.embedding.weight.mul_(40)
        return made

    return decoder


def ids() -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


def read(decoder: RoutedDecoder) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(11)
    states, told = decoder(ids())
    loss = (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum()
    loss = loss + sum(part["mean_probs"][0] for part in told) if decoder.training else loss
    loss.backward()
    return states.detach(), {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("is_training", [True, False])
def test_what_is_computed_for_the_chosen_alone_equals_both_branches_with_gradients(make, is_training):
    """T: the published model computed both blocks for every token, so that nothing could be saved."""
    sparse, dense = make(sparse=True).train(is_training), make(sparse=False).train(is_training)
    (found, taught), (expected, known) = read(sparse), read(dense)

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert taught.keys() == known.keys()
    assert ("router.linear.weight" in taught) == is_training
    for name, gradient in taught.items():
        torch.testing.assert_close(gradient, known[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("choice", [0, 1])
def test_a_mixer_for_takers_is_the_mixer_there_and_0_elsewhere(choice):
    torch.manual_seed(0)
    mixer = (GatedDeltaNet(D, 2, 5, 7, init_std=0.3), CausalAttention(D, H, True, 0.0))[choice]
    x, turns = torch.randn(B, T, D), rotations(T, D // H, torch.device("cpu"))
    chosen = torch.rand(B, T, 2, 2) < 0.4
    # one text that nobody, and one that everybody took so
    chosen[0], chosen[1] = False, True
    takers = find_takers(chosen.float())[1][choice]
    found, mask = mixer.at(x, turns, takers), chosen[:, :, 1, choice, None]

    torch.testing.assert_close(found, torch.where(mask, mixer(x, turns), 0.0))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_where_nobody_or_everybody_took_it_every_weight_has_its_gradient(share):
    """A rank whose weights had none would wait for its peers."""
    attention, x = CausalAttention(D, H, True, 0.0), torch.randn(B, T, D, requires_grad=True)
    ((takers,),) = find_takers(torch.full((B, T, 1, 1), share))
    given = [x, *attention.parameters()]
    found = torch.autograd.grad(attention.at(x, None, takers).sum(), given)
    known = torch.autograd.grad(share * attention(x, None).sum(), given)

    torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-5)


def test_only_queries_of_those_that_chose_it_are_projected():
    """T: half of the tokens cost half of the queries and outputs."""
    from products import Products

    attention, x = CausalAttention(D, H, False, 0.0), torch.randn(2, 8, D)
    few = find_takers(torch.tensor([[1, 0, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]])[:, :, None, None])[
        0
    ][0]
    with Products() as products:
        attention.at(x, None, few)

    assert products.total == 2 * D * D * 2 * (2 * 8 + 3)


def test_the_gradient_of_both_is_the_difference_of_branches_and_that_of_the_chosen_its_own():
    """Worked out by hand: p = 1/4, 3/4 at temperature 1/2, taken softmax, dL/dh = 1."""
    gdn, softmax = 5.0, 2.0
    for gradient, expected in (("both", (gdn - softmax) * 2 * 3 / 16), ("chosen", -softmax * 2 * 3 / 16)):
        logits = torch.tensor([0.0, torch.tensor(3.0).log() / 2], requires_grad=True)
        found = gates(one_hot(logits), (logits / 0.5).softmax(dim=-1), gradient)
        (found * torch.tensor([gdn, softmax])).sum().backward()

        assert found.tolist() == [0.0, 1.0]
        assert logits.grad.tolist() == pytest.approx([expected, -expected])


def test_evaluation_takes_the_likelier_and_draws_nothing(make):
    """Q: Gumbel noise stayed on in evaluation, so that the same weights scored 2.0519 to 2.0538."""
    decoder = make().eval()
    state = torch.get_rng_state()
    first, second = (decoder(ids()) for _ in range(2))

    assert torch.equal(first[0], second[0])
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(make().train()(ids())[0], first[0])


def test_the_share_in_the_balance_loss_is_that_of_the_routes_taken_and_follows_its_probabilities():
    """W: the load was counted from likelier choices, while tokens went where noise sent them."""
    router = LayerRouter(D, 1).train()
    with torch.no_grad():
        router.linear.weight.zero_()
        router.linear.bias.copy_(torch.tensor([0.0, torch.tensor(3.0).log()]))
    torch.manual_seed(0)
    routes = router(torch.zeros(40, 500, D))
    (told,) = routes.told()

    assert told["counts"].tolist() == routes.taken.sum(dim=(0, 1, 2)).tolist()
    assert float(told["counts"][1]) / 20_000 == pytest.approx(0.75, abs=0.01)
    assert told["mean_probs"].tolist() == pytest.approx([0.25, 0.75])


def test_temperature_changes_gradients_and_no_choice():
    router = LayerRouter(D, 2).train()
    found = []
    for temperature in (0.1, 10.0):
        router.temperature.fill_(temperature)
        torch.manual_seed(2)
        found.append(router(torch.randn(B, T, D)))

    assert torch.equal(found[0].taken, found[1].taken)
    assert found[0].relaxed.max() > 0.9999 > 0.7 > found[1].relaxed.max()


def test_a_later_token_changes_no_state_before_it(make):
    decoder = make().eval()
    other = ids()
    other[:, 6] = (other[:, 6] + 1) % V
    known, found = decoder(ids())[0], decoder(other)[0]

    torch.testing.assert_close(found[:, :6], known[:, :6], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[:, 6:], known[:, 6:])


@pytest.mark.parametrize("choice", [0, 1])
def test_all_tokens_of_one_choice_make_the_model_a_static_one(make, choice):
    decoder = make(routed=(2,)).eval()
    with torch.no_grad():
        decoder.router.linear.weight.zero_()
        decoder.router.linear.bias.copy_(F.one_hot(torch.tensor(choice), 2).float())
    states, (told,) = decoder(ids())
    mixer = decoder.blocks[2].attention
    static = (mixer.gdn, mixer.softmax)[choice]
    mixer.forward = lambda x, turns, route: static(x, turns)

    assert told["counts"].tolist() == [B * T * (1 - choice), B * T * choice]
    torch.testing.assert_close(states, decoder(ids())[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("gradient", "sparse", "routed"), [("both", True, (1,)), ("chosen", True, (0,)), ("chosen", True, ())]
)
def test_what_cannot_be_routed_is_refused(make, gradient, sparse, routed):
    with pytest.raises(ValueError, match=r"both branches|stands after layer 0"):
        make(gradient, sparse, routed)
