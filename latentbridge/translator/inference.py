"""What a reply costs in time, memory, keys and values: the bridge beside all it must be told apart from.

Problems are answered one at a time, as `generate` does it. Every reply is made twice and the second one is
timed: the first records the steps that a GPU replays, fills the allocator, and tells how long the reply is.
The source's part is paid for: the bridge's states are read anew from the whole prompt, never from the disk
or behind a shared beginning, as the baselines read theirs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentbridge.data.decoding import Reply, release, reply
from latentbridge.data.language_model import FrozenLM, hidden_states
from latentbridge.data.problems import answers_match, extract_answer
from latentbridge.job import Run
from latentbridge.metric import Metric, mean, proportion, void
from latentbridge.rundir import write_atomic, write_json
from latentbridge.translator.config import TranslatorConfig
from latentbridge.translator.layout import TargetInput
from latentbridge.translator.metrics import MEASURED
from latentbridge.translator.prompts import Padded, Prompts


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One reply.

    input_len, output_len: tokens or embeddings that the model which answers reads before it, and makes
    kv_bytes: of that model's cache when the reply is done
    source_kv_bytes: of the source's beside it, if it keeps what it has read until then
    ttft_s: until the first token, with all that comes before: the source, the bridge, the relayed reply
    tpot_s: for each further token; None for a reply of one
    peak_mem_bytes: above what was allocated before; None without a GPU
    """

    text: str
    is_right: bool
    input_len: int
    output_len: int
    kv_bytes: int
    source_kv_bytes: int
    ttft_s: float
    tpot_s: float | None
    latency_s: float
    peak_mem_bytes: int | None


_SUMMED_UP = (
    *("input_len", "output_len", "kv_bytes", "source_kv_bytes"),
    *("ttft_s", "tpot_s", "latency_s", "peak_mem_bytes"),
)


class _Asked(NamedTuple):
    """A model and what it is about to answer; source_tokens: what the source has read or said for it."""

    lm: FrozenLM
    before: Padded
    source_tokens: int = 0


