"""What a trained language model leaves: a folder that `from_pretrained` loads, and where it comes from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from latentbridge.config import JobConfig, config_id, dump
from latentbridge.job import Run
from latentbridge.metric import Metric
from latentbridge.rundir import write_json
from latentbridge.train import distributed


def save_folder(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write fp16 weights, config and tokenizer: complete or not there at all."""
    transformers.utils.logging.disable_progress_bar()
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    model.half().save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    for file in draft.iterdir():
        file.chmod(0o644)  # safetensors makes 0600, which colleagues could not read
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def finish_export(
    job: str,
    config: JobConfig,
    run: Run,
    model: nn.Module,
    summary: dict[str, Any],
    write: Callable[[Path, Path], None],
    score: Callable[[Path], dict[str, Metric]],
) -> dict[str, Any]:
    """Write the best weights as a folder that `from_pretrained` loads, RUN/export, and score that.

    write: from the weights' file to the folder;  score: of the folder, by all ranks together
    returns the run's summary with those scores
    """
    export = run.folder.path / "export"
    if run.is_main:
        write(run.folder.checkpoints / "best" / "model.safetensors", export)
    distributed.barrier()
    scores = {name: metric.as_record() for name, metric in score(export).items()}
    if run.is_main:
        write_json(export / "provenance.json", _provenance(job, config, model, summary, scores))
    return {**summary, "export": scores}


def _provenance(
    job: str, config: JobConfig, model: nn.Module, summary: dict[str, Any], scores: dict[str, Any]
) -> dict[str, Any]:
    """Where weights come from, so that anyone can make them again; scores: of what was written."""
    cuda = torch.cuda.is_available()
    return {
        "config_id": config_id(job, config),
        "command": f"torchrun --nproc_per_node 1 jobs/{job}.py --config RUN/config.yaml",
        "seed": config.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": summary["steps"],
        "best_step": summary["best_step"],
        "train_s": summary["train_s"],
        "scores_fp16": scores,
        "hardware": torch.cuda.get_device_name() if cuda else "cpu",
        "ranks": distributed.world_size(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "config": dump(config),
    }
