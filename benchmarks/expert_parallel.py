"""What does it cost, or save, that ranks share experts? python benchmarks/expert_parallel.py   (2 GPUs)

Updates of a mixture language model through DeepSpeed: on one rank, on several that hold all experts each,
and on several that share one set. Tokens a rank are the same everywhere, so perfect scaling is an efficiency
of 1. Every case is a torchrun of its own; they take turns. On GPUs bf16; without one fp32 on gloo, and a
small model unless told otherwise. The slowest rank ends an update, so other processes on the machine count.
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
from typing import Any

import torch

from latentbridge.config import Origin, Tree, build
from latentbridge.job import Run
from latentbridge.lm.mixture import MixtureLm
from latentbridge.lm.mixture_config import MixtureLmConfig
from latentbridge.rundir import RunDir
from latentbridge.train import distributed
from latentbridge.train.engine import Engine, build_engine
from latentbridge.train.loop import begin

WARM_UP = 5
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
}


def main() -> None:
    """Measure all cases in turns and print a table; or be one rank of one of them."""
    options = parse()
    if options.folder:
        measure(options)
        return
    cases = [(1, 1), (options.ranks, 1), (options.ranks, options.ranks)]
    found: dict[tuple[int, int], list[dict[str, Any]]] = {case: [] for case in cases}
    for round_number in range(options.rounds):
        for case in cases[round_number % 3 :] + cases[: round_number % 3]:
            found[case].append(start(*case))
    print(f"{describe(options)}\n")
    print(
        "| ranks | ranks that share experts | tokens a second | efficiency | peak GiB | parameters a rank |"
    )
    print("|---|---|---|---|---|---|")
    alone = statistics.median(one["tokens_per_s"] for one in found[1, 1])
    for (ranks, shared), rounds in found.items():
        speed = statistics.median(one["tokens_per_s"] for one in rounds)
        peak, held = rounds[0]["peak_gib"], rounds[0]["parameters"]
        print(
            f"| {ranks} | {shared} | {speed:,.0f} | {speed / ranks / alone:.3f} | {peak:.1f} | {held:,} |",
            flush=True,
        )


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
    parser.add_argument("--shared", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and options.ranks > gpus:
        parser.error(f"--ranks is {options.ranks}, but there are {gpus} GPUs here; take a node with as many")
    return options


def start(ranks: int, shared: int) -> dict[str, Any]:
    """One case, in processes of its own; what its first rank found."""
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
        ]
        own = [__file__, *sys.argv[1:], f"--shared={shared}", f"--folder={folder}"]
        done = subprocess.run([*torchrun, *own], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(
                f"{ranks} ranks, of which {shared} share experts, failed:\n{done.stderr[-4000:]}"
            )
        found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text())
        return found


def measure(options: argparse.Namespace) -> None:
    """Build the case on this rank, warm up, and time updates."""
    folder = RunDir(options.folder / "run")
    folder.path.mkdir(exist_ok=True)
    distributed.init()
    config, run = config_of(options), Run(folder)
    begin(config, run)
    workload = MixtureLm(config, run)
    engine = build_engine(workload.model, config.optim, config.train)
    engine.set_training(True)
    for step in range(1, WARM_UP + 1):
        update(workload, engine, config.train.batch_size, step)
    wait()
    began = time.perf_counter()
    for step in range(WARM_UP + 1, config.train.steps + 1):
        update(workload, engine, config.train.batch_size, step)
    wait()
    tokens = options.updates * config.train.batch_size * options.context
    found = {
        "tokens_per_s": tokens / (time.perf_counter() - began),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
        "parameters": sum(parameter.numel() for parameter in workload.model.parameters()),
    }
    if distributed.rank() == 0:
        (options.folder / "found.json").write_text(json.dumps(found))
    distributed.finish()


def update(workload: MixtureLm, engine: Engine, batch_size: int, step: int) -> None:
    """As the loop makes one, without its log."""
    indices = distributed.shard(workload.order.take((step - 1) * batch_size, batch_size))
    terms = workload.losses(engine.model, workload.load_batch(indices), step)
    engine.backward(torch.stack([term.weight * term.value for term in terms.values()]).sum())
    engine.update(1.0)


def wait() -> None:
    """Until every rank has done all it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    distributed.barrier()


def config_of(options: argparse.Namespace) -> MixtureLmConfig:
    """The settings of this case; the batch grows with the ranks."""
    settings = {
        "text": {"context": options.context},
        "model": {name: getattr(options, name) for name in ("dim", "layers", "heads")},
        "mixture": {
            "num_experts": options.experts,
            "expert_parallel": options.shared,
            "router": {"top_k": options.top_k},
            "dispatch": {"kind": options.dispatch},
        },
        "optim": {"lr": 1e-4, "schedule": "constant"},
        "train": {
            "zero_stage": options.zero_stage,
            "precision": precision(options),
            "steps": WARM_UP + options.updates,
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
