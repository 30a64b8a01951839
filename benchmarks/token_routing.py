"""What does routing save? python benchmarks/token_routing.py [PART ...]   (one GPU, 2 min; --small: a CPU)

`convolution`: a mixer's short convolutions, by torch's compiler and by our kernel. `mixer`: one mixer, of
all tokens: gated delta, softmax attention, both for every token, and routed with half of the tokens each at
random places, read by blocks and by attention of all places. Compiled, as training is: some minutes more.
Forward, and forward and backward; first routed is held against both in float32.
`whole`: a prefill of whole models, then tokens one by one, and the bytes they keep. `train`: the published
baseline in the package's own loop, routed, and a hybrid of twelve layers, recorded (--arms: some). Seconds
hold what is compiled: all of it for the first arm, where the folders that TORCHINDUCTOR_CACHE_DIR and
TRITON_CACHE_DIR name are new. Each line is in benchmarks/results at once; what fails is told, the rest is
measured, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import copy, deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from reports import RESULTS, Report, card, milliseconds, peak_gib, spread
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentbridge.config import Origin, Tree, build
from latentbridge.job import Run
from latentbridge.launch.spec import read_base
from latentbridge.layer_routing.config import HYBRIDS, LayerRoutingConfig
from latentbridge.layer_routing.model import Kernels, build_model
from latentbridge.layer_routing.train import LayerRoutingLm
from latentbridge.metric import Metric
from latentbridge.nn.backend import TOLERANCE, with_gradients
from latentbridge.nn.decoder import CausalAttention, Rotations
from latentbridge.nn.gated_delta import gated_delta_rule
from latentbridge.nn.gated_delta_backend import choose_backend, rule_of
from latentbridge.nn.gated_deltanet import GatedDeltaNet
from latentbridge.nn.layer_routing import Route, RoutedMixer
from latentbridge.nn.rope import rotations
from latentbridge.nn.short_convolution import convolve
from latentbridge.nn.short_convolution_backend import choose_convolution, convolution_of
from latentbridge.nn.sorted_attention import Reader, plain
from latentbridge.nn.sorted_attention_backend import LONG, choose_reader, reader_of
from latentbridge.nn.takers import find_takers
from latentbridge.rundir import RunDir, read_jsonl
from latentbridge.train.loop import begin, fit
from latentbridge.train.recorded import compiled

ROOT = Path(__file__).parents[1]
# tokens a second on one GPU as published: 16 windows of 1,024
SEED = 46_900
# tokens that the float32 reference reads at once
PART = 16_384
PARTS = ("convolution", "mixer", "whole", "train")
PATTERNS = {
    "gdn": ["gdn"] * 4,
    "softmax": ["softmax"] * 4,
    "baseline": ["gdn", "gdn", "gdn", "softmax"],
    "routed": ["gdn", "routed", "routed", "softmax"],
}
# of `train`: what reads, and what is set
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("baseline", {}),
    "routed_sparse": ("routed", {}),
    "routed_dense": ("routed", {"routing.compute": "dense"}),
    "softmax_17": ("softmax_17", {"train.batch_size": 4, "train.micro_batch_size": 4}),
}


# what a compiler gave up would be timed as if it were compiled
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def main() -> None:
    """Each part that is asked for."""
    options = parse()
    report = Report("token_routing_speed", options.results)
    gpu = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if gpu else "cpu"), torch.bfloat16 if gpu else torch.float32
    backend = choose_backend(device, dtype, (options.gdn_width,) * 2)
    reader = choose_reader(device, dtype, options.dim // options.heads, max(LONG, *options.lengths))
    report.say(f"# What routing costs and saves\n\n{card()}, {dtype}; gated delta: {backend.name}")
    convolution = choose_convolution(device, dtype)
    report.say(f"({backend.reason}); short convolutions: {convolution.name} ({convolution.reason});")
    report.say(f"routed softmax: {reader.name} ({reader.reason}),")
    report.say(f"in a run of texts from {LONG:,} tokens on, before that plain;")
    report.say(f"D={options.dim} H={options.heads} K=V={options.gdn_width}")
    kernels = Kernels(rule_of(backend.name), convolution_of(convolution.name), reader_of(reader.name))
    works = convolutions, mixers, wholes, trained
    parts: dict[str, Callable[..., None]] = dict(zip(PARTS, works, strict=True))
    for part in options.parts or parts:
        with report.attempt(part):
            parts[part](options, report, device, dtype, kernels)
    report.finish()


def parse() -> argparse.Namespace:
    """Sizes; by default those of the published model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--small", action="store_true", help="every part, in seconds of one CPU core")
    parser.add_argument("--gdn-width", type=int, help="K and V of gated delta's heads (256; small: 16)")
    parser.add_argument("--lengths", type=int, nargs="+", help="(1024 4096 16384 32768; small: 64 128)")
    parser.add_argument("--share", type=float, default=0.5, help="of tokens that take softmax (0.5)")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="of train (all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    small = options.small
    options.dim, options.heads, options.rounds = (48, 3, 2) if small else (768, 12, 10)
    options.gdn_width = options.gdn_width or (16 if small else 256)
    options.lengths = options.lengths or ([64, 128] if small else [1024, 4096, 16_384, 32_768])
    # in fewer and longer rows
    options.tokens = max(options.lengths)
    return options


