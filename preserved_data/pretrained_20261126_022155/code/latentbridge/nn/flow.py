"""Rectified flow (Liu et al. 2022): noise at time 0 moves on a straight line to data at time 1."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


def integrate(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    """Follow the velocity from noise to data in Euler steps of equal length, with gradient through all.

    velocity: takes x (B, ...) and time (B,), gives (B, ...);  noise: (B, ...)
    """
    x = noise
    for step in range(steps):
        x = x + velocity(x, noise.new_full((len(noise),), step / steps)) / steps
    return x


def flow_error_per_row(velocity: Velocity, noise: Tensor, data: Tensor, mask: Tensor, time: Tensor) -> Tensor:
    """Mean squared error of the velocity at one point of each row's line, over its real positions.

    noise, data: (B, Q, D);  mask: (B, Q) bool, True = data is given there;  time: (B,) in 0..1
    returns (B,) float32; 0 for a row without data
    """
    at = time[:, None, None].to(data.dtype)
    found = velocity((1 - at) * noise + at * data, time)
    error = (found.float() - (data - noise).float()).square().mean(dim=-1)  # (B, Q)
    return (error * mask).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)
