"""How fast are training and evaluation at production shapes? python benchmarks/translator_speed.py

Random weights in the shapes of Mistral-7B and Llama-3.1-8B, GSM8K's own problems with 8 worked examples, cut
into as many tokens as those models' tokenizers would give; the gated bridge of 189 M, terms lm, kl, info_nce
and prompt alignment, bf16, the package's own loop. First our decoding and scoring against float32. One GPU;
several with PARTS=train torchrun --nproc_per_node N, where each has a batch of its own.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from gpus import describe_and_list
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from latentbridge.config import Origin, Tree, build
from latentbridge.data.attention import NAME
from latentbridge.data.decoding import generate, release
from latentbridge.data.fused import fuse
from latentbridge.data.language_model import FrozenLM
from latentbridge.data.scoring import answer_nll, packed_answer_states, token_nll
from latentbridge.job import Run
from latentbridge.launch.spec import read_base
from latentbridge.metric import Metric
from latentbridge.rundir import RunDir, read_jsonl
from latentbridge.train.loop import begin, fit
from latentbridge.translator.config import TranslatorConfig
from latentbridge.translator.train import Translation

ROOT = Path(__file__).parents[1]
LAYERS = int(os.environ.get("LAYERS", "32"))
VOCABULARY = 128_256
RANK, RANKS = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
DEVICE = torch.device("cuda", RANK)
SHAPE: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "attn_implementation": NAME,
    # unknown to the tokenizer: no reply ends early
    "eos_token_id": None,
}
# characters a token, so that the 8-shot prompt has 1,765 tokens (Mistral) and 1,392 (Llama), as counted
SOURCE, TARGET = "shapes/mistral-7b", "shapes/llama-3.1-8b"
CHARACTERS = {SOURCE: 2.58, TARGET: 3.27}


class Pieces:
    """A tokenizer that cuts a text into pieces of equal length, and gives each a number."""

    bos_token_id, eos_token_id, chat_template = 0, 1, None

    def __init__(self, characters: float) -> None:
        self._characters = characters

    def __call__(self, texts: list[str], return_offsets_mapping: bool = False, **_: Any) -> Any:
        rows, offsets = [], []
        for text in texts:
            count = max(1, round(len(text) / self._characters))
            cuts = [round(place * self._characters) for place in range(count)]
            pieces = list(pairwise([*cuts, len(text)]))
            rows.append([2 + hash(text[a:b]) % (VOCABULARY - 2) for a, b in pieces])
            offsets.append(pieces)
        return type("Encoding", (), {"input_ids": rows, "offset_mapping": offsets})()

    def batch_decode(self, rows: list[list[int]], **_: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


MODELS: dict[Any, FrozenLM] = {}


def model(name: str, dtype: torch.dtype, device: torch.device) -> FrozenLM:
    """One of the two models, made once, on the device."""
    key = (name, dtype, device)
    if key not in MODELS:
        MODELS[key] = make(*key)
    MODELS[key].model.to(device)
    MODELS[key].scratch.clear()
    return MODELS[key]


def make(name: str, dtype: torch.dtype, device: torch.device) -> FrozenLM:
    """One of the two models with random weights."""
    kind = (MistralForCausalLM, MistralConfig) if name == SOURCE else (LlamaForCausalLM, LlamaConfig)
    torch.manual_seed(len(name))
    torch.set_default_dtype(dtype)
    with torch.device(device):
        made = (
            kind[0](kind[1](**SHAPE, num_hidden_layers=LAYERS, vocab_size=VOCABULARY))
            .eval()
            .requires_grad_(False)
        )
    torch.set_default_dtype(torch.float32)
    if device.type == "cuda":
        fuse(made)
    return FrozenLM(made, Pieces(CHARACTERS[name]))


def config(batch: int, steps: int, **changes: Any) -> TranslatorConfig:
    """batch: samples of a rank."""
    here = Origin("benchmark", 0)
    settings = {
        "source.model": SOURCE,
        "target.model": TARGET,
        "losses": {
            "info_nce": {"weight": 0.05, "start_step": 0},
            "kl": {"weight": 0.03, "start_step": 0},
            "prompt_alignment.weight": 0.001,
        },
        "model.gate_init": 0.5,
        "optim.warmup_steps": 2,
        "problems": {"train_examples": 768, "eval_examples": 64},
        "train": {
            "steps": steps,
            "batch_size": batch * RANKS,
            "micro_batch_size": batch,
            "log_every": 4,
            "eval_every": 10_000,
            "checkpoint_every": 10_000,
            "zero_stage": 1,
        },
        "eval": {"batch_size": 64, "max_new_tokens": 256},
        **changes,
    }
    tree = read_base("translator/phase1", ROOT, here).override(Tree(settings, {(): here}))
    return build(TranslatorConfig, tree)


class Unevaluated(Translation):
    """Trains only."""

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        return {"context_recovered": Metric(value=0.0, n=1)}


def say(*words: str) -> None:
    """Rank 0 speaks."""
    if RANK == 0:
        print(*words, flush=True)


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def training(batch: int, steps: int, folder: Path, **changes: Any) -> None:
    free()
    settings = config(batch, steps, **changes)
    path = folder / f"{batch}-{'stored' if settings.cache_source_states else 'read'}"
    path.mkdir(parents=True, exist_ok=True)
    run = Run(RunDir(path))
    begin(settings, run)
    started = time.perf_counter()
    workload = Unevaluated(settings, run, models=model)
    ready = time.perf_counter() - started
    try:
        fit(workload, settings, run)
    except torch.OutOfMemoryError as error:
        tried = run.folder.first_minute
        found = tried.read_text() if tried.exists() else ""
        where = [frame.name for frame in traceback.extract_tb(error.__traceback__)][-12:]
        say(f"training  batch {batch}: out of memory {where} {found}")
        return
    records = list(read_jsonl(run.folder.train_log))
    rates = sorted(record["samples_per_s"] for record in records[1:])
    found = {
        "gpus": RANKS,
        "batch": batch,
        "cached": settings.cache_source_states,
        "samples_per_s": round(rates[len(rates) // 2], 2),
        "all": [round(rate, 1) for rate in rates],
        "tokens_per_s": round(records[-1]["tokens_per_s"]),
        "mfu": records[-1].get("mfu"),
        "peak_gib": round(max(record["peak_gib"] for record in records), 1),
        "ready_s": round(ready, 1),
        "first_minute": json.loads(run.folder.first_minute.read_text()),
        "losses": {name: round(value, 3) for name, value in records[-1]["losses"].items()},
    }
    say("training ", json.dumps(found))
    del workload
    free()


def profile(batch: int, folder: Path) -> None:
    """Where the time of an update goes, by kernel."""
    free()
    settings = config(batch, 16, cache_source_states=True)
    path = folder / f"profile-{time.time_ns()}"
    path.mkdir(parents=True)
    run = Run(RunDir(path))
    begin(settings, run)
    workload = Translation(settings, run, models=model)
    bridge = workload.model.to(DEVICE, torch.bfloat16)

    def update(first: int) -> None:
        terms = workload.losses(bridge, workload.load_batch(range(first, first + batch)), 5)
        torch.stack([term.weight * term.value.float() for term in terms.values()]).sum().backward()

    for first in (0, batch):
        update(first)
    torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.profiler.profile() as seen:
        update(2 * batch)
        torch.cuda.synchronize()
    print(f"profile: {time.perf_counter() - started:.3f} s with the profiler", flush=True)
    started = time.perf_counter()
    for turn in range(4):
        update((3 + turn) * batch)
    torch.cuda.synchronize()
    print(f"profile: {(time.perf_counter() - started) / 4:.3f} s without", flush=True)
    print(f"profile: peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
    kernels = sorted(seen.key_averages(), key=lambda event: -event.self_device_time_total)
    for event in kernels[:28]:
        print(
            f"kernel {event.self_device_time_total / 1e3:9.2f} ms {event.count:6d} {event.key[:110]}",
            flush=True,
        )


@torch.no_grad()
def evaluation(rows: int, width: int, steps: int) -> None:
    free()
    target = model(TARGET, torch.bfloat16, DEVICE)
    embeds = target.embedding[torch.randint(2, VOCABULARY, (rows, width), device=DEVICE)]
    mask = torch.ones(rows, width, dtype=torch.bool, device=DEVICE)
    mask[: rows // 2, : width // 4] = False
    seconds = []
    for _ in range(3):
        torch.cuda.synchronize()
        started = time.perf_counter()
        texts = generate(target, embeds, mask, steps)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    lengths = sorted(len(text.split()) for text in texts)
    best = min(seconds[1:])
    found = {
        "rows": rows,
        "prompt": width,
        "tokens": [lengths[0], lengths[-1]],
        "first_s": round(seconds[0], 2),
        "s": round(best, 3),
        "ms_a_step": round(1e3 * best / steps, 2),
        "answers_per_s": round(rows / best, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
    }
    print("answering", json.dumps(found), flush=True)
    release(target)


@torch.no_grad()
def inference(folder: Path) -> None:
    """What a reply costs through the bridge and beside it, one problem at a time."""
    free()
    changes = {"problems": {"train_examples": 2, "eval_examples": 2}, "eval": {"inference_examples": 2}}
    settings = config(2, 16, **changes)
    path = folder / "inference"
    path.mkdir(parents=True)
    run = Run(RunDir(path))
    begin(settings, run)
    workload = Translation(settings, run, models=model)
    workload.evaluator.inference(workload.model.to(DEVICE, torch.bfloat16).eval())
    print("inference", run.folder.inference_aggregate.read_text(), flush=True)


@torch.no_grad()
def correctness() -> None:
    """Four layers of the target in bf16 and float32: nats per answer token, and replies to the plain loop."""
    global LAYERS
    whole, LAYERS = LAYERS, 4
    small = {dtype: make(TARGET, dtype, DEVICE) for dtype in (torch.float32, torch.bfloat16)}
    LAYERS = whole
    small[torch.bfloat16].model.load_state_dict(small[torch.float32].model.state_dict())
    ids = torch.randint(2, VOCABULARY, (6, 90), device=DEVICE)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:3, :20] = False
    nll = {
        dtype: answer_nll(lm, lm.embed(ids[:, :60]), mask[:, :60], ids[:, 60:], mask[:, 60:])[0] / 30
        for dtype, lm in small.items()
    }
    error = float((nll[torch.bfloat16] - nll[torch.float32]).norm() / nll[torch.float32].norm())
    print(f"scoring: relative error of bf16 against float32 {error:.1e}", flush=True)
    found = []
    for name in (NAME, "sdpa"):
        lm = small[torch.bfloat16]
        lm.model.config._attn_implementation = name
        with torch.enable_grad():
            before = lm.embed(ids[:, :60]).clone().requires_grad_()
            lengths = [30, 7, 12, 25, 1, 18]
            packed = packed_answer_states(lm, before, 40, [20, 13, 9, 20, 1, 4], ids[:, 60:], lengths)
            loss = token_nll(lm, packed.states, ids[:, 60:][packed.rows, packed.columns])
            found.append((loss.detach(), torch.autograd.grad(loss.sum(), before)[0]))
    apart = [float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True)]
    print(
        f"scoring: ragged kernel against mask, bf16: nll {apart[0]:.1e}, gradient {apart[1]:.1e}", flush=True
    )
    lm = small[torch.float32]
    ours = generate(lm, lm.embed(ids), mask, 24)
    plain = lm.model.generate(
        inputs_embeds=lm.embed(ids), attention_mask=mask.long(), max_new_tokens=24, do_sample=False
    )
    same = sum(text == " ".join(map(str, row)) for text, row in zip(ours, plain.tolist(), strict=True))
    print(f"answering: {same} of {len(ours)} replies are the library's (float32, 24 tokens)", flush=True)


def main() -> None:
    if RANK == 0:
        describe_and_list(__doc__)
    which = os.environ.get("PARTS", "check,answer,train").split(",")
    if "check" in which:
        correctness()
    if "answer" in which:
        for rows in (256,):
            evaluation(rows, 80, 256)
    if "infer" in which:
        with tempfile.TemporaryDirectory() as name:
            inference(Path(name))
    if "profile" in which:
        with tempfile.TemporaryDirectory() as name:
            profile(32, Path(name))
    if "train" in which:
        # one folder for all ranks, which share the source's states
        root = (
            Path(tempfile.gettempdir())
            / f"translator_speed_{os.environ.get('TORCHELASTIC_RUN_ID', os.getpid())}"
        )
        for batch in (int(size) for size in os.environ.get("BATCHES", "32").split(",")):
            training(batch, 16, root, cache_source_states=True)
        if RANK == 0:
            shutil.rmtree(root, ignore_errors=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