def convolutions(
    options: argparse.Namespace, report: Report, device: torch.device, dtype: torch.dtype, kernels: Kernels
) -> None:
    """Those of query, key and value of a mixer together; the floor is the card's bandwidth."""
    channels, length = 3 * options.heads * options.gdn_width, min(options.lengths)
    shape = options.tokens // length, length, channels
    sizes = shape, (channels, 4)
    given = [torch.randn(*size, device=device, dtype=dtype).requires_grad_() for size in sizes]
    above = torch.randn(*shape, device=device, dtype=dtype)
    report.table("convolution", "forward ms", "forward and backward ms", "GB/s of 5 passes over rows")
    works = {"torch, compiled": compiled(convolve)}
    if kernels.convolve is not convolve:
        works["our kernel"] = kernels.convolve
    for name, way in works.items():
        with report.attempt(name):
            forward = milliseconds(partial(way, *given), options.rounds)
            both = milliseconds(partial(with_gradients, way, given, above), options.rounds)
            moved = 5 * above.numel() * above.element_size() / statistics.median(both) / 1e6
            report.row(name, spread(forward), spread(both), f"{moved:,.0f}")


def mixers(
    options: argparse.Namespace, report: Report, device: torch.device, dtype: torch.dtype, kernels: Kernels
) -> None:
    """One mixer at each length, as many tokens in all."""
    torch.manual_seed(0)
    width = options.gdn_width
    gdn = GatedDeltaNet(
        options.dim, options.heads, width, width, rule=kernels.rule, convolve=kernels.convolve
    )
    softmax = CausalAttention(options.dim, options.heads, False, 0.0)
    mixer = RoutedMixer(gdn, softmax).to(device, dtype)
    report.table(
        "length", "way", "forward ms", "forward and backward ms", "peak GiB", "of both", "of softmax"
    )
    for length in options.lengths:
        # each length is compiled, and a compiler gives up after eight of one function
        torch._dynamo.reset()
        with report.attempt(f"{length:,}", "all"):
            measure(mixer, length, options, report, kernels)


