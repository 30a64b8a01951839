"""What a small mixture must prove before it is trained to be a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from latentbridge.data.language_model import load_frozen
from latentbridge.job import Run
from latentbridge.lm.rehearsal import LmRehearsal
from latentbridge.perft.base import MoeBase, Olmoe, write_export
from latentbridge.perft.config import MoeBaseConfig
from latentbridge.rehearsal.contract import Caught, Check, Stage
from latentbridge.rehearsal.shrinking import BATCH, small_train
from latentbridge.train.checkpoint import full_weights, write_best

_LAYERS, _CONTEXT, _WINDOWS = 2, 12, 3
_TOKENIZER = "bundled:llama_bpe"


class MoeBaseRehearsal(LmRehearsal):
    """See `latentbridge.rehearsal.contract.Rehearsal`."""

    def __init__(self) -> None:
        super().__init__()
        self.checks = (*self.checks, Check("export", export))

    def make(self, config: MoeBaseConfig, run: Run) -> MoeBase:
        return MoeBase(config, run)

    def shrink(self, config: MoeBaseConfig, folder: Path) -> Any:
        """Two narrow layers of as many heads and experts, short windows of the same text."""
        shape = config.model
        small = {"layers": min(shape.layers, _LAYERS), "width": 6 * shape.heads, "expert_width": 8}
        text = {"tokenizer": _TOKENIZER, "context": _CONTEXT, "eval_tokens": _WINDOWS * _CONTEXT}
        return config.model_copy(
            update={
                "model": shape.model_copy(update=small),
                "text": config.text.model_copy(update=text),
                "train": small_train(config.train),
                "eval": config.eval.model_copy(update={"batch_size": BATCH}),
            }
        )


@torch.no_grad()
def export(stage: Stage) -> str:
    """What is written for others to load has the weights of the checkpoint, in half precision."""
    made, model = _parts(stage)
    folder = stage.run().folder
    best = folder.checkpoints / write_best(folder.checkpoints, full_weights(model), {"step": 1})
    write_export(made, best / "model.safetensors", folder.path / "export")
    lm = load_frozen(str(folder.path / "export"), torch.float32, made.device)
    exported = dict(lm.model.named_parameters())
    for name, parameter in model.lm.named_parameters():
        if name not in exported or not torch.equal(exported[name], parameter.half().float()):
            raise Caught(f"the export's {name} is not the checkpoint's in half precision")
    return f"{len(exported)} weights, loaded as others load them"


def _parts(stage: Stage) -> tuple[MoeBase, Olmoe]:
    made = stage.workload
    assert isinstance(made, MoeBase)
    assert isinstance(made.model, Olmoe)
    return made, made.model
