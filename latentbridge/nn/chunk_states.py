"""The part of the gated delta rule that goes chunk by chunk: what is written, and the state after it.

Opaque to torch.compile, which would unroll it: 256 chunks of 16,384 tokens, forward and backward. Nothing in
it depends on the host, so a CUDA graph may hold it. In torch a chunk is 5 launches, and as many backward: a
few microseconds each, which a graph halves; its float32 state goes to memory and back three times.
With Triton it is one launch, see nn/chunk_kernel.py.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("latentbridge::chunk_states", mutates_args=())
def chunk_states(
    removed: Tensor, added: Tensor, keys: Tensor, decay: Tensor, state: Tensor, by_triton: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes U = added - removed S of each chunk, after which S <- decay S + keys^T U.

    removed, keys: (N, Z, C, K);  added: (N, Z, C, V), of one dtype;  decay: (N, Z) and state: (Z, K, V), of
    float32 or float64;  Z: sequences times heads;  by_triton: where its kernel takes such sizes
    returns U, (N, Z, C, V); the states before each chunk, (N, Z, K, V), in the dtype of added; the last state
    """
    if module := _kernel(by_triton, removed, added):
        scanned: tuple[Tensor, Tensor, Tensor] = module.scan(
            *(x.contiguous() for x in (removed, added, keys, decay, state))
        )
        return scanned
    chunks, sequences, _, key_width = removed.shape
    writes = torch.empty_like(added)
    states = added.new_empty(chunks, sequences, key_width, added.shape[-1])
    for n in range(chunks):
        states[n] = state
        torch.baddbmm(added[n], removed[n], states[n], alpha=-1, out=writes[n])
        state = torch.addcmul(_product(keys[n].mT, writes[n], state.dtype), decay[n, :, None, None], state)
    return writes, states, state


@torch.library.custom_op("latentbridge::chunk_states_backward", mutates_args=())
def chunk_states_backward(
    removed: Tensor,
    keys: Tensor,
    decay: Tensor,
    grad_writes: Tensor,
    grad_states: Tensor,
    grad_last: Tensor,
    by_triton: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole gradients to the writes, to the states after each chunk, and to the first state."""
    if module := _kernel(by_triton, removed, grad_writes):
        given = removed, keys, decay, grad_writes, grad_states, grad_last
        whole: tuple[Tensor, Tensor, Tensor] = module.scan_backward(*(x.contiguous() for x in given))
        return whole
    whole_writes, whole_states = torch.empty_like(grad_writes), torch.empty_like(grad_states)
    grad = grad_last
    for n in reversed(range(len(removed))):
        whole_states[n] = grad
        torch.baddbmm(grad_writes[n], keys[n], whole_states[n], out=whole_writes[n])
        through = _product(removed[n].mT, whole_writes[n], grad.dtype)
        grad = torch.addcmul(grad_states[n] - through, decay[n, :, None, None], grad)
    return whole_writes, whole_states, grad


@chunk_states.register_fake
def _(
    removed: Tensor, added: Tensor, keys: Tensor, decay: Tensor, state: Tensor, by_triton: bool = False
) -> tuple[Tensor, ...]:
    states = added.new_empty(*removed.shape[:2], *state.shape[1:])
    return torch.empty_like(added), states, torch.empty_like(state)


@chunk_states_backward.register_fake
def _(
    removed: Tensor,
    keys: Tensor,
    decay: Tensor,
    grad_writes: Tensor,
    grad_states: Tensor,
    grad_last: Tensor,
    by_triton: bool = False,
) -> tuple[Tensor, ...]:
    return torch.empty_like(grad_writes), torch.empty_like(grad_states), torch.empty_like(grad_last)


def _kernel(wanted: bool, removed: Tensor, added: Tensor) -> Any:
    """The module of the kernel, where it is wanted and takes these."""
    if not wanted:
        return None
    found = importlib.import_module("latentbridge.nn.chunk_kernel")
    return found if found.runs(removed, added) else None


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    removed, _, keys, decay, _, ctx.by_triton = inputs
    ctx.save_for_backward(removed, keys, decay, *output[:2])


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    removed, keys, decay, writes, states = ctx.saved_tensors
    to_writes, to_states, to_first = chunk_states_backward(
        removed, keys, decay, *(grad.contiguous() for grad in grads), ctx.by_triton
    )
    to_decay = (to_states.to(decay.dtype) * states.to(decay.dtype)).sum(dim=(-1, -2))
    return -(to_writes @ states.mT), to_writes, writes @ to_states.mT, to_decay, to_first, None


chunk_states.register_autograd(_differentiate, setup_context=_remember)


def _product(first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
    """Batched product, summed and returned in `dtype`, on the matrix units where its factors are bf16."""
    if first.is_cuda and first.dtype != dtype:
        return torch.bmm(first, second, out_dtype=dtype)
    return first.to(dtype) @ second.to(dtype)
