"""Which code computes short convolutions: our kernel where it stands the test, else torch."""

from __future__ import annotations

import torch

from latentbridge.nn.backend import Backend, against_kernels, largest_error, verdict, with_gradients
from latentbridge.nn.short_convolution import Convolve, convolve, convolve_by_triton


def choose_convolution(device: torch.device, dtype: torch.dtype) -> Backend:
    """What a run on this device, with weights of this type, should use; asked once."""
    against = against_kernels(device, dtype)
    if against is not None:
        return Backend("torch", against)
    is_sound, reason = verdict("our kernel", lambda: error_of(convolve_by_triton, device, dtype))
    return Backend("triton" if is_sound else "torch", reason)


def convolution_of(name: str) -> Convolve:
    """The convolution of a backend."""
    ways: dict[str, Convolve] = {"triton": convolve_by_triton, "torch": convolve}
    return ways[name]


def error_of(way: Convolve, device: torch.device, dtype: torch.dtype) -> float:
    """Largest relative error, to float64, of the output and of both gradients; nan if one is.

    Of texts and channels that are no whole number of a kernel's blocks
    """
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 1033, 1029), (1029, 4)
    given = [torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in given]
    above = torch.randn(*shapes[0], generator=generator).to(device, dtype)
    return largest_error(with_gradients(way, given, above), with_gradients(convolve, exact, above))
