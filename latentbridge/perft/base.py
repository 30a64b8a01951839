"""A small mixture of OLMoE's family, trained on a text: a frozen base that can be loaded anywhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, OlmoeForCausalLM
from transformers import OlmoeConfig as Shape

from latentbridge.data.assets import resolve_model
from latentbridge.job import Run
from latentbridge.lm.balance import balance_over_ranks, counts_over_ranks
from latentbridge.lm.model import BlockModel
from latentbridge.lm.train import LanguageModeling
from latentbridge.metric import Metric
from latentbridge.nn.head import Head, Scores
from latentbridge.perft.config import MoeBaseConfig
from latentbridge.train.checkpoint import load_weights
from latentbridge.train.export import finish_export, save_folder
from latentbridge.train.flops import matrix_size
from latentbridge.train.loop import FINAL, LossTerm, begin, fit


class Olmoe(BlockModel):
    """A causal language model of transformers that scores blocks as ours do."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def read(self, ids: Tensor) -> tuple[Tensor, list[Any]]:
        """Each layer says counts (E,), and with gradient mean_probs (E,)."""
        body = self.lm.model(input_ids=ids, use_cache=False, output_router_logits=True)
        return body.last_hidden_state, [self._told(logits) for logits in body.router_logits]

    def score(self, states: Tensor, targets: Tensor) -> Scores:
        weight = self.lm.lm_head.weight
        head = Head(weight.shape[1], len(weight), shared=weight).train(self.training)
        found: Scores = head(states, targets)
        return found

    def _told(self, logits: Tensor) -> dict[str, Tensor]:
        probs = logits.float().softmax(dim=-1)  # (N, E)
        chosen = probs.topk(self.lm.config.num_experts_per_tok, dim=-1).indices
        counts = torch.zeros_like(probs).scatter_(1, chosen, 1.0).sum(dim=0)
        return {"counts": counts, "mean_probs": probs.mean(dim=0)}

    def logits(self, ids: Tensor) -> Tensor:
        found: Tensor = self.lm(input_ids=ids, use_cache=False).logits.float()
        return found


class MoeBase(LanguageModeling):
    """The workload: the text's loss, and the balance of the experts."""

    config: MoeBaseConfig

    def make_model(self) -> Olmoe:
        self.tokenizer = AutoTokenizer.from_pretrained(resolve_model(self.config.text.tokenizer))
        return Olmoe(build_olmoe(self.config, self.tokenizer))

    def matrices_per_token(self) -> int:
        shape = self.config.model
        return matrix_size(self.model) + expert_size(self.model) * shape.top_k // shape.num_experts

    def extra_losses(self, extras: list[Any]) -> dict[str, LossTerm]:
        weight = self.config.model.balance_weight
        if not weight:
            return {}
        return {"balance": LossTerm(balance_over_ranks(extras, counts_over_ranks(extras)), weight)}


def build_olmoe(config: MoeBaseConfig, tokenizer: Any) -> OlmoeForCausalLM:
    """Random weights (fp32) from torch's current seed."""
    shape = config.model
    return OlmoeForCausalLM(
        Shape(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=shape.expert_width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_experts=shape.num_experts,
            num_experts_per_tok=shape.top_k,
            max_position_embeddings=shape.positions,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            # 0.44 s where grouped products take 0.57 and batched ones 9.8: 2,048 tokens, two CPU cores
            experts_implementation=None if torch.cuda.is_available() else "eager",
        )
    )


def expert_size(model: nn.Module) -> int:
    """Weights of all experts, which transformers stacks: three axes each."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 3)


def train(config: MoeBaseConfig, run: Run) -> dict[str, Any] | None:
    """Train, then write the best weights as a folder that `from_pretrained` loads: RUN/export."""
    begin(config, run)
    workload = MoeBase(config, run)
    summary = fit(workload, config, run)
    if summary is None:
        return None

    def score(export: Path) -> dict[str, Metric]:
        lm = OlmoeForCausalLM.from_pretrained(export, dtype=torch.float32)
        with torch.no_grad():
            return workload.evaluate(Olmoe(lm).to(workload.device).eval(), summary["steps"], FINAL)

    write = partial(write_export, workload)
    return finish_export("moe_base", config, run, workload.model, summary, write, score)


def write_export(workload: MoeBase, weights: Path, export: Path) -> None:
    """The folder of a checkpoint."""
    model = Olmoe(build_olmoe(workload.config, workload.tokenizer))
    load_weights(model, weights)
    save_folder(model.lm, workload.tokenizer, export)
