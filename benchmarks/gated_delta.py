"""How fast is the gated delta rule, forward and backward? python benchmarks/gated_delta.py   (one GPU, 90 s)

First what it computes is held against the recurrence in float64. Then each way of computing it is timed, at
each pair of widths and both as many rows and as one: the recurrence token by token at a shorter T, its time
scaled; chunks by torch's loop over them or Triton's kernel, the better one compiled, and recorded as a CUDA
graph; fla where it is sound. Medians and ranges; of bf16 on a GPU. Without one: float32, small sizes, nothing
compiled. The floor is q, k, v, out and all their gradients, once each, at --bandwidth. What fails or is wrong
is told and not timed, the rest is, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from reports import RESULTS, Report, card, milliseconds, peak_gib, spread
from torch import Tensor

from latentbridge.nn.backend import TOLERANCE, with_gradients
from latentbridge.nn.gated_delta import gated_delta_rule, recurrent_gated_delta
from latentbridge.nn.gated_delta_backend import (
    choose_backend,
    error_of,
    output_of,
    random_tokens,
    rule_of,
)
from latentbridge.nn.gated_deltanet import Rule
from latentbridge.train.recorded import Recorded, compiled


# what a compiler gave up would be timed as if it were compiled
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def main() -> None:
    """Check, then a table for each pair of widths and each shape."""
    options = parse()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    report = Report("gated_delta", options.results)
    report.say(
        f"# The gated delta rule, forward and backward\n\n{card()}, {options.dtype}, H={options.heads}"
    )
    for widths in zip(options.key_widths, options.value_widths, strict=True):
        # each of the few shapes is compiled, and a compiler gives up after eight of one function
        torch._dynamo.reset()
        with report.attempt(f"K={widths[0]} V={widths[1]}"):
            backend = choose_backend(device, dtype, widths)
            report.say(f"\nK={widths[0]} V={widths[1]}: best backend {backend.name} ({backend.reason})\n")
            found = check(ways(options, backend.name), widths, device, dtype, report)
            for batch in options.batches:
                measure(found, (batch, options.tokens // batch), widths, options, report)
    report.finish()


def parse() -> argparse.Namespace:
    """Sizes; by default those of the seed's mixer and of a lean one, 16,384 tokens in 16 rows and in one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 1] if gpu else [2], help="B")
    for name, size in (("heads", 12), ("tokens", 16_384 if gpu else 512)):
        parser.add_argument(f"--{name}", type=int, default=size, help=f"({size})")
    widths = [64, 256] if gpu else [16]
    for name in ("--key-widths", "--value-widths"):
        parser.add_argument(name, type=int, nargs="+", default=widths, help=f"of a head ({widths})")
    parser.add_argument("--chunks", type=int, nargs="+", default=[64], help="tokens of a chunk ([64])")
    parser.add_argument("--oracle-length", type=int, default=64, help="T of the recurrence (64)")
    parser.add_argument("--rounds", type=int, default=20 if gpu else 3)
    parser.add_argument("--bandwidth", type=float, default=4.3, help="TB/s of this card's copies (4.3: H200)")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16" if gpu else "float32")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder")
    options = parser.parse_args()
    if len(options.key_widths) != len(options.value_widths):
        parser.error(
            f"--key-widths {options.key_widths} and --value-widths {options.value_widths} are pairs; "
            "give as many of one as of the other"
        )
    return options


def ways(options: argparse.Namespace, backend: str) -> dict[str, Rule]:
    """Each way that is checked and timed."""
    found: dict[str, Rule] = {}
    for chunk in options.chunks:
        kinds = {"": False} | ({", kernel": True} if backend == "triton" else {})
        for kind, by_triton in kinds.items():
            rule = partial(gated_delta_rule, chunk=chunk, by_triton=by_triton)
            found[f"chunks of {chunk}{kind}"] = rule
            if options.device == "cuda" and by_triton == (backend == "triton"):
                quick = compiled(rule)
                found[f"chunks of {chunk}{kind}, compiled"] = quick
                found[f"chunks of {chunk}{kind}, compiled, in a graph"] = quick
    if backend == "fla":
        found["fla"] = rule_of("fla")
    return found


def check(
    rules: dict[str, Rule],
    widths: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    report: Report,
) -> dict[str, Rule]:
    """Relative errors to the float64 recurrence, refused where they are large; returns the rules."""
    for name, rule in rules.items():
        # what is compiled is held against what is not, at the shape that is timed
        if "compiled" in name:
            continue
        error = error_of(rule, device, dtype, widths)
        report.say(f"- {name}: error of output and worst gradient {error:.1e}")
        if not error < (TOLERANCE if dtype == torch.bfloat16 else 1e-4):
            raise ArithmeticError(f"{name} is wrong; nothing was timed")
    return rules


def measure(
    rules: dict[str, Rule],
    shape: tuple[int, int],
    widths: tuple[int, int],
    options: argparse.Namespace,
    report: Report,
) -> None:
    """One shape's table."""
    floor = floor_ms(shape, widths, options)
    report.say(f"\nB={shape[0]} T={shape[1]}, floor {floor:.3f} ms")
    report.table("way", "ms", "tokens/s", "x recurrence", "of the floor", "peak GiB")
    length = min(options.oracle_length, shape[1])
    times = milliseconds(make_work(recurrent_gated_delta, (shape[0], length), widths, options), 3, warm=1)
    slow = [ms * shape[1] / length for ms in times]
    row(f"recurrence, at T={length}, scaled", slow, slow, floor, shape, report, "")
    expected: list[Tensor] = []
    for name, rule in rules.items():
        with report.attempt(name):
            work = make_work(rule, shape, widths, options)
            expected = expected or work()
            for found, known in zip(work(), expected, strict=True):
                if not (found.float() - known.float()).norm() < TOLERANCE * known.float().norm():
                    raise ArithmeticError(f"it is wrong at {shape}; it was not timed")
            times = milliseconds(Recorded(work) if "graph" in name else work, options.rounds, warm=4)
            row(name, times, slow, floor, shape, report, peak_gib())


def row(
    name: str,
    times: list[float],
    slow: list[float],
    floor: float,
    shape: tuple[int, int],
    report: Report,
    peak: str,
) -> None:
    """One way's line."""
    ms = statistics.median(times)
    rate, gain = shape[0] * shape[1] / ms * 1000, statistics.median(slow) / ms
    report.row(name, spread(times), f"{rate:,.0f}", f"{gain:.1f}", f"{floor / ms:.3f}", peak)


def floor_ms(shape: tuple[int, int], widths: tuple[int, int], options: argparse.Namespace) -> float:
    """Forward reads q, k, v and writes out; backward reads them and its gradient, and writes three more."""
    keys, values = widths
    numbers = (2 * keys + 2 * values) + (2 * keys + 2 * values) + (2 * keys + values)
    size = 2 if options.dtype == "bfloat16" else 4
    return shape[0] * shape[1] * options.heads * numbers * size / options.bandwidth / 1e9


def make_work(
    rule: Rule, shape: tuple[int, int], widths: tuple[int, int], options: argparse.Namespace
) -> Callable[[], list[Tensor]]:
    """Forward and backward, from and to tensors that are there; returns the output and all gradients."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    given = random_tokens((*shape, options.heads), widths, device, dtype)
    above = torch.randn(given[2].shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    return lambda: with_gradients(output_of(rule), given, above)


if __name__ == "__main__":
    main()
