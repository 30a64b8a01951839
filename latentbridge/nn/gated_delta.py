"""The gated delta rule (Yang et al. 2024, arXiv 2412.06464): a memory that is corrected, and fades.

A head's state S is a (K, V) table. Of each token, with decay a and writing strength b,

    S <- a (I - b k k^T) S + b k v^T    and then    out = S^T q / sqrt(K).

`recurrent_gated_delta` does just this. `gated_delta_rule` takes a chunk of C tokens at a time (WY form, arXiv
2406.06484). With u_t what token t adds, S_t = a_t S_{t-1} + k_t u_t^T, and G the sum of a chunk's log decays
up to a token, a chunk's u solve a unit lower triangular system in the state S before it:

    (I + A) U = b (V - e^G K S),    A_tj = b_t e^(G_t - G_j) k_t.k_j for j < t.

All of this is batched over all chunks; only U = X V' - W S and the state after it go chunk by chunk. Work and
memory are O(T C).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentbridge.nn.chunk_states import chunk_states

# tokens a chunk: below, the loop over chunks is longer; above, so is the work within them
CHUNK = 64
# up to this size a system is inverted without being cut up: launches then cost more than products
_WHOLE = 16


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    state: Tensor | None = None,
    chunk: int = CHUNK,
    by_triton: bool = False,
) -> tuple[Tensor, Tensor]:
    """What each token reads after its own write, and the state after the last one.

    q, k: (B, T, H, K), k of length at most 1;  v: (B, T, H, V);  log_decay: (B, T, H) float32, finite, at
    most 0;  beta: (B, T, H), in 0..1;  state: (B, H, K, V) float32, None for zeros
    by_triton: what goes from chunk to chunk is one launch
    returns (B, T, H, V) in v's dtype, and a state like `state`. Matrix products are in v's dtype, decays,
    states and the triangular system in float32, or all in float64.
    """
    batch, length, heads, key_width = q.shape
    chunk = min(chunk, length)
    wide = torch.promote_types(v.dtype, torch.float32)
    # of a token that is not there: nothing written (beta 0), nothing forgotten (log decay 0)
    queries, keys, values = (_chunked(x, chunk) for x in (q * key_width**-0.5, k, v))  # (N, BH, C, K or V)
    decays, strengths = (_chunked(x.to(wide)[..., None], chunk) for x in (log_decay, beta))  # (N, BH, C, 1)

    sums = decays.cumsum(dim=-2)
    ratios = _ratios(sums)  # (N, BH, C, C)
    system = (strengths * ratios * (keys @ keys.mT)).tril(-1)
    solved = _Inverse.apply(system).to(v.dtype)  # type: ignore[no-untyped-call]
    added = solved @ (strengths * values).to(v.dtype)  # (N, BH, C, V), were the state before a chunk 0
    removed = solved @ (strengths * sums.exp() * keys).to(v.dtype)  # (N, BH, C, K), of the state before
    left = sums[..., -1:, :]
    kept_keys = ((left - sums).exp() * keys).to(v.dtype)

    if state is None:
        before = torch.zeros(batch * heads, key_width, v.shape[-1], dtype=wide, device=v.device)
    else:
        before = state.to(wide).flatten(0, 1)
    writes, states, last = chunk_states(removed, added, kept_keys, left[..., 0, 0].exp(), before, by_triton)
    out = (sums.exp() * queries).to(v.dtype) @ states + (ratios * (queries @ keys.mT)).to(v.dtype) @ writes
    out = out.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length]
    return out, last.unflatten(0, (batch, heads))


def recurrent_gated_delta(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same, one token after the other; what `gated_delta_rule` is held against."""
    wide = torch.promote_types(v.dtype, torch.float32)
    if state is None:
        batch, _, heads, key_width = q.shape
        state = torch.zeros(batch, heads, key_width, v.shape[-1], dtype=wide, device=v.device)
    outs = []
    for t in range(q.shape[1]):
        out, state = gated_delta_step(q[:, t], k[:, t], v[:, t], log_decay[:, t], beta[:, t], state)
        outs.append(out)
    return torch.stack(outs, dim=1), state


def gated_delta_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token, in the state's dtype; q, k: (B, H, K), v: (B, H, V), log_decay, beta: (B, H)."""
    query, key, value, decay, strength = (x.to(state.dtype) for x in (q, k, v, log_decay.exp(), beta))
    faded = decay[..., None, None] * state
    missing = value - torch.einsum("bhk,bhkv->bhv", key, faded)
    state = faded + key[..., None] * (strength[..., None] * missing)[..., None, :]
    out = torch.einsum("bhk,bhkv->bhv", query * query.shape[-1] ** -0.5, state)
    return out.to(v.dtype), state


def _chunked(x: Tensor, chunk: int) -> Tensor:
    """(B, T, H, W) to (N, BH, C, W): chunks first, so that each one's part lies in one piece."""
    padded = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % chunk))
    batch, length, heads, width = padded.shape
    apart = padded.reshape(batch, length // chunk, chunk, heads, width)
    return apart.permute(1, 0, 3, 2, 4).flatten(1, 2)


def _ratios(sums: Tensor) -> Tensor:
    """e^(G_t - G_j) for j <= t, else 0; sums: (..., C, 1), returns (..., C, C)."""
    differences = sums - sums.mT
    future = torch.ones(differences.shape[-2:], dtype=torch.bool, device=sums.device).triu(1)
    # before exp: of a future token the difference is above 0, and may overflow
    return differences.masked_fill(future, -torch.inf).exp()


class _Inverse(torch.autograd.Function):
    """(I + A)^-1 of strictly lower triangular A, (..., C, C), by products; see `_inverse`."""

    @staticmethod
    def forward(ctx: Any, system: Tensor) -> Tensor:
        inverse = _inverse(system)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        found: Tensor = -(inverse.mT @ grad @ inverse.mT)
        return found


def _inverse(system: Tensor) -> Tensor:
    """Two neighbouring blocks' inverses make that of the block of both: [[X, 0], [-Y A' X, Y]].

    So blocks double, all at once. A power series would take fewer products, but where keys repeat its terms
    reach 10^18, while the inverse itself stays small.
    """
    size = system.shape[-1]
    # larger ones by halves, both of them at once: whole products of 64 would be 36 times the FLOPs
    if size > _WHOLE and size % 2 == 0:
        half = size // 2
        first, second = _inverse(torch.stack([system[..., :half, :half], system[..., half:, half:]])).unbind()
        lower = -(second @ system[..., half:, :half] @ first)
        return torch.cat([F.pad(first, (0, half)), torch.cat([lower, second], dim=-1)], dim=-2)
    place = torch.arange(size, device=system.device)
    inverse = torch.eye(size, dtype=system.dtype, device=system.device).expand_as(system)
    block = 1
    while block < size:
        pair, of_block = place // (2 * block), place // block
        between = (pair[:, None] == pair) & (of_block[:, None] != of_block)
        lower = system * between
        # blocks of one are their own inverses
        inverse = inverse - (lower if block == 1 else inverse @ lower @ inverse)
        block *= 2
    return inverse
