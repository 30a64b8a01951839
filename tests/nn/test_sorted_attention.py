"""Attention of sorted queries: which blocks are read, and that what comes of them is causal attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from flexing import flex_on_cpu
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from latentbridge.nn import sorted_attention
from latentbridge.nn.sorted_attention import Reader, flexed, plain, readable
from latentbridge.nn.sorted_attention_backend import with_gradients
from latentbridge.nn.takers import Takers, find_takers

B, T, H, W = 3, 11, 2, 5
# of each text, the share that asks: nobody, everybody, some of all, nobody at all, everybody everywhere
SHARES = [(0.0, 1.0, 0.4), (0.3, 0.0, 0.0), (0.5, 0.2, 0.9), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]


def draws(shares: tuple[float, ...], length: int = T) -> Tensor:
    return (
        torch.rand(len(shares), length, generator=torch.Generator().manual_seed(4))
        < torch.tensor(shares)[:, None]
    )


def asked(shares: tuple[float, ...], length: int = T) -> Takers:
    return find_takers(draws(shares, length)[:, :, None, None])[0][0]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    flex_on_cpu(monkeypatch)


def all_places(query: Tensor, key: Tensor, value: Tensor, takers: Takers) -> Tensor:
    texts = (x.transpose(1, 2) for x in (takers.put(query, B, T), key, value))
    return takers.take(F.scaled_dot_product_attention(*texts, is_causal=True).transpose(1, 2))


def answers(reader: Reader, asks: Tensor) -> list[Tensor]:
    """What those that ask get, and gradients of query, key and value."""
    torch.manual_seed(1)
    given = [torch.randn(B, T, H, W, requires_grad=True) for _ in range(3)]
    return with_gradients(reader, given, asks, torch.randn(B, T, H, W))


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("reader", [flexed, plain])
def test_at_fixed_shapes_takers_read_as_all_places_do_and_so_do_gradients(reader, shares):
    torch.testing.assert_close(answers(reader, draws(shares)), answers(all_places, draws(shares)))


@pytest.mark.parametrize("shares", SHARES)
def test_takers_alone_read_as_all_places_do_and_so_do_gradients(monkeypatch, shares):
    monkeypatch.setattr(sorted_attention, "STRETCH", 4)

    torch.testing.assert_close(answers(plain, draws(shares)), answers(all_places, draws(shares)))


@pytest.mark.usefixtures("on_cpu")
def test_what_others_ask_changes_no_bit_of_what_takers_get():
    takers = asked(SHARES[2])
    count = int(takers.end)
    given = [torch.randn(B * T, H, W), *torch.randn(2, B, T, H, W)]
    known = flexed(*given, takers)
    given[0][count:] *= 1e3
    found = flexed(*given, takers)

    assert torch.equal(found[:count], known[:count])
    assert found.isfinite().all()


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("length", [11, 13, 64])
@pytest.mark.parametrize("shares", SHARES)
def test_blocks_are_those_that_a_mask_of_all_pairs_comes_to(shares, length: int):
    takers, block = asked(shares, length), 4
    found = readable(takers, length, block)
    size = len(takers.order)
    known = torch_flex.create_block_mask(found.mask_mod, None, None, size, size, "cpu", BLOCK_SIZE=block)
    partial, full = (
        dense(found.kv_num_blocks, found.kv_indices),
        dense(found.full_kv_num_blocks, found.full_kv_indices),
    )
    may, must = (
        dense(known.kv_num_blocks, known.kv_indices),
        dense(known.full_kv_num_blocks, known.full_kv_indices),
    )

    assert not (partial & full).any()
    assert ((partial | full) >= (may | must)).all()
    assert (full <= must).all()
    # nobody who asks, nothing to read
    assert not (partial | full)[-(-int(takers.end) // block) :].any()
    # and by key, as a backward goes through them, they are the same
    assert torch.equal(dense(found.q_num_blocks, found.q_indices), partial.T)
    assert torch.equal(dense(found.full_q_num_blocks, found.full_q_indices), full.T)


def dense(sizes: Tensor, indices: Tensor) -> Tensor:
    """(Z, Z) bool, of lists of which none has a block twice."""
    found = torch.zeros(indices.shape[-2:], dtype=torch.int)
    for row, (size, index) in enumerate(zip(sizes[0, 0].tolist(), indices[0, 0].tolist(), strict=True)):
        found[row, index[:size]] = 1
        assert found[row].sum() == size
    return found.bool()


@pytest.mark.usefixtures("on_cpu")
def test_blocks_read_are_few():
    """By hand: one text of 16, odd places ask: 8 queries in 2 blocks of 4, which reach to places 7 and 15."""
    taken = (torch.arange(16) % 2 == 1)[None, :, None, None]
    mask = readable(find_takers(taken)[0][0], 16, 4)

    # queries at 1, 3, 5, 7 read blocks 0 and 1, none in whole; those at 9 to 15 all of 0 and 1
    assert mask.kv_num_blocks.tolist() == [[[2, 2, 0, 0]]]
    assert mask.full_kv_num_blocks.tolist() == [[[0, 2, 0, 0]]]
    assert [mask.kv_indices[0, 0, row, :2].tolist() for row in (0, 1)] == [[0, 1], [2, 3]]
    assert mask.full_kv_indices[0, 0, 1, :2].tolist() == [0, 1]
    # and block 2 of keys is read by the second block of queries alone
    assert mask.q_num_blocks.tolist() == [[[1, 1, 1, 1]]]
