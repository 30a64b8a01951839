"""Does an update of the translator cost in proportion to its samples and tokens?

python benchmarks/translator_growth.py; any machine, a minute or two of one core. Two Llamas with random
weights (width 256, 4 layers), GSM8K, the paper's terms, gated bridge. Problems are taken by length, so that
batches of one size differ in tokens. CPU seconds of one forward and backward with the source; least of three.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from latentbridge.config import Origin, Tree, build
from latentbridge.job import Run
from latentbridge.launch.spec import read_base
from latentbridge.rehearsal.tiny import tiny_model
from latentbridge.rundir import RunDir
from latentbridge.train.loop import begin
from latentbridge.translator.config import TranslatorConfig
from latentbridge.translator.train import Translation

ROOT = Path(__file__).parents[1]


def workload(folder: Path) -> Translation:
    """A bridge between two small models, on all of GSM8K."""
    here = Origin("benchmark", 0)
    model = tiny_model(folder, "model", tokenizer_of="bundled:llama_bpe", width=256, layers=4)
    settings = {
        "source.model": model,
        "target.model": model,
        "model": {"soft_tokens": 32, "dim": 192, "depth": 4, "heads": 6, "gate_init": 0.5},
        "losses": {"kl.start_step": 0, "info_nce.start_step": 0},
        "problems": {"train_examples": 2048, "eval_examples": 2, "few_shot": 0},
        "train": {"precision": "fp32", "engine": "torch", "batch_size": 8, "micro_batch_size": 8},
        "eval.inference_examples": 0,
        "cache_source_states": False,
    }
    tree = read_base("translator/phase1", ROOT, here).override(Tree(settings, {(): here}))
    config = build(TranslatorConfig, tree)
    run = Run(RunDir(folder / "run"))
    run.folder.path.mkdir()
    begin(config, run)
    return Translation(config, run)


def seconds(made: Translation, indices: list[int]) -> tuple[float, int]:
    """CPU seconds of an update's forward and backward, and the tokens in it."""
    found = []
    for _ in range(3):
        made.bridge.zero_grad()
        started = time.process_time()
        batch = made.load_batch(indices)
        terms = made.losses(made.bridge, batch, 1)
        torch.stack([term.weight * term.value for term in terms.values()]).sum().backward()
        found.append(time.process_time() - started)
    return min(found), batch.num_tokens


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        made = workload(Path(name))
        totals = [
            sum(pair) for pair in zip(made.prompts.source.lengths, made.prompts.answer.lengths, strict=True)
        ]
        by_length = sorted(range(len(totals)), key=totals.__getitem__)
        middle = len(by_length) // 2
        seconds(made, by_length[middle : middle + 4])
        print("samples  tokens  CPU s  ms a sample")
        for count in (4, 8, 16, 32, 64):
            spent, tokens = seconds(made, by_length[middle - count // 2 : middle + count // 2])
            print(f"{count:7d} {tokens:7d} {spent:6.2f} {1e3 * spent / count:8.1f}", flush=True)
        print("tokens a sample  CPU s for 16  microseconds a token")
        for share in (0.02, 0.25, 0.5, 0.75, 0.9, 0.98):
            start = int(share * len(by_length)) - 8
            chosen = by_length[start : start + 16]
            spent, tokens = seconds(made, chosen)
            mean = statistics.mean(totals[index] for index in chosen)
            print(f"{mean:15.0f} {spent:13.2f} {1e6 * spent / tokens:21.0f}", flush=True)


if __name__ == "__main__":
    main()