class Inference:
    """Measures the first `eval.inference_examples` held-out problems; every rank does all of them.

    At ZeRO-3 ranks must call the bridge together; what rank 0 found is written, and is what counts.
    """

    def __init__(
        self,
        config: TranslatorConfig,
        source: FrozenLM,
        target: FrozenLM,
        prompts: Prompts,
        target_input: TargetInput,
        soft_tokens: Callable[[nn.Module, Padded, Sequence[int]], Tensor],
        run: Run,
    ) -> None:
        """soft_tokens: (bridge, states, which problems) to vectors (B, Q, Dt)."""
        self._config, self._source, self._target, self._prompts = config, source, target, prompts
        self._target_input, self._soft_tokens, self._run = target_input, soft_tokens, run

    @torch.no_grad()
    def __call__(self, bridge: nn.Module) -> dict[str, Metric]:
        """Metrics by name, see `metrics.INFERENCE`; rank 0 also writes both files."""
        count = self._config.eval.inference_examples
        costs: list[dict[str, Cost]] = []
        # a parked source is fetched once, on nobody's account
        with self._source.awake():
            for index in range(count):
                costs.append(self._costs(bridge, index))
                self._run.progress("inference", index + 1, count)
        release(self._source, self._target)
        if self._run.is_main:
            self._write(costs)
        return self._metrics(costs)

    def _costs(self, bridge: nn.Module, index: int) -> dict[str, Cost]:
        """Every method's reply to one problem."""
        alone = self._cost(partial(self._ask_source, index), index)
        asks: dict[str, Callable[[], _Asked]] = {
            "target_alone": lambda: self._ask_target(self._prompts.prompt.take([index], "left")),
            "bridged": partial(self._ask_through, bridge, index),
            "cut_text": lambda: self._ask_target(self._prompts.cut_prompt.take([index], "left")),
            "cascade": partial(self._ask_after_source, index, alone.output_len),
        }
        return {"source_alone": alone} | {name: self._cost(ask, index) for name, ask in asks.items()}

    def _ask_source(self, index: int) -> _Asked:
        ids, mask = self._prompts.source.take([index], "left")
        return _Asked(self._source, Padded(self._source.embed(ids), mask))

    def _ask_target(self, text: Padded) -> _Asked:
        return _Asked(self._target, self._target_input(None, text))

    def _ask_through(self, bridge: nn.Module, index: int) -> _Asked:
        ids, mask = self._prompts.source.take([index], "right")
        states = hidden_states(self._source, ids, mask, self._config.source.layer)
        soft = self._soft_tokens(bridge, Padded(states, mask), [index])
        before = self._target_input(soft, self._prompts.visible([index]))
        return _Asked(self._target, before, self._prompts.source.lengths[index])

    def _ask_after_source(self, index: int, num_tokens: int) -> _Asked:
        """num_tokens: of the source's reply."""
        said = self._reply(self._ask_source(index), num_tokens)
        before = self._target_input(None, self._prompts.relayed([said.text], [index]))
        return _Asked(self._target, before, self._prompts.source.lengths[index] + num_tokens)

    def _cost(self, ask: Callable[[], _Asked], index: int) -> Cost:
        self._run.beat()
        device = self._target.device
        # each method begins with nothing to decode in, so that its peak is its own
        release(self._source, self._target)
        allocated = _restart_peak(device)
        num_tokens = self._reply(ask()).num_tokens
        started = _now(device)
        asked = ask()
        first_at: list[float] = []
        said = self._reply(asked, num_tokens, lambda: first_at.append(_now(device)))
        ended = _now(device)
        input_len = int(asked.before.mask.sum())
        return Cost(
            text=said.text,
            is_right=answers_match(extract_answer(said.text), self._prompts.problems[index].gold),
            input_len=input_len,
            output_len=num_tokens,
            kv_bytes=(input_len + num_tokens) * asked.lm.kv_bytes_per_token,
            source_kv_bytes=asked.source_tokens * self._source.kv_bytes_per_token,
            ttft_s=first_at[0] - started,
            tpot_s=(ended - first_at[0]) / (num_tokens - 1) if num_tokens > 1 else None,
            latency_s=ended - started,
            peak_mem_bytes=_peak(device, allocated),
        )

    def _reply(
        self, asked: _Asked, num_tokens: int | None = None, after_first: Callable[[], None] = lambda: None
    ) -> Reply:
        return reply(
            asked.lm, *asked.before, self._config.eval.max_new_tokens, num_tokens, after_first=after_first
        )

    def _metrics(self, costs: Sequence[dict[str, Cost]]) -> dict[str, Metric]:
        metrics = {}
        for name in MEASURED:
            own = [cost[name] for cost in costs]
            further = [cost.tpot_s for cost in own if cost.tpot_s is not None]
            metrics[f"{name}_ttft_s"] = mean([cost.ttft_s for cost in own])
            metrics[f"{name}_tpot_s"] = mean(further) if further else void("no reply has a second token")
            metrics[f"{name}_kv_mib"] = mean([cost.kv_bytes / 2**20 for cost in own])
        metrics["kv_saved_mib"] = mean([saved / 2**20 for saved in self._saved_bytes(costs)])
        return metrics

    def _saved_bytes(self, costs: Sequence[dict[str, Cost]]) -> list[int]:
        """Of the target's cache by the bridge, before a reply: one that happens to be shorter saves nothing.

        Negative where soft tokens come on top of the text.
        """
        each = self._target.kv_bytes_per_token
        return [each * (cost["target_alone"].input_len - cost["bridged"].input_len) for cost in costs]

    def _write(self, costs: Sequence[dict[str, Cost]]) -> None:
        lines = []
        for index, cost in enumerate(costs):
            problem = self._prompts.problems[index]
            record = {"sample_id": index, "question": problem.question, "gold_answer": problem.gold}
            record |= {name: asdict(cost[name]) for name in MEASURED}
            lines.append(json.dumps(record, ensure_ascii=False))
        write_atomic(self._run.folder.inference_samples, "\n".join(lines) + "\n")
        write_json(self._run.folder.inference_aggregate, self._aggregate(costs))

    def _aggregate(self, costs: Sequence[dict[str, Cost]]) -> dict[str, Any]:
        device = self._target.device
        saved = self._saved_bytes(costs)
        held = [cost["target_alone"].input_len * self._target.kv_bytes_per_token for cost in costs]
        beside = [cost["bridged"].source_kv_bytes for cost in costs]
        return {
            "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "kv_bytes_per_token": {
                "source": self._source.kv_bytes_per_token,
                "target": self._target.kv_bytes_per_token,
            },
            **{name: _summed_up([cost[name] for cost in costs]) for name in MEASURED},
            "kv_cache_savings": {
                "absolute_bytes": sum(saved) / len(saved),
                "relative": sum(saved) / sum(held),
                "absolute_bytes_less_source": (sum(saved) - sum(beside)) / len(saved),
            },
        }


def _summed_up(costs: Sequence[Cost]) -> dict[str, Any]:
    found: dict[str, Any] = {"num_samples": len(costs)}
    for quantity in _SUMMED_UP:
        values = [value for cost in costs if (value := getattr(cost, quantity)) is not None]
        found[quantity] = (
            {"mean": sum(values) / len(values), "min": min(values), "max": max(values)} if values else None
        )
    found["accuracy"] = proportion(sum(cost.is_right for cost in costs), len(costs)).as_record()
    return found


def _now(device: torch.device) -> float:
    """Seconds, once the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _restart_peak(device: torch.device) -> int:
    """Bytes allocated now, from where the peak is looked for."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device, allocated: int) -> int | None:
    return torch.cuda.max_memory_allocated(device) - allocated if device.type == "cuda" else None
