"""What does a capacity limit drop, where load is even and where it is not? python benchmarks/capacity.py

Any machine, 15 s of one CPU core. 32,768 tokens, E experts, K each, capacity factor c. Even: random logits,
measured beside the closed form: so much is arithmetic. Uneven: the same with a preference of deviation 0.5
for some experts, as trained routers have. Nothing is computed but who is seated.
"""

from __future__ import annotations

import argparse
from itertools import product

import torch

from latentbridge.lm.capacity import expected_drop_rate, slots
from latentbridge.nn.routers import Routing
from latentbridge.nn.seating import seat_in_slots

TOKENS = 32_768
FACTORS = (0.9, 1.0, 1.05, 1.1, 1.15, 1.25, 1.5)


def routed(logits: torch.Tensor, top_k: int) -> Routing:
    """K best of (N, E) logits."""
    probs = logits.softmax(dim=-1)
    kept = probs.topk(top_k, dim=-1)
    tokens = torch.arange(len(logits)).repeat(top_k)
    pairs = kept.indices.T.flatten(), kept.values.T.flatten()
    return Routing(tokens, *pairs, logits, probs, len(logits), logits.shape[1], top_k)


def drop_rate(routing: Routing, factor: float) -> float:
    """Share of pairs without a slot."""
    room = slots(routing.num_tokens, routing.num_experts, routing.top_k or 1, factor)
    kept = seat_in_slots(routing, room, "choice").kept
    assert kept is not None
    return 1 - float(kept.float().mean())


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.manual_seed(17)
    print("| E, K | " + " | ".join(f"c={factor}" for factor in FACTORS) + " |")
    print("| --- " * (len(FACTORS) + 1) + "|")
    for num_experts, top_k in product((64, 128, 256), (1, 2, 4)):
        logits = torch.randn(TOKENS, num_experts)
        even, uneven = routed(logits, top_k), routed(logits + 0.5 * torch.randn(num_experts), top_k)
        cells = [
            f"{drop_rate(even, factor):.4f} / {expected_drop_rate(TOKENS, num_experts, top_k, factor):.4f}"
            f" / {drop_rate(uneven, factor):.2f}"
            for factor in FACTORS
        ]
        print(f"| {num_experts}, {top_k} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
