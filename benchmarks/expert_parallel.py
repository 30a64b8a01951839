"""What does it cost, or save, that ranks share experts? python benchmarks/expert_parallel.py   (2 GPUs)

Updates of a mixture language model through DeepSpeed: on one rank, on several that hold all experts each,
and on several that share one set. Tokens a rank are the same everywhere, so perfect scaling is an efficiency
of 1. Every case is a torchrun of its own; they take turns. On GPUs bf16; without one fp32 on gloo, and a
small model unless told otherwise. The slowest rank ends an update, so other processes on the machine count.

Who shares waits in every layer for the rank whose experts are asked for most, and routers that have learnt
nothing favour a few. So the load tells how many pairs the busiest rank computes over the mean, in the first
update and while time is taken; the warm-up lets routers learn. expert_choice gives every expert as many: what
it loses is what the exchange costs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from phases import KINDS, Stopwatch, profiled, wait

from latentbridge.config import Origin, Tree, build
from latentbridge.job import Run
from latentbridge.lm.mixture import MixtureLm
from latentbridge.lm.mixture_config import MixtureLmConfig
from latentbridge.nn.routers import STRATEGIES
from latentbridge.rundir import RunDir
from latentbridge.train import distributed
from latentbridge.train.engine import Engine, build_engine
from latentbridge.train.loop import LossTerm, begin

# updates under the profiler: one that it needs itself, and those that are told about
PROFILED = 3
PHASES = ("forward", "backward", "optimiser")
# on a GPU, and without one
SIZES = {
    "experts": (16, 4),
    "top_k": (2, 2),
    "dim": (1024, 32),
    "layers": (6, 2),
    "heads": (16, 4),
    "context": (1024, 32),
    "batch": (16, 4),
    "updates": (20, 3),
    "warm_up": (50, 5),
}


class Case(NamedTuple):
    """How tokens are routed, on how many ranks, of which how many share experts."""

    strategy: str
    ranks: int
    shared: int


class Watched(MixtureLm):
    """Keeps the load of the last update: this rank's pairs by layer and expert."""

    load: torch.Tensor

    def extra_losses(self, extras: list[Any]) -> dict[str, LossTerm]:
        self.load = torch.stack([told["counts"] for told in extras])  # (L, E)
        return super().extra_losses(extras)


def busiest(loads: list[torch.Tensor], shared: int) -> float:
    """Pairs that the busiest rank computes over the mean: the mean of all layers, each of which waits for it.

    loads: of each update, as `Watched` keeps them
    """
    own = torch.cat(loads)  # (L, E), of all updates
    ranks = distributed.global_sum(own).view(len(own), shared, -1).sum(dim=2)  # (L, shared)
    return float((ranks.amax(dim=1) / ranks.mean(dim=1)).mean())


def main() -> None:
    """Measure all cases in turns and print what they found; or be one rank of one of them."""
    options = parse()
    if options.folder:
        measure(options)
        return
    cases = [
        Case(strategy, ranks, shared)
        for strategy in options.strategy
        for ranks, shared in ((1, 1), (options.ranks, 1), (options.ranks, options.ranks))
    ]
    found: dict[Case, list[list[dict[str, Any]]]] = {case: [] for case in cases}
    for round_number in range(options.rounds):
        first = round_number % len(cases)
        for case in cases[first:] + cases[:first]:
            found[case].append(start(case))
            # what there is so far, should there be no time for the rest
            print(f"{case}: {found[case][-1][0]['tokens_per_s']:,.0f} tokens/s", file=sys.stderr, flush=True)
    print(f"{describe(options)}\n")
    print_speed(found)
    print_phases(found)


def print_speed(found: dict[Case, list[list[dict[str, Any]]]]) -> None:
    """A row a case: the median of its rounds."""
    print("| router | ranks | share experts | tokens a second | efficiency | load | GiB | parameters |")
    print("|---|---|---|---|---|---|---|---|")
    speeds = {
        case: statistics.median(ranks[0]["tokens_per_s"] for ranks in rounds)
        for case, rounds in found.items()
    }
    for case, rounds in found.items():
        one, speed = rounds[0][0], speeds[case]
        efficiency = speed / case.ranks / speeds[Case(case.strategy, 1, 1)]
        load = " to ".join(f"{value:.2f}" for value in one["load"])
        cells = [*case, f"{speed:,.0f}", f"{efficiency:.3f}", load, f"{one['peak_gib']:.1f}"]
        print("| " + " | ".join(map(str, cells)) + f" | {one['parameters']:,} |")


def print_phases(found: dict[Case, list[list[dict[str, Any]]]]) -> None:
    """A row a rank, of the last round: phases of an update as timed, then what fills one under a profiler."""
    kinds = (*KINDS, "rest", "idle")
    print("\nms of an update; a collective counts from its start, so that it holds what its rank waits for\n")
    print(f"| router | ranks | share | rank | {' | '.join((*PHASES, *kinds))} | launches | new blocks |")
    print("|---" * (6 + len(PHASES) + len(kinds)) + "|")
    for case, rounds in found.items():
        for rank, one in enumerate(rounds[-1]):
            times = [f"{value:.1f}" for value in (*one["phases"], *(one["kinds"][kind] for kind in kinds))]
            cells = [*case, rank, *times, one["kinds"]["launches"], one["new_blocks"]]
            print("| " + " | ".join(map(str, cells)) + " |")
    for case, rounds in found.items():
        print(f"\n{case}, rank 0, ms of what takes most:")
        for name, ms in rounds[-1][0]["kinds"]["longest"]:
            print(f"{ms:8.2f}  {name.removeprefix('void ').replace('at::native::', '')[:95]}")


