"""Ranks: joining them, and the few collective operations that training needs."""

from __future__ import annotations

import atexit
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from latentbridge.nn.exchange import Peers

T = TypeVar("T")

# an evaluation on one rank may keep the others waiting; the seed's 60 s killed such runs
TIMEOUT = timedelta(minutes=30)


def init() -> None:
    """Join the process group: NCCL on CUDA, gloo on CPU; without torchrun, a group of one. Safe to repeat."""
    if dist.is_initialized():
        return
    # trap 1: without these DeepSpeed asks for mpi4py
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(device())
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # torch 2.13 complains in every process about calls that DeepSpeed makes
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    # trap 2: DeepSpeed would compile a shared-memory operator for over a minute, or crash without a compiler;
    # told beforehand that no operator can be compiled, it does not even try them out, in every rank
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", timeout=TIMEOUT, verbose=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def finish() -> None:
    """Wait for all ranks, and leave the group when the process exits; for a run that ended in order."""
    barrier()
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number in the group; 0 before init."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes in the group; 1 before init."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's number on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def device() -> torch.device:
    """The one device that this rank computes on."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def expert_peers(size: int) -> Peers | None:
    """The `size` ranks that share experts, this one among them; all ranks together. None: nobody does."""
    if size == 1:
        return None
    from deepspeed.utils import groups

    # made by DeepSpeed, which looks them up by name; made before, they stay as they are
    groups._create_expert_and_data_parallel(size)
    name = f"ep_size_{size}"
    group, replicas = groups._get_expert_parallel_group(name), groups._get_expert_data_parallel_group(name)
    return Peers(group, replicas, size, rank() % size, name)


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def global_mean(total: Tensor, count: Tensor | int) -> Tensor:
    """Mean over all ranks' items, whose gradient is right once gradients are averaged over ranks.

    total: scalar, the sum over this rank's items;  count: how many items
    returns a scalar equal on every rank; nan where no rank has any item
    """
    if isinstance(count, int):
        # filled on the device: a copy to it would make the host wait for all that is queued
        count = torch.full((), count, device=total.device)
    sums = torch.stack([total.detach().double(), count.double()])
    if world_size() > 1:
        dist.all_reduce(sums)
    mean = (sums[0] / sums[1]).to(total.dtype)
    # averaging over ranks divides by their number, hence the factor
    local = total * (world_size() / sums[1]).to(total.dtype)
    return local + (mean - local).detach()


def global_sum(values: Tensor) -> Tensor:
    """Sum over ranks, without gradient; the same shape on each, and equal on all."""
    total = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with gradient; every rank must bring the same shape.

    rows: (B, ...);  returns (ranks * B, ...)
    """
    return rows if world_size() == 1 else _GatherRows.apply(rows)  # type: ignore[no-untyped-call]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        everyone = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(everyone, rows.contiguous())
        return torch.cat(everyone)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # every rank's loss may have used these rows; their shares add up
        (gradient,) = gradients
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def shard(items: Sequence[T]) -> Sequence[T]:
    """This rank's contiguous share; shares differ by at most one item and keep the order."""
    start = len(items) * rank() // world_size()
    return items[start : len(items) * (rank() + 1) // world_size()]


def deal(batches: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """This rank's share of batches, and whether it is its own; every rank is dealt equally many.

    ZeRO-3, and those that share experts, need every rank to call a model as often: one without a batch is
    dealt the first of all, and leaves out what comes of it.
    """
    own = shard(batches)
    for number in range(-(-len(batches) // world_size())):
        is_own = number < len(own)
        yield (own[number] if is_own else batches[0]), is_own


def gather_in_order(items: list[T]) -> list[T]:
    """All ranks' items in rank order, on every rank: the inverse of `shard`."""
    if world_size() == 1:
        return list(items)
    shares: list[Any] = [None] * world_size()
    dist.all_gather_object(shares, items)
    return [item for share in shares for item in share]


def from_rank_0(value: T) -> T:
    """What rank 0 passed, on every rank: how all ranks take one decision."""
    return gather_in_order([value])[0]