def measure(
    mixer: RoutedMixer, length: int, options: argparse.Namespace, report: Report, kernels: Kernels
) -> None:
    """Each way at one length."""
    weight = next(mixer.parameters())
    x = torch.randn(options.tokens // length, length, options.dim, device=weight.device, dtype=weight.dtype)
    takes = torch.rand(x.shape[:2], device=x.device) < options.share
    gates = torch.stack([~takes, takes], dim=-1).float()
    works = ways(mixer, x.requires_grad_(), gates, kernels.reader)
    above = torch.randn_like(x)
    exact = exactly(mixer, x, gates, above)
    of_both = errors(works["both"], exact, x, above)
    hold(of_both, TOLERANCE)
    medians: dict[str, float] = {}
    for name, work in works.items():
        with report.attempt(f"{length:,}", name):
            if name.startswith("routed"):
                hold(errors(work, exact, x, above), 1.5 * max(of_both) + 1e-4)
            forward = milliseconds(work, options.rounds)
            both = milliseconds(partial(differentiate, work, x, above, mixer), options.rounds)
            medians[name] = statistics.median(both)
            cells = [
                f"{medians[name] / medians[other]:.2f}" if other in medians else ""
                for other in ("both", "softmax")
            ]
            report.row(f"{length:,}", name, spread(forward), spread(both), peak_gib(), *cells)


def ways(mixer: RoutedMixer, x: Tensor, gates: Tensor, reader: Reader) -> dict[str, Callable[[], Tensor]]:
    """What is compared; reader: one that is sound here."""
    softmax, turns = mixer.softmax, turns_of(mixer, x)

    def routed(reader: Reader) -> Tensor:
        # of the same weights
        attention = copy(softmax)
        attention.reader = reader  # type: ignore[assignment]
        # finding takers is part of the work
        route = Route(gates, find_takers(gates[:, :, None])[0])
        out: Tensor = RoutedMixer(mixer.gdn, attention)(x, turns, route)
        return out

    found = {
        "both": lambda: mixer(x, turns, Route(gates, None)),
        "softmax": lambda: softmax(x, turns),
        "gdn": lambda: mixer.gdn(x, turns),
        "routed, plain": lambda: routed(plain),
    }
    if reader is not plain:
        found["routed, by blocks"] = lambda: routed(reader)
    return {name: compiled(work) for name, work in found.items()}


def turns_of(mixer: RoutedMixer, x: Tensor) -> Rotations:
    """Rotary positions of x."""
    assert isinstance(mixer.softmax, CausalAttention)
    return rotations(x.shape[1], x.shape[2] // mixer.softmax.heads, x.device)


def differentiate(work: Callable[[], Tensor], x: Tensor, above: Tensor, mixer: nn.Module) -> object:
    """Forward and backward, weights' gradients among it."""
    return torch.autograd.grad(work(), [x, *mixer.parameters()], above, allow_unused=True)


class InParts(nn.Module):
    """A gated-delta mixer that reads a text part by part: in float32 a token's graph takes a megabyte."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor, turns: Rotations | None) -> Tensor:
        """x: (B, T, D), returns the same shape; the graph of one part is kept at a time."""
        found, state = [], None
        for part in x.split(PART, dim=1):
            read, state = checkpoint(self.whole.prefill, part, state, use_reentrant=False)
            found.append(read)
        return torch.cat(found, dim=1)


def exactly(mixer: RoutedMixer, x: Tensor, gates: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """What both mixers come to in float32, not compiled."""
    wide, given = deepcopy(mixer).float(), x.detach().float().requires_grad_()
    wide.gdn.rule = gated_delta_rule  # type: ignore[assignment]
    wide.gdn.convolution.convolve = convolve  # type: ignore[union-attr]
    wide.gdn = InParts(wide.gdn)
    return with_gradient(lambda: wide(given, turns_of(mixer, x), Route(gates, None)), given, above.float())


def errors(
    work: Callable[[], Tensor], exact: tuple[Tensor, Tensor], x: Tensor, above: Tensor
) -> tuple[float, ...]:
    """Relative ones, of the output and of the gradient to x."""
    pairs = zip(with_gradient(work, x, above), exact, strict=True)
    return tuple(float((one.float() - other).norm() / other.norm()) for one, other in pairs)


def hold(found: tuple[float, ...], allowed: float) -> None:
    """Refuse to time what is wrong: further from both mixers in float32 than both are in this type."""
    # nan is wrong too
    if not all(error < allowed for error in found):
        told = " and ".join(f"{error:.1e}" for error in found)
        raise ArithmeticError(f"it is off by {told}, allowed is {allowed:.1e}; it was not timed")


def with_gradient(work: Callable[[], Tensor], x: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient to x."""
    out = work()
    return out.detach(), torch.autograd.grad(out, x, above)[0]


def config(options: argparse.Namespace, pattern: str, **changes: Any) -> LayerRoutingConfig:
    """Of the published arms; small: of the demo's."""
    here = Origin("benchmark", 0)
    base = "layer_routing/demo" if options.small else "layer_routing/base"
    settings = {"mixers": PATTERNS.get(pattern, pattern), **changes}
    if pattern in HYBRIDS:
        base = base.replace("base", "hybrids")
        settings["model.layers"] = 12
    if pattern == "softmax":
        # there is no table to be so wide
        settings["gdn"] = {"key_width": 64, "value_width": 64}
    return build(LayerRoutingConfig, read_base(base, ROOT, here).override(Tree(settings, {(): here})))


@torch.no_grad()
def wholes(
    options: argparse.Namespace, report: Report, device: torch.device, dtype: torch.dtype, kernels: Kernels
) -> None:
    """Prefill and decode of whole models, to last states, one text at a time."""
    report.table("length", "model", "prefill ms", "prefill tokens/s", "ms a token after", "MiB kept")
    most = max(options.lengths) + 64
    for pattern in PATTERNS:
        settings = config(options, pattern, **{"text.context": most})
        decoder = build_model(settings, 256, kernels).to(device, dtype).eval().decoder
        for length in options.lengths:
            with report.attempt(f"{length:,}", pattern):
                ids = torch.randint(256, (1, length), device=device)
                times = milliseconds(partial(decoder.go_on, ids), 3, warm=2)
                _, memory = decoder.go_on(ids)
                one = milliseconds(partial(decoder.go_on, ids[:, :1], memory), 20)
                rate = length / statistics.median(times) * 1000
                kept = f"{memory.num_bytes() / 2**20:.2f}"
                report.row(f"{length:,}", pattern, spread(times), f"{rate:,.0f}", spread(one), kept)
        del decoder


class Unevaluated(LayerRoutingLm):
    """Trains only."""

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        return {self.config.early_stop.metric: Metric(value=0.0, n=1)}


def trained(
    options: argparse.Namespace, report: Report, device: torch.device, dtype: torch.dtype, kernels: Kernels
) -> None:
    """Updates of the published size in the package's own loop, of which the first compile."""
    report.table("arm", "tokens/s", "lowest to highest", "x seed", "mfu", "peak GiB", "loss", "s in all")
    steps = {
        "train.recorded": True,
        "train.steps": 6 if options.small else 60,
        "train.log_every": 2 if options.small else 5,
    }
    steps |= {"train.eval_every": 1000, "train.checkpoint_every": 1000}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.arms:
            pattern, changes = ARMS[name]
            torch._dynamo.reset()
            with report.attempt(name):
                started = time.perf_counter()
                changed = config(options, pattern, **{"train.precision": "bf16"}, **steps, **changes)
                records = train_arm(changed, Path(folder) / "launch" / name)
                # the first records hold compilation
                rates = sorted(record["tokens_per_s"] for record in records[len(records) // 3 :])
                rate, last = statistics.median(rates), records[-1]
                seed = "" if options.small or pattern in HYBRIDS else f"{rate / SEED:.2f}"
                told = [f"{last[key]:.3f}" if key in last else "" for key in ("mfu", "peak_gib", "loss")]
                told += [f"{time.perf_counter() - started:.0f}"]
                report.row(name, f"{rate:,.0f}", f"{rates[0]:,.0f} to {rates[-1]:,.0f}", seed, *told)


def train_arm(changed: LayerRoutingConfig, folder: Path) -> list[dict[str, Any]]:
    """Its records."""
    folder.mkdir(parents=True)
    run = Run(RunDir(folder))
    begin(changed, run)
    fit(Unevaluated(changed, run), changed, run)
    return list(read_jsonl(run.folder.train_log))


if __name__ == "__main__":
    main()
