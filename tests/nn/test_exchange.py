"""Experts shared by ranks. Sizes: N = 10, 11, 12 tokens on 3 ranks, D=8, F=16, E=6, K=2."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentbridge.nn import dispatch, exchange
from latentbridge.nn.dispatch import dropless, padded
from latentbridge.nn.exchange import Peers
from latentbridge.nn.experts import Experts
from latentbridge.nn.moe import MoE
from latentbridge.nn.routers import STRATEGIES, Router, Routing
from latentbridge.nn.seating import seat_runs
from latentbridge.train import distributed


def slots(x: Tensor, routing: Routing, experts: Experts) -> Tensor:
    y, dropped = padded(x, routing, experts, capacity_factor=0.9)
    assert dropped > 0
    return y


def case(
    strategy: str, peers: Peers | None, num_tokens: int, train: bool = True
) -> tuple[Tensor, Router, Experts]:
    """The same layer on every rank, and other tokens."""
    torch.manual_seed(0)
    router = Router(strategy, dim=8, num_experts=6, top_k=1 if strategy == "top1" else 2).train(train)
    experts = Experts(6, 8, 16, peers=peers)
    torch.manual_seed(7 + distributed.rank())
    return torch.randn(num_tokens, 8, requires_grad=True), router, experts


def answers(
    way: Callable[..., Tensor], x: Tensor, router: Router, experts: Experts
) -> tuple[list[Tensor], list[Tensor]]:
    """Output with gradients of input and router, then gradients of the experts."""
    y = way(x, router(x, torch.arange(len(x))), experts)
    torch.manual_seed(3)
    near, stack = [x, *router.parameters()], list(experts.parameters())
    found = torch.autograd.grad((y * torch.randn_like(y)).sum(), [*near, *stack])
    return [y, *found[: len(near)]], list(found[len(near) :])


def compare(way: Callable[..., Tensor], strategy: str, num_tokens: int | None = None) -> None:
    distributed.init()
    peers = distributed.expert_peers(3)
    assert peers is not None
    num_tokens = num_tokens or 10 + distributed.rank()
    near, stack = answers(way, *case(strategy, peers, num_tokens))
    expected, whole = answers(way, *case(strategy, None, num_tokens))

    torch.testing.assert_close(near, expected)
    for ours, all_experts in zip(stack, whole, strict=True):
        # tokens of every rank meet these experts
        torch.testing.assert_close(ours, peers.own(distributed.global_sum(all_experts)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shared_experts_answer_and_learn_as_whole_ones_do(ranks, strategy: str):
    ranks(compare, dropless, strategy, world_size=3)


def test_slots_drop_the_same_pairs_wherever_the_experts_are(ranks):
    ranks(compare, slots, "softk", 12, world_size=3)


def test_an_expert_starts_the_same_whoever_holds_it(ranks):
    def parts() -> list[Any]:
        distributed.init()
        _, _, experts = case("softk", distributed.expert_peers(3), 10)
        return [parameter.tolist() for parameter in experts.parameters()]

    torch.manual_seed(0)
    Router("softk", dim=8, num_experts=6, top_k=2)
    whole = list(Experts(6, 8, 16).parameters())
    for rank, found in enumerate(ranks(parts, world_size=3)):
        assert found == [parameter[2 * rank : 2 * rank + 2].tolist() for parameter in whole]


def routed_to(experts: list[int]) -> Routing:
    ids = torch.tensor(experts, dtype=torch.int64)
    return Routing(torch.arange(len(ids)), ids, torch.ones(len(ids)), None, None, len(ids), 6, None)


def test_a_rank_without_tokens_serves_its_peers_and_one_that_nobody_needs_waits_for_them(ranks):
    """Rank 0 has no pair at all, rank 2's experts get none."""

    def gradients() -> tuple[int, list[bool]]:
        distributed.init()
        experts = Experts(6, 8, 16, peers=distributed.expert_peers(3))
        chosen = [[], [0, 3, 3], [1, 0]][distributed.rank()]
        x = torch.ones(len(chosen), 8, requires_grad=True)
        dropless(x, routed_to(chosen), experts).sum().backward()
        assert experts.up.grad is not None
        return len(x), [bool(experts.up.grad[expert].any()) for expert in range(2)]

    assert ranks(gradients, world_size=3) == [(0, [True, True]), (3, [False, True]), (2, [False, False])]


