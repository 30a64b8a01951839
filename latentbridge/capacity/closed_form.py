"""What a capacity limit drops where routers prefer nobody, in closed form."""

from __future__ import annotations

from scipy.stats import binom

from latentbridge.nn.seating import slots


def expected_drop_rate(num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> float:
    """Share of pairs dropped when every token draws K of E experts alike: E[max(0, X - C)] / E[X].

    X, an expert's load, is binomial (N, K/E). Trained routers drop more: their loads are uneven.
    """
    room, share = slots(num_tokens * top_k, num_experts, capacity_factor), top_k / num_experts
    mean = num_tokens * share
    # E[X; X > C] of N trials is mean times P(X' >= C) of N - 1
    above = mean * binom.sf(room - 1, num_tokens - 1, share) - room * binom.sf(room, num_tokens, share)
    return max(0.0, float(above) / mean)
