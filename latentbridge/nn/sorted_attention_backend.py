"""Which code reads for some queries: FlexAttention where it stands the test, else torch's attention."""

from __future__ import annotations

import torch
from torch import Tensor

from latentbridge.nn.backend import Backend, against_kernels, largest_error, verdict
from latentbridge.nn.sorted_attention import BLOCK, Reader, by_blocks, plain
from latentbridge.nn.takers import find_takers

# tokens of a text from which blocks are read sooner than all places (H200, 12 heads of 64, half of them ask)
LONG = 4096


def choose_reader(device: torch.device, dtype: torch.dtype, width: int, length: int) -> Backend:
    """What a run on this device, with weights of this type, should use; asked once.

    width: of a head;  length: T, tokens of a text
    """
    against = against_kernels(device, dtype)
    if against is not None:
        return Backend("plain", against)
    if length < LONG:
        return Backend("plain", f"texts of {length:,} tokens; from {LONG:,} on it pays to read by blocks")
    is_sound, reason = verdict("FlexAttention", lambda: error_of(by_blocks, device, dtype, width))
    return Backend("by_blocks" if is_sound else "plain", reason)


def reader_of(name: str) -> Reader:
    """The reader of a backend."""
    readers: dict[str, Reader] = {"by_blocks": by_blocks, "plain": plain}
    return readers[name]


def error_of(reader: Reader, device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Largest relative error, to float64, of what takers get and of its gradients; nan if one is.

    Of a text of which half asks, one of which nobody does and one of which all do, of two blocks and a part
    of another, so that blocks of queries are of several texts, of one, and of nobody
    """
    batch, length, heads = 3, 2 * BLOCK + 9, 2
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.5, 0.0, 1.0])[:, None]
    asks = torch.rand(batch, length, generator=generator) < shares
    shape = (batch, length, heads, width)
    given = [torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in given]
    above = torch.randn(*shape, generator=generator).to(device, dtype)
    answers = [
        with_gradients(way, inputs, asks.to(device), above)
        for way, inputs in ((reader, given), (plain, exact))
    ]
    return largest_error(*answers)


def with_gradients(reader: Reader, given: list[Tensor], asks: Tensor, above: Tensor) -> list[Tensor]:
    """What those that ask get, and the gradients to query, key and value, (B, T, H, W) each; asks: (B, T)."""
    query, key, value = given
    ((takers,),) = find_takers(asks[:, :, None, None])
    found = takers.put(reader(takers.take(query), key, value, takers), *asks.shape)
    read = torch.where(asks[:, :, None, None], found, 0)
    # where nobody asks, nothing is read
    taught = torch.autograd.grad(read, given, above.to(read.dtype), materialize_grads=True)
    return [read.detach(), *taught]
