"""`chunk_states`, forward and backward, each as one Triton kernel: one launch however many chunks there are.

A program owns some columns of one head's state and keeps them in registers through all chunks: of the state
only what the rest of the rule needs goes to memory, once and in 16 bits. Products of a chunk are 4 C K V
FLOPs a head, on the matrix units. No result of a product is transposed: there Triton 3.4 to 3.7.0 is wrong on
Hopper.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# columns, warps, stages of loads; which is best, or fits at all, depends on K and on the card: it is tried
_TRIED = ((64, 8, 1), (64, 4, 1), (32, 4, 1), (32, 8, 2), (16, 4, 2))
# of a state's rows: they are kept in registers
_MOST_KEYS = 256


def runs(removed: Tensor, added: Tensor) -> bool:
    """Whether the kernel takes these: powers of two from 16, in 16 bits."""
    chunk, keys = removed.shape[2:]
    are_powers = all(size >= 16 and size & (size - 1) == 0 for size in (chunk, keys))
    return are_powers and keys <= _MOST_KEYS and added.element_size() == 2


def scan(removed: Tensor, added: Tensor, keys: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    """See `chunk_states`; all contiguous."""
    return _launch(removed, keys, added, None, decay, state)


def scan_backward(
    removed: Tensor, keys: Tensor, decay: Tensor, grad_writes: Tensor, grad_states: Tensor, grad_last: Tensor
) -> tuple[Tensor, ...]:
    """See `chunk_states_backward`; all contiguous."""
    return _launch(keys, removed, grad_writes, grad_states, decay, grad_last)


def _launch(
    left: Tensor, right: Tensor, base: Tensor, extra: Tensor | None, decay: Tensor, state: Tensor
) -> tuple[Tensor, ...]:
    chunks, sequences, chunk, keys = left.shape
    width = base.shape[-1]
    writes, last = torch.empty_like(base), torch.empty_like(state)
    states = base.new_empty(chunks, sequences, keys, width)
    _scan[lambda chosen: (triton.cdiv(width, chosen["COLUMNS"]), sequences)](
        left,
        right,
        base,
        base if extra is None else extra,
        decay,
        state,
        writes,
        states,
        last,
        chunks,
        sequences,
        width,
        CHUNK=chunk,
        KEYS=keys,
        BACKWARD=extra is not None,
    )
    return writes, states, last


def _tried() -> list[triton.Config]:
    # an interpreter has no device to time it on
    tried = _TRIED[-1:] if triton.knobs.runtime.interpret else _TRIED
    return [
        triton.Config({"COLUMNS": columns}, num_warps=warps, num_stages=stages)
        for columns, warps, stages in tried
    ]


@triton.autotune(configs=_tried(), key=["sequences", "width", "CHUNK", "KEYS", "BACKWARD"])
# each would be compiled again for one, for multiples of 16 and for others
@triton.jit(do_not_specialize=["chunks", "sequences"])
def _scan(  # type: ignore[no-untyped-def]
    left,
    right,
    base,
    extra,
    decay,
    first,
    writes,
    states,
    last,
    chunks,
    sequences,
    width,
    CHUNK: tl.constexpr,
    KEYS: tl.constexpr,
    BACKWARD: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """U = base - left S, S <- decay S + right^T U; backward, from the last chunk, both other signs."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sequence = tl.program_id(1)
    is_there = columns[None, :] < width
    rows, keys = tl.arange(0, CHUNK), tl.arange(0, KEYS)
    in_state = keys[:, None] * width + columns[None, :]
    in_writes = rows[:, None] * width + columns[None, :]
    whole = KEYS * width
    state = tl.load(first + sequence.to(tl.int64) * whole + in_state, mask=is_there, other=0.0)
    for step in range(chunks):
        n = chunks - 1 - step if BACKWARD else step
        part = (n * sequences + sequence).to(tl.int64)
        near = state.to(states.dtype.element_ty)
        tl.store(states + part * whole + in_state, near, mask=is_there)
        of_left = tl.load(left + part * CHUNK * KEYS + rows[:, None] * KEYS + keys[None, :])
        of_base = tl.load(base + part * CHUNK * width + in_writes, mask=is_there, other=0.0).to(tl.float32)
        product = tl.dot(of_left, near)
        write = (of_base + product if BACKWARD else of_base - product).to(writes.dtype.element_ty)
        tl.store(writes + part * CHUNK * width + in_writes, write, mask=is_there)
        # read as its transpose, which is free
        of_right = tl.load(right + part * CHUNK * KEYS + rows[None, :] * KEYS + keys[:, None])
        faded = tl.load(decay + part) * state
        if BACKWARD:
            more = tl.load(extra + part * whole + in_state, mask=is_there, other=0.0).to(tl.float32)
            state = faded + more - tl.dot(of_right, write)
        else:
            state = faded + tl.dot(of_right, write)
    tl.store(last + sequence.to(tl.int64) * whole + in_state, state, mask=is_there)