def parse() -> argparse.Namespace:
    """Sizes of the model, and of what a rank sees in an update."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, sizes in SIZES.items():
        default = sizes[not torch.cuda.is_available()]
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"({default})")
    parser.add_argument("--ranks", type=int, default=2, help="(2)")
    parser.add_argument("--rounds", type=int, default=3, help="of all cases in turns (3)")
    parser.add_argument("--zero-stage", type=int, choices=(0, 1, 2), default=1)
    parser.add_argument("--dispatch", choices=("dropless", "padded"), default="dropless")
    parser.add_argument("--strategy", nargs="+", choices=STRATEGIES, help="(softk expert_choice)")
    parser.add_argument("--shared", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.strategy is None:
        options.strategy = ["softk"] if options.dispatch == "padded" else ["softk", "expert_choice"]
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and options.ranks > gpus:
        parser.error(f"--ranks is {options.ranks}, but there are {gpus} GPUs here; take a node with as many")
    return options


def start(case: Case) -> list[dict[str, Any]]:
    """One case, in processes of its own; what each of its ranks found."""
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={case.ranks}",
        ]
        own = [f"--strategy={case.strategy}", f"--shared={case.shared}", f"--folder={folder}"]
        words = [*torchrun, __file__, *sys.argv[1:], *own]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{case} failed:\n{done.stderr[-4000:]}")
        found: list[dict[str, Any]] = json.loads((Path(folder) / "found.json").read_text())
        return found


def measure(options: argparse.Namespace) -> None:
    """Build the case on this rank, warm up, time updates, and look into some more."""
    folder = RunDir(options.folder / "run")
    folder.path.mkdir(exist_ok=True)
    distributed.init()
    config, run = config_of(options), Run(folder)
    begin(config, run)
    workload = Watched(config, run)
    engine = build_engine(workload.model, config.optim, config.train)
    engine.set_training(True)
    steps = iter(range(1, config.train.steps + 1))
    loads = []
    for _ in range(options.warm_up):
        loads.append(update(workload, engine, next(steps), Stopwatch()))
    wait_for_all()
    clock, blocks, began = Stopwatch(), device_blocks(), time.perf_counter()
    for _ in range(options.updates):
        loads.append(update(workload, engine, next(steps), clock))
    wait_for_all()
    elapsed = time.perf_counter() - began
    found = {
        "tokens_per_s": options.updates * config.train.batch_size * options.context / elapsed,
        "phases": clock.milliseconds(len(PHASES)),
        "load": [busiest(some, options.shared) for some in (loads[:1], loads[options.warm_up :])],
        "new_blocks": device_blocks() - blocks,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
        "parameters": sum(parameter.numel() for parameter in workload.model.parameters()),
        "kinds": profiled(lambda: update(workload, engine, next(steps), Stopwatch()), PROFILED),
    }
    ranks = distributed.gather_in_order([found])
    if distributed.rank() == 0:
        (options.folder / "found.json").write_text(json.dumps(ranks))
    distributed.finish()


def update(workload: Watched, engine: Engine, step: int, clock: Stopwatch) -> torch.Tensor:
    """As the loop makes one, without its log; returns its load."""
    batch_size = workload.config.train.batch_size
    indices = distributed.shard(workload.order.take((step - 1) * batch_size, batch_size))
    clock.mark()
    terms = workload.losses(engine.model, workload.load_batch(indices), step)
    clock.mark()
    engine.backward(torch.stack([term.weight * term.value for term in terms.values()]).sum())
    clock.mark()
    engine.update(1.0)
    clock.mark()
    return workload.load


def wait_for_all() -> None:
    """Until every rank has done all it was asked for."""
    wait()
    distributed.barrier()


def device_blocks() -> int:
    """Times that memory was asked of the device so far, for which all its work is waited for."""
    return int(torch.cuda.memory_stats()["segment.all.allocated"]) if torch.cuda.is_available() else 0


def config_of(options: argparse.Namespace) -> MixtureLmConfig:
    """The settings of this case; the batch grows with the ranks."""
    (strategy,) = options.strategy
    balance = {"weight": 0.0} if strategy in ("hash", "expert_choice", "bias_balanced") else {}
    settings = {
        "text": {"context": options.context},
        "model": {name: getattr(options, name) for name in ("dim", "layers", "heads")},
        "mixture": {
            "num_experts": options.experts,
            "expert_parallel": options.shared,
            "router": {"strategy": strategy, "top_k": options.top_k},
            "balance": balance,
            "dispatch": {"kind": options.dispatch},
        },
        "optim": {"lr": 1e-4, "schedule": "constant"},
        "train": {
            "zero_stage": options.zero_stage,
            "precision": precision(options),
            "steps": options.warm_up + options.updates + 1 + PROFILED,
            "batch_size": options.batch * distributed.world_size(),
        },
    }
    return build(MixtureLmConfig, Tree(settings, {(): Origin("expert_parallel.py", 0)}))


def precision(options: argparse.Namespace) -> str:
    """What DeepSpeed can train in there: bf16 needs a ZeRO stage."""
    return "bf16" if torch.cuda.is_available() and options.zero_stage else "fp32"


def describe(options: argparse.Namespace) -> str:
    """What was measured, and on what."""
    sizes = " ".join(f"{name} {getattr(options, name)}" for name in SIZES)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return (
        f"{sizes}, {options.dispatch}, zero {options.zero_stage}, {options.rounds} rounds; "
        f"torch {torch.__version__}, {precision(options)}, {where}"
    )


if __name__ == "__main__":
    main()