def test_experts_chosen_by_threshold_are_evaluated_where_they_are(ranks):
    """A token has 0 to E of them."""

    def found() -> tuple[list[int], bool]:
        distributed.init()
        answers = []
        for peers in (distributed.expert_peers(3), None):
            x, router, experts = case("expert_choice", peers, 10 + distributed.rank(), train=False)
            routing = router(x)
            answers.append(dropless(x, routing, experts))
        return sorted(set(torch.bincount(routing.tokens).tolist())), torch.allclose(*answers, atol=1e-6)

    for numbers, is_same in ranks(found, world_size=3):
        assert len(numbers) > 1 and is_same


def test_rows_travel_in_bf16_where_that_is_what_is_computed_in(ranks, monkeypatch):
    seen = []
    plain = exchange._all_to_all

    def watched(rows: Tensor, *where: Any) -> Tensor:
        seen.append(rows.dtype)
        return plain(rows, *where)

    monkeypatch.setattr(exchange, "_all_to_all", watched)

    def found() -> list[torch.dtype]:
        distributed.init()
        x, router, experts = case("softk", distributed.expert_peers(3), 10)
        x = x.detach().bfloat16().requires_grad_()
        dropless(x, router(x), experts.bfloat16()).float().sum().backward()
        return seen

    # the counts, rows there and back, gradients there and back
    for dtypes in ranks(found, world_size=3):
        assert dtypes[1:] == [torch.bfloat16] * 4 and not dtypes[0].is_floating_point


def test_the_host_waits_for_counts_only_when_all_else_is_on_its_way(ranks, monkeypatch):
    """So a GPU gathers rows in the meantime, and moves them while their seats are worked out."""
    seen: list[str] = []

    def noted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (seen.append(name), plain(*args))[1]

    plain = exchange._read_later
    monkeypatch.setattr(exchange, "_read_later", lambda values: noted("counts are read", plain(values)))
    monkeypatch.setattr(exchange, "_exchanged", noted("rows travel", exchange._exchanged))
    monkeypatch.setattr(dispatch, "seat_runs", noted("they are sorted", seat_runs))
    gather = noted("rows are gathered", dispatch._Seated.apply)
    monkeypatch.setattr(dispatch, "_Seated", SimpleNamespace(apply=gather))

    def found() -> list[str]:
        distributed.init()
        x, router, experts = case("softk", distributed.expert_peers(3), 10)
        dropless(x, router(x), experts)
        return seen

    order = ["rows are gathered", "counts are read", "rows travel", "they are sorted", "rows travel"]
    assert ranks(found, world_size=3) == [order] * 3


def test_runs_of_several_ranks_are_sorted_by_expert_and_keep_their_order():
    # experts 0, 1, 2; from the first rank 1, 0 and 2 rows, from the second 2, 3 and 0
    seating, experts = seat_runs(torch.tensor([[1, 0, 2], [2, 3, 0]]), 8)

    assert experts.tolist() == [0, 2, 2, 0, 0, 1, 1, 1]
    assert seating.seat_of_pair.tolist() == [0, 6, 7, 1, 2, 3, 4, 5]
    assert seating.pair_of_seat.tolist() == [0, 3, 4, 5, 6, 7, 1, 2]
    assert seating.ends.tolist() == [3, 6, 8]


def test_the_plain_loop_is_refused(ranks):
    def build() -> None:
        distributed.init()
        _, router, experts = case("softk", distributed.expert_peers(2), 10)
        with pytest.raises(ValueError, match="own rank alone; use dropless"):
            MoE(router, experts, "loop")

    ranks(build)
