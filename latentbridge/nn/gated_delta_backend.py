"""Which code computes the gated delta rule: flash-linear-attention's where it is sound, else ours.

Ours is in torch, but for what goes from chunk to chunk: that is one Triton kernel where it is sound. Sound is
what stands the test, on the very card and at the very widths, of the recurrence and its gradients. fla's were
wrong for a year on one kind of card, by some versions of Triton; a list of versions knows only what is known.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from latentbridge.nn.backend import Backend, against_kernels, largest_error, verdict, with_gradients
from latentbridge.nn.gated_delta import CHUNK, gated_delta_rule, recurrent_gated_delta
from latentbridge.nn.gated_deltanet import Rule

# Triton in which the gradients of beta and of the decays come out wrong on Hopper, from and below; fla
# refuses to compute them there (fla-org/flash-linear-attention, issue 640), so it is not even asked
_WRONG_TRITON = (3, 4, 0), (3, 7, 1)


def choose_backend(device: torch.device, dtype: torch.dtype, widths: tuple[int, int]) -> Backend:
    """What a run on this device, with weights of this type, should use; asked once, at its start.

    widths: K and V of a head
    """
    against = against_kernels(device, dtype)
    if against is not None:
        return Backend("torch", against)
    against_fla = _against_fla(device)
    if against_fla is None:
        fla = f"flash-linear-attention {importlib.metadata.version('flash-linear-attention')}"
        is_sound, reason = verdict(fla, lambda: error_of(rule_of("fla"), device, dtype, widths))
        if is_sound:
            return Backend("fla", reason)
        against_fla = reason
    is_sound, reason = verdict("our kernel", lambda: error_of(rule_of("triton"), device, dtype, widths))
    return Backend("triton" if is_sound else "torch", f"{against_fla}; {reason}")


def _against_fla(device: torch.device) -> str | None:
    """Why fla is not even asked; None where it is."""
    try:
        importlib.import_module("fla.ops.gated_delta_rule")
        triton = importlib.metadata.version("triton")
    except ImportError as error:
        return f"flash-linear-attention is not to be had: {error}"
    first, mended = _WRONG_TRITON
    version = tuple(int(part) for part in re.findall(r"\d+", triton)[:3])
    if torch.cuda.get_device_capability(device)[0] == 9 and first <= version < mended:
        return f"fla's gradients are wrong on Hopper with Triton {triton}; mended in 3.7.1"
    return None


def error_of(rule: Rule, device: torch.device, dtype: torch.dtype, widths: tuple[int, int]) -> float:
    """Largest relative error of the output and of all gradients to the float64 recurrence's; nan if one is.

    Of two chunks and a part of another, of unit keys and of decays as a mixer starts with
    """
    shape = (1, 2 * CHUNK + 9, 2)
    given = random_tokens(shape, widths, device, dtype)
    exact = [x.detach().double().requires_grad_() for x in given]
    above = torch.randn(*shape, widths[1], generator=torch.Generator().manual_seed(1)).to(device, dtype)
    expected = with_gradients(output_of(recurrent_gated_delta), exact, above)
    return largest_error(with_gradients(output_of(rule), given, above), expected)


def random_tokens(
    shape: tuple[int, int, int], widths: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """q, k, v, log_decay and beta as a mixer makes them at its start, with gradients; shape: B, T and H."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*more: int) -> Tensor:
        return torch.randn(*shape, *more, generator=generator, device=device)

    q, k = (F.normalize(random(widths[0]), dim=-1) for _ in range(2))
    v, log_decay, beta = random(widths[1]), -8 * F.softplus(random() - 4), random().sigmoid()
    types = (dtype, dtype, dtype, torch.promote_types(dtype, torch.float32), dtype)
    return [x.to(kind).requires_grad_() for x, kind in zip((q, k, v, log_decay, beta), types, strict=True)]


def output_of(rule: Rule) -> Callable[..., Tensor]:
    """What a rule reads, without the state after it."""
    return lambda *given: rule(*given)[0]


def rule_of(name: str) -> Rule:
    """The rule of a backend, called as `gated_delta_rule` is, but for `chunk` and `by_triton`."""
    by_triton = partial(gated_delta_rule, by_triton=True)
    rules: dict[str, Rule] = {"torch": gated_delta_rule, "triton": by_triton, "fla": _fla_rule}
    return rules[name]


def _fla_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    rule = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    out, last = rule(q, k, v, g=log_decay, beta=beta, initial_state=state, output_final_state=True)
    return out, last
