"""Routes, seats and packs random tokens under each capacity factor: a row of RUN/capacity.jsonl each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentbridge.capacity.closed_form import expected_drop_rate
from latentbridge.capacity.config import CapacityConfig
from latentbridge.capacity.rows import ROWS, Row, metrics_of
from latentbridge.errors import ConfigError
from latentbridge.job import Run
from latentbridge.metric import mean
from latentbridge.nn.routers import Routing
from latentbridge.nn.seating import seat_in_slots, slots
from latentbridge.rundir import append_jsonl, keep_records, read_jsonl
from latentbridge.train import distributed
from latentbridge.train.loop import FINAL
from latentbridge.train.seeding import reseed, seeded_normal

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Round:
    """seconds: of routing, seating and packing;  dropped: share of the pairs of token and expert."""

    seconds: float
    dropped: float


class Bench:
    """The tokens of one setting; round n has the same logits under every factor."""

    def __init__(self, config: CapacityConfig) -> None:
        self.config, self.device = config, distributed.device()
        reseed(config.seed, "tokens")
        shape = (config.num_tokens, config.width)
        self.tokens = torch.randn(shape, device=self.device).to(_DTYPES[config.dtype])  # (N, D)
        preferred = config.preference * seeded_normal((config.num_experts,), config.seed, "preference")
        self.preferred = preferred.to(self.device)  # (E,)

    @torch.no_grad()
    def round(self, factor: float, number: int) -> Round:
        """One pass; what a layer does before and after its experts' products is not in it."""
        config = self.config
        reseed(config.seed, "logits", number)
        shape = (config.num_tokens, config.num_experts)
        logits = self.preferred + torch.randn(shape, device=self.device)
        room = self._room(factor)
        self._wait()
        started = time.perf_counter()
        routing = routed(logits, config.top_k)
        seating = seat_in_slots(routing, room, "choice")
        # (E · C, D): an empty slot takes its place too, so more room is more to copy
        self.tokens.index_select(0, routing.tokens.index_select(0, seating.pair_of_seat))
        self._wait()
        seconds = time.perf_counter() - started
        assert seating.kept is not None
        return Round(seconds, 1 - float(seating.kept.double().mean()))

    def row(self, factor: float, rounds: Sequence[Round]) -> Row:
        """What the timed rounds of one factor come to."""
        config = self.config
        size = (config.num_tokens, config.num_experts, config.top_k, factor)
        drop = mean([made.dropped for made in rounds])
        rates = [config.num_tokens / made.seconds for made in rounds]
        low, middle, high = (float(rate) for rate in np.percentile(rates, (10, 50, 90)))
        return {
            "num_experts": config.num_experts,
            "top_k": config.top_k,
            "capacity_factor": factor,
            "drop_rate": drop.value,
            # an interval that is symmetric about nearly 0 would reach below it
            "drop_rate_low": None if drop.low is None else max(0.0, drop.low),
            "drop_rate_high": drop.high,
            # None: of experts that are preferred nobody knows it
            "closed_form": None if config.preference else expected_drop_rate(*size),
            "tokens_per_s": middle,
            "tokens_per_s_p10": low,
            "tokens_per_s_p90": high,
            "slots": self._room(factor),
            "num_tokens": config.num_tokens,
            "width": config.width,
            "dtype": config.dtype,
            "preference": config.preference,
            "iterations": len(rounds),
            "seed": config.seed,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
        }

    def _room(self, factor: float) -> int:
        return slots(self.config.num_tokens * self.config.top_k, self.config.num_experts, factor)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def routed(logits: Tensor, top_k: int) -> Routing:
    """K best of (N, E) logits, weighted by a softmax over them."""
    kept = logits.topk(top_k, dim=-1)
    tokens = torch.arange(len(logits), device=logits.device).repeat(top_k)
    pairs = kept.indices.T.reshape(-1), kept.values.softmax(dim=-1).T.reshape(-1)
    return Routing(tokens, *pairs, logits, None, len(logits), logits.shape[1], top_k)


def measure(config: CapacityConfig, run: Run) -> dict[str, Any] | None:
    """Measure every factor that has no row yet; None when someone asked to stop before that."""
    distributed.init()
    if distributed.world_size() > 1:
        raise ConfigError(
            f"{distributed.world_size()} ranks measure one device; write resources: {{gpus_per_node: 1}}"
        )
    path = run.folder.path / ROWS
    # a killed predecessor may have torn the last line, or been about to mark the run
    keep_records(path, lambda row: True)
    run.forget_after(-1)
    rows = list(read_jsonl(path)) if path.exists() else []
    known = {row["capacity_factor"] for row in rows}
    bench = Bench(config)
    for factor in config.capacity_factors:
        if factor in known:
            continue
        rounds = _rounds(bench, factor, run)
        if rounds is None:
            run.stopped_at(len(rows))
            return None
        rows.append(bench.row(factor, rounds))
        append_jsonl(path, rows[-1])
        run.progress("measuring", len(rows), len(config.capacity_factors))
    final = {name: metric.as_record() for name, metric in metrics_of(rows).items()}
    run.log_metrics({"step": len(rows), "label": FINAL, "metrics": final})
    distributed.finish()
    return {"steps": len(rows), "final": final}


def _rounds(bench: Bench, factor: float, run: Run) -> list[Round] | None:
    """The timed rounds of a factor; None if asked to stop before the last."""
    rounds = []
    for number in range(-bench.config.warmup, bench.config.iterations):
        if run.should_stop():
            return None
        made = bench.round(factor, number)
        run.beat()
        if number >= 0:
            rounds.append(made)
    return rounds
