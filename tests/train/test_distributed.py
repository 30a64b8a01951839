from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from latentbridge.train import distributed


def test_trap_1_one_process_without_torchrun_needs_no_mpi(ranks: Any) -> None:
    def join() -> tuple[int, int]:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]
        distributed.init()
        return distributed.rank(), distributed.world_size()

    assert ranks(join, world_size=1) == [(0, 1)]


def test_trap_2_the_shared_memory_operator_is_not_compiled(ranks: Any, capfd: Any) -> None:
    def join() -> bool:
        distributed.init()
        return hasattr(torch.ops.deepspeed, "inference_all_reduce_")

    assert ranks(join) == [False, False]
    # nor are the other operators tried out with the compiler, whose complaints look like ours
    assert capfd.readouterr().err == ""


def test_averaged_gradients_of_a_global_mean_weigh_every_token_equally(ranks: Any) -> None:
    def gradient() -> tuple[float, float]:
        distributed.init()
        # token losses weight * 1 on rank 0; weight * (2, 3, 6) on rank 1: the mean is 12 / 4 times the weight
        tokens = [torch.tensor([1.0]), torch.tensor([2.0, 3.0, 6.0])][distributed.rank()]
        weight = torch.tensor(5.0, requires_grad=True)
        mean = distributed.global_mean((weight * tokens).sum(), len(tokens))
        mean.backward()
        assert weight.grad is not None
        dist.all_reduce(weight.grad)
        return mean.item(), weight.grad.item() / 2

    assert ranks(gradient) == [(15.0, 3.0), (15.0, 3.0)]


def test_gathered_rows_send_every_ranks_gradient_home(ranks: Any) -> None:
    def gradient() -> tuple[list[list[float]], list[list[float]]]:
        distributed.init()
        rank = distributed.rank()
        rows = torch.full((1, 3), float(rank + 1), requires_grad=True)
        everyone = distributed.gather_rows(rows)
        # rank 0 counts row r with weight 1 + r, rank 1 with 10 (1 + r)
        (everyone * torch.tensor([[1.0], [2.0]]) * 10**rank).sum().backward()
        assert rows.grad is not None
        return everyone.tolist(), rows.grad.tolist()

    both = [[1.0] * 3, [2.0] * 3]
    assert ranks(gradient) == [(both, [[11.0] * 3]), (both, [[22.0] * 3])]


def test_shares_are_contiguous_and_gather_back_in_order(ranks: Any) -> None:
    def share_and_gather() -> tuple[list[str], list[str], str]:
        distributed.init()
        mine = list(distributed.shard(list("abcde")))
        return mine, distributed.gather_in_order(mine), distributed.from_rank_0(mine[0])

    assert ranks(share_and_gather) == [
        (["a", "b"], list("abcde"), "a"),
        (["c", "d", "e"], list("abcde"), "a"),
    ]


def test_an_empty_share_is_an_empty_list(ranks: Any) -> None:
    def share() -> list[int]:
        distributed.init()
        return list(distributed.shard([7]))

    assert ranks(share) == [[], [7]]
