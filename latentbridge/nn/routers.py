"""Which experts see a token, and with what weight: router networks and seven ways to choose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentbridge.nn.float_product import float_product
from latentbridge.nn.hashing import hashed_experts

NETWORKS = ("linear", "mlp", "mlp_hadamard")
STRATEGIES = ("top1", "topk", "topk_hard", "softk", "hash", "expert_choice", "bias_balanced")

# share of the old threshold kept at each update of expert choice: about the last 100 updates count
_THRESHOLD_DECAY = 0.99

# experts a token up to which they are found one after the other
_MAXIMA = 2


@dataclass
class Routing:
    """R pairs of token and expert with their weights, and the scores they come from.

    With `top_k` set, pair k·N + n is the k-th choice of token n; None: tokens have 0 to E experts.
    probs: softmax over ALL experts at temperature 1, so that a balance loss does not weaken as the
    temperature rises. logits (noise included) and probs are None for hash.
    """

    tokens: Tensor  # (R,) int64
    experts: Tensor  # (R,) int64
    gates: Tensor  # (R,) float32
    logits: Tensor | None  # (N, E) float32
    probs: Tensor | None  # (N, E) float32
    num_tokens: int
    num_experts: int
    top_k: int | None


class RouterNetwork(nn.Module):
    """Scores of E experts for each token, in float32 whatever the parameters and autocast say.

    kind: linear | mlp: D -> max(64, D // 2) -> E with a GELU | mlp_hadamard: W3(x * W2 gelu(W1 x))
    """

    def __init__(self, kind: str, dim: int, num_experts: int) -> None:
        super().__init__()
        _one_of("network", kind, NETWORKS)
        self.kind = kind
        inner = {"linear": [], "mlp": [max(64, dim // 2)], "mlp_hadamard": [dim, dim]}[kind]
        widths = [dim, *inner, num_experts]
        layers = [nn.Linear(*ends) for ends in pairwise(widths)]
        if kind == "linear":
            # tokens of unit scale get logits of unit scale
            nn.init.normal_(layers[0].weight, std=dim**-0.5)
            nn.init.zeros_(layers[0].bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, D);  returns (N, E) float32."""
        with torch.autocast(x.device.type, enabled=False):
            hidden = x
            for index, layer in enumerate(self.layers):
                if index == 1:
                    hidden = F.gelu(hidden)
                if index == 2:
                    hidden = x.float() * hidden
                assert isinstance(layer, nn.Linear)
                hidden = float_product(hidden, layer.weight) + layer.bias.float()
            return hidden


class Router(nn.Module):
    """Choose experts for tokens; weights are the network's, so that ZeRO-3 need not look into a `Routing`.

    strategy, with its gate:
      top1           the best expert, weighted by its probability among all (Switch, Fedus et al. 2021)
      topk           the K best, each weighted so: their gates sum to less than 1 (OLMoE, arXiv 2409.02060)
      topk_hard      the K best, 1/K each; backward as if the gate were the probability (straight through)
      softk          the K best, softmax over their K logits
      hash           K experts drawn from the token's id, 1/K each; nothing is learned
      expert_choice  each expert takes its ceil(K·N/E) best tokens, weighted by their probability
                     (Zhou et al. 2022). That looks at later tokens; so in eval mode an expert takes what
                     exceeds its running mean of the last score that made it
      bias_balanced  the K best by sigmoid score + bias, weighted by the score (arXiv 2408.15664)
    temperature_acts_on: "weights": gates come from logits / T, the choice never changes; "choice": in train
    mode the choice is sampled by Gumbel noise times T, gates stay at T = 1. Neither touches hash.
    noise: deviation of what is added to the logits in train mode
    """

    temperature: Tensor
    threshold: Tensor
    updates: Tensor
    bias: Tensor
    load: Tensor

    def __init__(
        self,
        strategy: str,
        dim: int,
        num_experts: int,
        top_k: int,
        *,
        network: str = "linear",
        temperature_acts_on: str = "weights",
        noise: float = 0.0,
        hash_seed: int = 0,
    ) -> None:
        super().__init__()
        _one_of("strategy", strategy, STRATEGIES)
        _one_of("temperature_acts_on", temperature_acts_on, ("weights", "choice"))
        _check_top_k(strategy, top_k, num_experts)
        self.strategy, self.num_experts, self.top_k = strategy, num_experts, top_k
        self.temperature_acts_on, self.noise, self.hash_seed = temperature_acts_on, noise, hash_seed
        self.network = None if strategy == "hash" else RouterNetwork(network, dim, num_experts)
        self.register_buffer("temperature", torch.tensor(1.0))
        if strategy == "expert_choice":
            # until the first update: the score of a router that prefers nobody
            self.register_buffer("threshold", torch.full((num_experts,), 1 / num_experts))
            self.register_buffer("updates", torch.tensor(0.0))
        if strategy == "bias_balanced":
            self.register_buffer("bias", torch.zeros(num_experts))
            # of the update that is being made, for whoever calls `update_bias` after it
            self.register_buffer("load", torch.zeros(num_experts))

    @property
    def is_causal(self) -> bool:
        """Whether a token's experts in train mode depend on nothing but that token."""
        return self.strategy != "expert_choice"

    def set_temperature(self, temperature: float) -> None:
        """Takes effect at the next forward, recorded graphs included."""
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.temperature.fill_(temperature)

    def forward(self, x: Tensor, token_ids: Tensor | None = None) -> Routing:
        """x: (N, D);  token_ids: (N,), needed by hash alone."""
        if self.network is None:
            if token_ids is None:
                raise ValueError("the hash router needs token_ids")
            chosen = hashed_experts(token_ids, self.num_experts, self.top_k, self.hash_seed)
            gates = torch.full(chosen.shape, 1 / self.top_k, dtype=torch.float32, device=x.device)
            return self._token_choice(chosen, gates, None, None)
        logits = self.network(x)  # (N, E)
        if self.training and self.noise:
            logits = logits + self.noise * torch.randn_like(logits)
        probs = logits.softmax(dim=-1)
        tempered = logits / self.temperature if self.temperature_acts_on == "weights" else logits
        if self.strategy == "expert_choice":
            return self._expert_choice(logits, probs, tempered.softmax(dim=-1))
        chosen = _best(self._scores(logits.detach()), self.top_k)  # (N, K)
        return self._token_choice(chosen, self._gates(tempered, chosen), logits, probs)

    @torch.no_grad()
    def update_bias(self, counts: Tensor, rate: float = 1e-3) -> None:
        """Raise the bias of experts below the mean load, lower that of the others; once a training update.

        counts: (E,) assignments of the whole batch: sum them over ranks first
        """
        self.bias += rate * (counts.mean() - counts).sign()
        self.bias -= self.bias.mean()

    def _scores(self, logits: Tensor) -> Tensor:
        """What the choice is made by, (N, E): logits, perhaps perturbed, perhaps biased."""
        if self.training and self.temperature_acts_on == "choice":
            logits = logits + self.temperature * _gumbel_like(logits)
        return logits.sigmoid() + self.bias if self.strategy == "bias_balanced" else logits

    def _gates(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """(N, K) weights of the chosen experts."""
        if self.strategy == "softk":
            return logits.gather(1, chosen).softmax(dim=-1)
        if self.strategy == "bias_balanced":
            return logits.gather(1, chosen).sigmoid()
        gates = logits.softmax(dim=-1).gather(1, chosen)
        if self.strategy in ("top1", "topk"):
            return gates
        return gates - gates.detach() + 1 / self.top_k

    def _token_choice(
        self, chosen: Tensor, gates: Tensor, logits: Tensor | None, probs: Tensor | None
    ) -> Routing:
        num_tokens, top_k = chosen.shape
        tokens = torch.arange(num_tokens, device=chosen.device).repeat(top_k)
        experts, gates = chosen.T.reshape(-1), gates.T.reshape(-1)
        return Routing(tokens, experts, gates, logits, probs, num_tokens, self.num_experts, top_k)

    def _expert_choice(self, logits: Tensor, probs: Tensor, weights: Tensor) -> Routing:
        """logits, probs, weights: (N, E); the choice is by probs, the gate by weights."""
        num_tokens = len(probs)
        if self.training:
            count = min(num_tokens, math.ceil(self.top_k * num_tokens / self.num_experts))
            best = probs.detach().topk(count, dim=0)  # (n, E), the best first
            self._learn_threshold(best.values[-1])
            tokens = best.indices
            if self.temperature_acts_on == "choice":
                tokens = self._scores(logits.detach().log_softmax(dim=-1)).topk(count, dim=0).indices
            gates = weights.gather(0, tokens).T.reshape(-1)
            tokens = tokens.T.reshape(-1)
            experts = torch.arange(self.num_experts, device=probs.device).repeat_interleave(count)
        else:
            experts, tokens = (probs > self.threshold).T.nonzero(as_tuple=True)
            gates = weights[tokens, experts]
        return Routing(tokens, experts, gates, logits, probs, num_tokens, self.num_experts, None)

    @torch.no_grad()
    def _learn_threshold(self, last: Tensor) -> None:
        """last: (E,) scores of the last token each expert took; a plain mean at first, then a running one."""
        self.updates += 1
        self.threshold.lerp_(last, (1 / self.updates).clamp(min=1 - _THRESHOLD_DECAY))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Move and cast as any module, but keep the buffers in float32: bf16 would swallow their steps."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self


def _best(scores: Tensor, count: int) -> Tensor:
    """Where the largest are, the best first; scores: (N, E), returns (N, count)."""
    # a maximum at a time: a compiler puts a few of those into one kernel with all that is around them
    if count > _MAXIMA:
        return scores.topk(count, dim=-1).indices
    every, found = torch.arange(scores.shape[1], device=scores.device), []
    for _ in range(count):
        found.append(scores.argmax(dim=-1))
        scores = scores.masked_fill(found[-1][:, None] == every, -math.inf)
    return torch.stack(found, dim=1)


def _gumbel_like(logits: Tensor) -> Tensor:
    return -torch.empty_like(logits).exponential_().log()


def _check_top_k(strategy: str, top_k: int, num_experts: int) -> None:
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k is {top_k}; it must lie in 1..{num_experts} (num_experts)")
    if strategy == "top1" and top_k != 1:
        raise ValueError(f"top_k is {top_k}; top1 sends a token to 1 expert")
    if strategy == "softk" and top_k == 1:
        raise ValueError("top_k is 1: the softmax over one logit is always 1 and teaches nothing; use top1")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
