"""Whether a kernel may be used: it is asked on the very card that a run has, against the plain definition.

A list of versions of what makes kernels knows only what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# relative error in 16 bits of outputs and gradients, of which a rounding is up to 1/256
TOLERANCE = 2e-2


class Backend(NamedTuple):
    """name: of one of several ways;  reason: for a person who reads it in a run's manifest."""

    name: str
    reason: str


def against_kernels(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no kernel is to be asked with weights of this type; None where one is."""
    if device.type != "cuda":
        return f"kernels run on CUDA, and this is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"kernels take 16-bit numbers, and these are {dtype}"
    return None


def verdict(kernel: str, error: Callable[[], float]) -> tuple[bool, str]:
    """Whether it may be used, and why: where it runs, and is not off by more than roundings."""
    try:
        found = error()
    # whatever a compiler of kernels raises
    except Exception as failure:
        return False, f"{kernel} does not run: {_first_line(failure)}"
    if not found < TOLERANCE:
        return False, f"{kernel} is wrong here, by {found:.1e}"
    return True, f"{kernel} is off by {found:.1e}"


def with_gradients(way: Callable[..., Tensor], given: Sequence[Tensor], above: Tensor) -> list[Tensor]:
    """The output, and the gradients to all that was given; above: what the output's is."""
    out = way(*given)
    return [out.detach(), *torch.autograd.grad(out, list(given), above.to(out.dtype))]


def largest_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Relative, of several tensors; nan if one is."""
    errors = [(a.double() - b).norm() / b.norm() for a, b in zip(found, exact, strict=True)]
    return float(torch.stack(errors).max())


def _first_line(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
