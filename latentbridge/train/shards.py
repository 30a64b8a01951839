"""Parameters that no rank holds whole, because experts are shared by ranks: averaged, measured and saved.

A rank's part meets the tokens of all its peers, whose exchange brings their gradients here; so it is summed
over the ranks that hold the same part, and divided by the number of all ranks, like every other gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentbridge.nn.exchange import Peers, peers_of
from latentbridge.train import distributed


def peers_in(module: nn.Module) -> Peers | None:
    """The ranks that share the experts of a model; None: every rank holds all of it."""
    return next((peers for parameter in module.parameters() if (peers := peers_of(parameter))), None)


def start_alike(module: nn.Module) -> None:
    """Give every rank what the first one of those that hold the same has."""
    if distributed.world_size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            peers = peers_of(tensor)
            first, group = (0, None) if peers is None else (peers.rank, peers.replicas)
            dist.broadcast(tensor.detach(), src=first, group=group)


def average_over_ranks(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Make every gradient the mean of what all ranks' losses have to say of its parameter."""
    if distributed.world_size() == 1:
        return
    whole, parts, peers = _split(parameters, gradients)
    _average(whole, None)
    _average(parts, None if peers is None else peers.replicas)


def _average(gradients: list[Tensor], group: dist.ProcessGroup | None) -> None:
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=group)
    flat /= distributed.world_size()
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def total_norm(
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor],
    norm_of: Callable[[list[Tensor]], Tensor] = torch.nn.utils.get_total_norm,
) -> Tensor:
    """Of the averaged gradients of the whole model, each parameter once; equal on all ranks.

    norm_of: of those that are here
    """
    whole, parts, peers = _split(parameters, gradients)
    norm = norm_of(whole)
    if peers is None:
        return norm
    squares = norm_of(parts).square()
    dist.all_reduce(squares, group=peers.group)
    return (norm.square() + squares).sqrt()


def _split(
    parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], Peers | None]:
    """Gradients of what this rank holds whole, and of what it holds a part of; and who holds the others."""
    whole: list[Tensor] = []
    parts: list[Tensor] = []
    found: Peers | None = None
    for parameter, gradient in zip(parameters, gradients, strict=True):
        peers = peers_of(parameter)
        (whole if peers is None else parts).append(gradient)
        found = found or peers
    return whole, parts, found


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each rank may hold a part; all ranks together, without gradient."""
    peers = peers_of(tensor)
    if peers is None:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(peers.size)]
    dist.all_gather(parts, tensor.detach().contiguous(), group=peers.group)
    return torch.cat(parts)


def save_parts(module: nn.Module, folder: Path) -> None:
    """Write what rank 0 does not hold, one file for each of its peers and for itself."""
    peers = peers_in(module)
    if peers is not None and distributed.rank() < peers.size:
        torch.save({name: tensor.detach().cpu() for name, tensor in _parts(module)}, _file(folder, peers))


@torch.no_grad()
def load_parts(module: nn.Module, folder: Path) -> None:
    """Read back what `save_parts` wrote of this rank's experts."""
    peers = peers_in(module)
    if peers is not None:
        saved = torch.load(_file(folder, peers), map_location="cpu", weights_only=True)
        for name, tensor in _parts(module):
            tensor.copy_(saved[name])


def _parts(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in module.named_parameters() if peers_of(tensor) is not None]


def _file(folder: Path, peers: Peers) -> Path:
    return folder / f"experts-{peers.rank}-of-{peers.size}.pt"
