from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latentbridge.nn.gated_delta import gated_delta_rule, recurrent_gated_delta

B, H, K, V = 2, 3, 5, 7
# one token; less than a chunk; a whole one; a chunk and a part; many chunks that are no power of two
LENGTHS = [(1, 4), (6, 64), (8, 8), (21, 16), (40, 6)]


def inputs(length: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """q, k, v, log_decay, beta and a state, with gradients."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, uniform: bool = False) -> Tensor:
        draw = torch.rand if uniform else torch.randn
        return draw(*shape, generator=generator, dtype=dtype)

    q, k = (torch.nn.functional.normalize(random(B, length, H, K), dim=-1) for _ in range(2))
    log_decay, beta = -2 * random(B, length, H, uniform=True) ** 3, random(B, length, H, uniform=True)
    made = [q, k, random(B, length, H, V), log_decay, beta, random(B, H, K, V)]
    return [x.requires_grad_() for x in made]


def with_gradients(rule, given: list[Tensor], **settings) -> list[Tensor]:
    """Output, last state, and gradients to all that was given of a sum that weighs every number apart."""
    *tokens, state = given
    out, last = rule(*tokens, state=state, **settings)
    total = sum((x * torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x)).sum() for x in (out, last))
    return [out, last, *torch.autograd.grad(total, given)]


def relative_errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]


def test_two_tokens_by_hand():
    """One head of K = V = 1: S = b v, then a (1 - b) S + b v; of unit keys."""
    one = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    value = torch.tensor([3.0, 10.0]).double().view(1, 2, 1, 1)
    log_decay = torch.tensor([0.3, 0.5]).double().log().view(1, 2, 1)
    beta = torch.tensor([1.0, 0.25]).double().view(1, 2, 1)
    for rule in (recurrent_gated_delta, gated_delta_rule):
        out, state = rule(one, one, value, log_decay, beta)

        assert out.flatten().tolist() == pytest.approx([3.0, 0.5 * 0.75 * 3 + 0.25 * 10])
        assert state.item() == pytest.approx(3.625)


def test_the_recurrence_is_the_matrix_equation_of_the_paper():
    q, k, v, log_decay, beta, state = (x.detach() for x in inputs(4))
    out, last = recurrent_gated_delta(q, k, v, log_decay, beta, state=state)
    memory = state[1, 2]
    for t in range(4):
        key, b = k[1, t, 2, :, None], beta[1, t, 2]
        memory = log_decay[1, t, 2].exp() * (torch.eye(K) - b * key @ key.T) @ memory
        memory = memory + b * key @ v[1, t, 2, None]
        assert torch.allclose(out[1, t, 2], memory.T @ q[1, t, 2] / math.sqrt(K), atol=1e-12)
    assert torch.allclose(last[1, 2], memory, atol=1e-12)


@pytest.mark.parametrize(("length", "chunk"), LENGTHS)
def test_chunks_and_their_gradients_are_those_of_one_token_after_the_other(length, chunk):
    given = inputs(length)
    expected = with_gradients(recurrent_gated_delta, given)

    assert max(relative_errors(with_gradients(gated_delta_rule, given, chunk=chunk), expected)) < 1e-12
    single = [x.detach().float().requires_grad_() for x in given]
    assert max(relative_errors(with_gradients(gated_delta_rule, single, chunk=chunk), expected)) < 1e-5


def test_bf16_is_as_near_as_its_own_numbers_are():
    """8 bits: a rounding is up to 1/256; outputs and gradients are within three of them."""
    given = inputs(40)
    rounded = [
        x.detach().bfloat16() if n in (0, 1, 2, 4) else x.detach().float() for n, x in enumerate(given)
    ]
    rounded = [x.requires_grad_() for x in rounded]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    found = with_gradients(gated_delta_rule, rounded, chunk=16)

    assert [x.dtype for x in found[:2]] == [torch.bfloat16, torch.float32]
    assert max(relative_errors(found, with_gradients(recurrent_gated_delta, exact))) < 3 / 256


def test_gradients_are_those_of_finite_differences():
    given = [x[:1, :, :2] if x.ndim == 4 and x.shape[1] == 5 else x for x in inputs(5, seed=3)]
    tokens, state = [x.detach()[:1, :, :2].requires_grad_() for x in given[:5]], given[5].detach()[:1, :2]

    def rule(*all_of_it: Tensor) -> tuple[Tensor, Tensor]:
        return gated_delta_rule(*all_of_it[:5], state=all_of_it[5], chunk=2)

    assert torch.autograd.gradcheck(rule, [*tokens, state.requires_grad_()], fast_mode=True)


@pytest.mark.parametrize("cut", [1, 8, 13])
def test_a_state_handed_over_is_as_if_there_had_been_no_cut(cut):
    *tokens, state = (x.detach() for x in inputs(21))
    whole, last = gated_delta_rule(*tokens, state=state, chunk=8)
    first, between = gated_delta_rule(*(x[:, :cut] for x in tokens), state=state, chunk=8)
    second, end = gated_delta_rule(*(x[:, cut:] for x in tokens), state=between, chunk=8)

    assert torch.allclose(torch.cat([first, second], dim=1), whole, atol=1e-12)
    assert torch.allclose(end, last, atol=1e-12)


def test_no_token_changes_what_is_before_it_beside_it_or_in_another_head():
    *tokens, _ = (x.detach() for x in inputs(21))
    plain, _ = gated_delta_rule(*tokens, chunk=8)
    for n in range(5):
        changed = [x.clone() for x in tokens]
        changed[n][0, 10, 1] -= 0.5
        change = (gated_delta_rule(*changed, chunk=8)[0] - plain).abs().amax(dim=-1)  # (B, T, H)

        assert change[0, :10, 1].max() == change[0, :, [0, 2]].max() == change[1].max() == 0
        assert change[0, 10, 1] > 1e-3


def test_a_token_of_no_decay_and_no_strength_leaves_the_state_as_it_is():
    q, k, v, log_decay, beta, state = (x.detach().clone() for x in inputs(9))
    log_decay[:, 4:], beta[:, 4:] = 0, 0
    _, short = gated_delta_rule(*(x[:, :4] for x in (q, k, v, log_decay, beta)), state=state, chunk=8)
    out, last = gated_delta_rule(q, k, v, log_decay, beta, state=state, chunk=8)

    assert torch.allclose(last, short, atol=1e-14)
    read = torch.einsum("bthk,bhkv->bthv", q[:, 4:], last) / math.sqrt(K)
    assert torch.allclose(out[:, 4:], read, atol=1e-13)


def test_full_strength_on_a_unit_key_overwrites_what_was_there():
    _, k, v, log_decay, beta, state = (x.detach() for x in inputs(3))
    out, _ = gated_delta_rule(k, k, v, log_decay, torch.ones_like(beta), state=state)

    assert torch.allclose(out, v / math.sqrt(K), atol=1e-13)


@pytest.mark.parametrize("log_decay", [-1e4, -200.0, -1e-7])
def test_extreme_decays_neither_overflow_nor_lose_the_oracle(log_decay):
    """e^(200 x 40) is above any float: what lies ahead must be masked before exp, for the gradient too."""
    given = [x.detach().float() for x in inputs(40)]
    given[3] = torch.full_like(given[3], log_decay)
    found = with_gradients(gated_delta_rule, [x.requires_grad_() for x in given], chunk=32)
    expected = with_gradients(recurrent_gated_delta, [x.detach().double().requires_grad_() for x in given])

    assert all(torch.isfinite(x).all() for x in found)
    assert max(relative_errors(found[:2], expected[:2])) < 1e-5
    assert all(torch.allclose(a.double(), b, atol=1e-4) for a, b in zip(found, expected, strict=True))


def test_equal_keys_through_a_whole_chunk_stay_exact_in_float32():
    """A power series of the system would have terms of 10^18 here, and leave nothing."""
    given = [x.detach() for x in inputs(64)]
    given[1] = given[1][:, :1].expand_as(given[1]).clone()
    given[3], given[4] = torch.zeros_like(given[3]), torch.full_like(given[4], 0.99)
    expected = with_gradients(recurrent_gated_delta, [x.requires_grad_() for x in given])
    single = [x.detach().float().requires_grad_() for x in given]

    assert max(relative_errors(with_gradients(gated_delta_rule, single), expected)) < 1e-5


def test_without_a_state_it_starts_from_zeros():
    *tokens, state = (x.detach() for x in inputs(9))
    for rule in (gated_delta_rule, recurrent_gated_delta):
        for found, expected in zip(rule(*tokens), rule(*tokens, state=torch.zeros_like(state)), strict=True):
            assert torch.equal(found, expected)


def test_memory_grows_with_the_length_and_not_with_its_square():
    def held(length: int) -> int:
        sizes: list[int] = []

        def note(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        *tokens, _ = inputs(length)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            gated_delta_rule(*tokens, chunk=8)
        return sum(sizes)

    assert held(256) < 4.2 * held(64)


def test_it_compiles_as_one_graph_in_which_chunks_are_not_unrolled():
    graphs = []

    def keep(graph, _):
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    rule = torch.compile(gated_delta_rule, fullgraph=True, dynamic=False, backend=keep)
    for length in (12, 72):
        *tokens, _ = (x.detach() for x in inputs(length))
        assert torch.allclose(rule(*tokens, chunk=6)[0], recurrent_gated_delta(*tokens)[0], atol=1e-12)

    assert len(graphs) == 2 and graphs[0] == graphs[1]
