"""The elementwise parts of a frozen model in fewer launches, on a GPU: the same maths, rounded once less.

A step of decoding spends more time on launching small kernels than on reading the weights. Norms become
torch's own fused one; rotary embedding and gated activation are compiled, each into one kernel.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROTARY = "apply_rotary_pos_emb"


def fuse(model: nn.Module) -> None:
    """Replace what is known of a transformers model and says the same on noise; all else stays as it is."""
    can_compile = _can_compile(next(model.parameters()).device)
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            _replace(module, partial(_norm, module), len(module.weight))
        elif not can_compile:
            continue
        elif name.endswith("MLP") and isinstance(getattr(module, "act_fn", None), nn.SiLU):
            _replace(module, partial(_mlp, module), module.gate_proj.in_features)
        elif name.endswith("Attention"):
            # a function of the family's file, which its attention looks up by name
            home = sys.modules[type(module).__module__]
            plain = getattr(home, _ROTARY, None)
            if plain is not None and not hasattr(plain, "plain") and _is_usual(plain):
                setattr(home, _ROTARY, _rotary(plain))


@torch.no_grad()
def _replace(module: Any, forward: Callable[[Tensor], Tensor], width: int) -> None:
    # part by part: through a whole model two roundings of bf16 can come out as far apart as they like
    noise = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(next(module.parameters()))
    plain, fused = module.forward(noise), forward(noise)
    if torch.allclose(plain, fused, rtol=2e-2, atol=2e-2 * float(plain.abs().max())):
        module.forward = forward


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    return F.rms_norm(hidden_states, module.weight.shape, module.weight, module.variance_epsilon)


def _mlp(module: Any, x: Tensor) -> Tensor:
    down: Tensor = module.down_proj(_compiled(_gated)(module.gate_proj(x), module.up_proj(x)))
    return down


def _gated(gate: Tensor, value: Tensor) -> Tensor:
    return F.silu(gate) * value


def _rotary(plain: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others: Any, **more: Any) -> Any:
        # some families turn a part of each head only
        if others or more or not q.is_cuda or cos.shape[-1] != q.shape[-1]:
            return plain(q, k, cos, sin, *others, **more)
        return _compiled(_rotate)(q, k, cos, sin)

    rotated.plain = plain  # type: ignore[attr-defined]
    return rotated


def _is_usual(plain: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    """Whether a family's rotary embedding is the common one: some interleave, or know more arguments."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 3, 8, generator=generator) for heads in (4, 2))
    cos, sin = (torch.randn(2, 3, 8, generator=generator) for _ in range(2))
    try:
        theirs = plain(q, k, cos, sin)
    except Exception:
        return False
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(theirs, _rotate(q, k, cos, sin), strict=True))


@cache
def _can_compile(device: torch.device) -> bool:
    """Whether this node has what compiling takes, such as a C compiler; without it all stays plain."""
    x = torch.zeros(2, 2, 3, 4, device=device)
    try:
        _compiled(_gated)(x, x)
        _compiled(_rotate)(x, x, x[:, 0], x[:, 0])
    except Exception as error:
        warnings.warn(f"small operations are not fused: {type(error).__name__}: {error}", stacklevel=2)
        return False
    return True


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding (Su et al. 2021); q, k: (B, H, T, D), cos, sin: (B, T, D)."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + _half_turned(q) * sin, k * cos + _half_turned(k) * sin


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # any number of rows and tokens with one compilation
    compiled: Callable[..., Any] = torch.compile(function, dynamic=True)
    return compiled
