"""How fast is the mixture layer, beside the seed's way? python benchmarks/moe_layer.py

One layer, forward and backward, in turns with a small rebuild of the seed's layer (a Python loop over experts
that indexes the stacked weights, capacity 1.25, one `.item()` an expert). On a CPU one thread and process
time, so that other processes on the machine count little: about 2 minutes. On a GPU wall time between two
synchronisations, and how often a step waits for the device: --device cuda --dtype bf16 [--compile].
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentbridge.nn.experts import Experts
from latentbridge.nn.moe import MoE
from latentbridge.nn.routers import STRATEGIES, Router

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Step = Callable[[], None]


class SeedLayer(nn.Module):
    """softk and top1 as the seed computes them, from its description: the reference to beat."""

    def __init__(self, dim: int, num_experts: int, top_k: int, inner: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(dim, num_experts)
        self.w1 = nn.Parameter(torch.empty(num_experts, dim, inner).uniform_(-(dim**-0.5), dim**-0.5))
        self.b1 = nn.Parameter(torch.zeros(num_experts, inner))
        self.w2 = nn.Parameter(torch.empty(num_experts, inner, dim).uniform_(-(inner**-0.5), inner**-0.5))
        self.b2 = nn.Parameter(torch.zeros(num_experts, dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, D);  returns (N, D)."""
        num_tokens, num_experts = len(x), len(self.w1)
        capacity = max(1, math.ceil(1.25 * num_tokens * self.top_k / num_experts))
        kept, chosen = self.router(x).topk(self.top_k, dim=-1)
        gates = torch.ones_like(kept) if self.top_k == 1 else kept.softmax(dim=-1)
        experts, order = chosen.flatten().sort(stable=True)
        counts = torch.bincount(experts, minlength=num_experts)
        rank = torch.arange(len(experts), device=x.device) - (counts.cumsum(0) - counts)[experts]
        fits = rank < capacity
        pairs, seats = order[fits], (experts * capacity + rank)[fits]
        slots = x.new_zeros(num_experts * capacity, x.shape[1]).index_copy(0, seats, x[pairs // self.top_k])
        out = self._experts(slots.view(num_experts, capacity, -1), counts.clamp(max=capacity))
        weighted = out.flatten(0, 1)[seats] * gates.flatten()[pairs, None]
        return torch.zeros_like(x).index_add(0, pairs // self.top_k, weighted.to(x.dtype))

    def _experts(self, slots: Tensor, counts: Tensor) -> Tensor:
        out = torch.zeros_like(slots)
        for expert in range(len(slots)):
            if count := int(counts[expert].item()):
                hidden = F.gelu(slots[expert, :count] @ self.w1[expert] + self.b1[expert])
                out[expert, :count] = hidden @ self.w2[expert] + self.b2[expert]
        return out


def main() -> None:
    """Measure every layer in turns and print a table."""
    options = parse()
    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(1)
    layers = make_layers(options)
    steps = {name: make_step(layer, options) for name, layer in layers.items()}
    waits = {name: count_waits(step, options.device) for name, step in steps.items()}
    seconds = measure(steps, options)
    print(f"{describe(options)}\n")
    print("| layer | tokens a second | of the best round | times the seed's | waits a step |")
    print("|---|---|---|---|---|")
    reference = {top_k: statistics.median(seconds[f"seed {kind}"]) for kind, top_k in references(options)}
    for name, taken in seconds.items():
        median, best = options.tokens / statistics.median(taken), options.tokens / min(taken)
        ratio = reference[1 if "top1" in name else options.top_k] / statistics.median(taken)
        print(f"| {name} | {median:,.0f} | {best:,.0f} | {ratio:.2f} | {waits[name]} |")


def parse() -> argparse.Namespace:
    """Sizes default to those the seed was measured at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, size in (("tokens", 2048), ("experts", 32), ("dim", 256), ("inner", 1024), ("top_k", 2)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="compile our layers")
    options = parser.parse_args()
    if options.top_k < 2:
        parser.error(f"--top-k is {options.top_k}; top1 is measured anyway, give 2 or more")
    return options


def references(options: argparse.Namespace) -> list[tuple[str, int]]:
    """The seed's routers that are measured, each with its experts a token."""
    return [("softk", options.top_k), ("top1", 1)]


def make_layers(options: argparse.Namespace) -> dict[str, nn.Module]:
    """The seed's two, each strategy without drops, then the other dispatches."""
    layers: dict[str, nn.Module] = {}
    for kind, top_k in references(options):
        layers[f"seed {kind}"] = SeedLayer(options.dim, options.experts, top_k, options.inner)
    cases = [(strategy, "dropless") for strategy in STRATEGIES]
    for strategy, dispatch in [*cases, ("softk", "padded"), ("top1", "padded"), ("softk", "loop")]:
        top_k = 1 if strategy == "top1" else options.top_k
        router = Router(strategy, options.dim, options.experts, top_k)
        moe = MoE(router, Experts(options.experts, options.dim, options.inner), dispatch)
        layers[f"{strategy} {dispatch}"] = moe
        if options.compile and dispatch != "loop":
            moe.compile()
    return {name: layer.to(options.device, DTYPES[options.dtype]) for name, layer in layers.items()}


def make_step(layer: nn.Module, options: argparse.Namespace) -> Step:
    """One forward and backward, from and to tensors that are there."""
    x = torch.randn(options.tokens, options.dim, device=options.device, dtype=DTYPES[options.dtype])
    gradient, token_ids = torch.randn_like(x), torch.randint(50_000, (1, options.tokens), device=x.device)
    x.requires_grad_()

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        y = layer(x) if isinstance(layer, SeedLayer) else layer(x[None], token_ids)[0][0]
        y.backward(gradient)

    return step


def count_waits(step: Step, device: str) -> int | str:
    """How often the host waits for the device in one step, after two to warm up."""
    step()
    step()
    if device == "cpu":
        return "-"
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def measure(steps: dict[str, Step], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each step in each round; every round begins with another one."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    repeats = 1 if options.device == "cpu" else 20
    for index in range(options.rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            clock = time.process_time if options.device == "cpu" else time.perf_counter
            began = clock()
            for _ in range(repeats):
                steps[name]()
            if options.device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append((clock() - began) / repeats)
    return seconds


def describe(options: argparse.Namespace) -> str:
    """What was measured, and on what."""
    where = f"one thread of {platform.processor() or platform.machine()}, seconds of process time"
    if options.device != "cpu":
        where = f"{torch.cuda.get_device_name()}, seconds of wall time"
    sizes = " ".join(
        f"{name} {getattr(options, name)}" for name in ("tokens", "experts", "dim", "inner", "top_k")
    )
    how = f"{options.dtype}{', ours compiled' if options.compile else ''}, {options.rounds} rounds in turns"
    return f"{sizes}; forward and backward, {how}; torch {torch.__version__}, {where}"


if __name__ == "__main__":
    main()
