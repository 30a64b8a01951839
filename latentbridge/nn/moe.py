"""The mixture-of-experts layer: a router, its experts and a way to bring tokens to them."""

from __future__ import annotations

from torch import Tensor, nn

from latentbridge.nn.dispatch import dropless, loop, padded
from latentbridge.nn.experts import Experts
from latentbridge.nn.routers import Router, Routing

DISPATCHES = ("dropless", "padded", "loop")


class MoE(nn.Module):
    """Each token passes through the experts its router gives it.

    dispatch: how training computes it: dropless, padded (capacity_factor and priority as in
    `dispatch.padded`) or loop. Evaluation drops nothing, whatever training does
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        dispatch: str = "dropless",
        capacity_factor: float = 1.25,
        priority: str = "choice",
    ) -> None:
        super().__init__()
        if dispatch not in DISPATCHES:
            raise ValueError(f"dispatch is {dispatch!r}; it must be one of {', '.join(DISPATCHES)}")
        if router.num_experts != experts.num_experts:
            raise ValueError(f"the router has {router.num_experts} experts, the stack {experts.num_experts}")
        if experts.peers is not None and dispatch == "loop":
            raise ValueError("dispatch is loop, which knows the experts of its own rank alone; use dropless")
        self.router, self.experts = router, experts
        self.dispatch, self.capacity_factor, self.priority = dispatch, capacity_factor, priority

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> tuple[Tensor, Routing, Tensor]:
        """x: (B, T, D);  token_ids: (B, T), needed by the hash router alone.

        returns (B, T, D) without the residual, the routing of the B·T tokens, and the pairs dropped
        """
        rows = x.flatten(0, 1)  # (N, D)
        routing = self.router(rows, None if token_ids is None else token_ids.flatten())
        dropped = routing.tokens.new_zeros(())
        if self.training and self.dispatch == "padded":
            y, dropped = padded(rows, routing, self.experts, self.capacity_factor, self.priority)
        elif self.dispatch == "loop":
            y = loop(rows, routing, self.experts)
        else:
            y = dropless(rows, routing, self.experts)
        return y.view_as(x), routing, dropped
