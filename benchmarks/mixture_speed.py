"""How fast do mixtures train in the package's own loop? python benchmarks/mixture_speed.py [PART ...]

One GPU, the text that ships, S=256, 4 layers of 4 heads, dropout 0.1, bf16. Parts: `check`: layers in bf16
against float32, and recorded updates against plain ones; `routers`: every router at E=8, D=256; `sizes`: the
larger model, and E from 8 to 256 at one active width; `plain`: other engines. Under torchrun each GPU has a
batch of its own.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentbridge.config import Origin, Tree, build
from latentbridge.job import Run
from latentbridge.launch.spec import read_base
from latentbridge.lm.mixture import MixtureFfn, MixtureLm
from latentbridge.lm.mixture_config import MixtureLmConfig
from latentbridge.metric import Metric
from latentbridge.nn.routers import STRATEGIES
from latentbridge.rundir import RunDir, read_jsonl
from latentbridge.train import distributed
from latentbridge.train.loop import begin, fit

PARTS = ["check", "routers", "sizes", "plain"]
ROOT = Path(__file__).parents[1]
RECORDED = {"engine": "torch", "precision": "bf16", "recorded": True}
PLAIN = {"engine": "torch", "precision": "bf16", "recorded": False}
# tokens a second of the published code on one H200 (2026-11-22), by E, D, batch and router
SEED = {
    (8, 256, 32, "top1"): 213_361,
    (8, 256, 32, "topk_hard"): 200_347,
    (8, 256, 32, "softk"): 184_916,
    (8, 256, 32, "hash"): 219_200,
    (8, 256, 32, "expert_choice"): 147_612,
    (8, 256, 128, "softk"): 590_244,
    (32, 512, 32, "softk"): 70_803,
}


class Unevaluated(MixtureLm):
    """Trains only."""

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        return {self.config.early_stop.metric: Metric(value=0.0, n=1)}


def config(experts: int, dim: int, batch: int, strategy: str, train: dict[str, Any], **more: Any) -> Any:
    """Of one model; batch: windows of a rank."""
    here = Origin("benchmark", 0)
    router: dict[str, Any] = {"strategy": strategy, "top_k": 1 if strategy == "top1" else 2}
    balance = {"weight": 0.0 if strategy in ("hash", "expert_choice", "bias_balanced") else 0.01}
    settings = {
        "model.dim": dim,
        "mixture": {"num_experts": experts, "router": router},
        "mixture.balance": balance | ({"z_weight": 0.0} if strategy == "hash" else {}),
        "optim.warmup_steps": 50,
        "train": {
            "steps": 240,
            "batch_size": batch * distributed.world_size(),
            "log_every": 20,
            "eval_every": 10_000,
            "checkpoint_every": 10_000,
            **train,
        },
        **more,
    }
    tree = read_base("routing_bench/unified", ROOT, here).override(Tree(settings, {(): here}))
    return build(MixtureLmConfig, tree)


def trained(settings: Any, folder: Path) -> list[dict[str, Any]]:
    """The log of a run that only trains."""
    path = folder / f"{time.time_ns()}"
    path.mkdir(parents=True)
    run = Run(RunDir(path))
    begin(settings, run)
    workload = Unevaluated(settings, run)
    fit(workload, settings, run)
    del workload
    gc.collect()
    torch.cuda.empty_cache()
    torch._dynamo.reset()
    return list(read_jsonl(run.folder.train_log))


def row(experts: int, dim: int, batch: int, strategy: str, folder: Path, **train: Any) -> float:
    """Measure one model and print what it does; returns tokens a second of all GPUs."""
    started = time.perf_counter()
    records = trained(config(experts, dim, batch, strategy, RECORDED | train), folder)
    # the first records hold compilation
    rates = sorted(record["tokens_per_s"] for record in records[3:])
    median, seed = statistics.median(rates), SEED.get((experts, dim, batch, strategy))
    per_update = batch * distributed.world_size() * 256 / median * 1000
    print(
        f"| {experts} | {dim} | {batch} | {strategy} | {train or 'recorded'} "
        f"| {per_update:.2f} | {median:,.0f} | {rates[0]:,.0f} to {rates[-1]:,.0f} "
        f"| {f'{median / seed:.1f}' if seed else ''} | {records[-1].get('mfu', 0):.3f} "
        f"| {records[-1].get('peak_gib', 0):.1f} | {records[-1]['loss']:.4f} "
        f"| {time.perf_counter() - started:.0f} |",
        flush=True,
    )
    return float(median)


def header() -> None:
    print(
        "| E | D | batch | router | update | ms | tokens/s | lowest to highest "
        "| x seed | mfu | GiB | loss | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)


def check_layers() -> None:
    """One layer, bf16 and compiled, forward and backward, against float32."""
    print(
        "| router | output, relative error | gradient of x | of the experts | of the router |\n"
        "|---|---|---|---|---|"
    )
    for strategy in STRATEGIES:
        settings = config(8, 256, 8, strategy, {}, **{"model.dropout": 0.0})
        torch.manual_seed(7)
        layer = MixtureFfn(settings, 0).cuda()
        exact = MixtureFfn(settings, 0).cuda()
        layer.bfloat16()
        exact.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
        ids = torch.randint(0, 80, (8, 256), device="cuda")
        x = torch.randn(8, 256, 256, device="cuda").bfloat16()
        above = torch.randn(8, 256, 256, device="cuda").bfloat16()
        found = gradients(torch.compile(layer, dynamic=False), layer, x, ids, above)
        expected = gradients(exact, exact, x.float(), ids, above.float())
        errors = [
            float((a.float() - b).norm() / b.norm()) if b.norm() else 0.0
            for a, b in zip(found, expected, strict=True)
        ]
        print(f"| {strategy} | " + " | ".join(f"{error:.2e}" for error in errors) + " |", flush=True)
        assert all(error < 2e-2 for error in errors), errors


def gradients(call: Any, layer: MixtureFfn, x: Any, ids: Any, above: Any) -> list[torch.Tensor]:
    """Output, and gradients to x, to the experts' first matrices and to the router's."""
    x = x.clone().requires_grad_()
    out, _ = call(x, ids)
    network = layer.moe.router.network
    wanted = [x, layer.moe.experts.up, *([] if network is None else [next(network.parameters())])]
    return [out.detach(), *torch.autograd.grad(out, wanted, above)]


def check_updates(folder: Path) -> None:
    """200 updates recorded, not recorded, by DeepSpeed and in float32, three seeds each: the same losses?"""
    print("\n| updates | loss of the last 20 of 200, by seed |\n|---|---|")
    kinds = {
        "recorded": RECORDED,
        "torch bf16": PLAIN,
        "deepspeed bf16": PLAIN | {"engine": "deepspeed"},
        "torch fp32": PLAIN | {"precision": "fp32"},
    }
    for name, train in kinds.items():
        losses = []
        for seed in (17, 18, 19):
            settings = config(8, 256, 32, "softk", train | {"steps": 200}, seed=seed)
            records = trained(settings, folder)
            losses.append(records[-1]["loss"])
        rate = statistics.median(record["tokens_per_s"] for record in records[3:])
        print(f"| {name} | {', '.join(f'{x:.4f}' for x in losses)} | {rate:,.0f} tokens/s |", flush=True)


def main() -> None:
    """Measure what the arguments name; without any, all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--experts", type=int, nargs="+", help="`sizes`: these alone, at D=256 (8 to 256)")
    options = parser.parse_args()
    parts = options.parts or PARTS[:3]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        parser.error("no GPU here, and this is about GPUs; run it on a node that has one")
    distributed.init()
    print(torch.cuda.get_device_name(), torch.__version__, f"{distributed.world_size()} GPUs")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "check" in parts:
            check_layers()
            check_updates(folder)
        if "routers" in parts:
            header()
            for strategy in ("softk", *(s for s in STRATEGIES if s != "softk")):
                row(8, 256, 32, strategy, folder)
            row(8, 256, 128, "softk", folder)
        if "sizes" in parts:
            header()
            for batch in () if options.experts else (32, 128):
                row(32, 512, batch, "softk", folder)
            for experts in options.experts or (8, 16, 32, 64, 128, 256):
                row(experts, 256, 32, "softk", folder)
        if "plain" in parts:
            header()
            for train in (PLAIN, PLAIN | {"engine": "deepspeed"}):
                row(8, 256, 32, "softk", folder, **train)


if __name__ == "__main__":
    main()
