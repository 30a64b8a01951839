"""Pretraining as the loop sees it: encoded problems in, two loss terms out, exact match when held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from latentbridge.data.decoding import generate
from latentbridge.data.language_model import FrozenLM, load_frozen, pad, token_ids
from latentbridge.data.problems import answer_text, answers_match, extract_answer, load_problems, prompt_text
from latentbridge.data.scoring import answer_nll
from latentbridge.data.tokenizers import TokenizerKind, build_tokenizer
from latentbridge.job import Run
from latentbridge.metric import Metric, proportion, ratio
from latentbridge.pretrain.config import PretrainConfig
from latentbridge.pretrain.model import build_model
from latentbridge.train import distributed
from latentbridge.train.checkpoint import load_weights
from latentbridge.train.export import finish_export, save_folder
from latentbridge.train.flops import TRAINED, matrix_size
from latentbridge.train.loop import LossTerm, begin, fit

_ENCODE_AT_ONCE = 20_000


@dataclass(frozen=True)
class Batch:
    """ids: (B, T) int64, padded on the right;  prompt_ends, ends: (B,) where the answer starts and ends."""

    ids: Tensor
    prompt_ends: Tensor
    ends: Tensor
    num_tokens: int


class Pretraining:
    """The workload: `<bos>` question, newline, `A: `, worked solution, `<eos>`."""

    def __init__(
        self,
        config: PretrainConfig,
        run: Run,
        tokenizers: Callable[[TokenizerKind], PreTrainedTokenizerFast] = build_tokenizer,
    ) -> None:
        """tokenizers: where one comes from."""
        self.config, self._run = config, run
        self.device = distributed.device()
        self.tokenizer = tokenizers(config.model.tokenizer)
        torch.manual_seed(config.seed)
        self.model = build_model(config.model, self.tokenizer).to(self.device)
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        body: Any = self.model.base_model
        self._matrices = matrix_size(body) + int(head.weight.numel())
        # encoded once and kept on the device: 1e6 problems take 0.3 GB, and the GPU never waits for text
        ids, prompt_ends, ends = self._encode_training_set()
        self._ids, self._prompt_ends, self._ends = (x.to(self.device) for x in (ids, prompt_ends, ends))
        self._lengths = ends.tolist()
        self.num_examples = len(ids)

    def _encode_training_set(self) -> tuple[Tensor, Tensor, Tensor]:
        """ids: (N, T) int16;  prompt_ends, ends: (N,) int64."""
        problems = load_problems(self.config.problems, "train")
        blocks, prompt_ends, ends = [], [], []
        for start in range(0, len(problems), _ENCODE_AT_ONCE):
            some = problems[start : start + _ENCODE_AT_ONCE]
            # apart, as they meet when a model answers: no piece may span the border of prompt and answer
            prompts = token_ids(
                self.tokenizer, [prompt_text(p, self.config.problems) for p in some], add_bos=True
            )
            answers = token_ids(
                self.tokenizer,
                [answer_text(p, self.config.problems) for p in some],
                add_bos=False,
                add_eos=True,
            )
            rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
            blocks.append(pad(rows, "right")[0].to(torch.int16))
            prompt_ends += [len(prompt) for prompt in prompts]
            ends += [len(row) for row in rows]
        width = max(ends)
        ids = torch.cat([F.pad(block, (0, width - block.shape[1])) for block in blocks])
        return ids, torch.tensor(prompt_ends), torch.tensor(ends)

    def load_batch(self, indices: Sequence[int]) -> Batch:
        """Rows of the encoded training set; every batch has the same width."""
        rows = torch.tensor(indices, device=self.device)
        return Batch(
            ids=self._ids[rows].long(),
            prompt_ends=self._prompt_ends[rows],
            ends=self._ends[rows],
            num_tokens=sum(self._lengths[index] for index in indices),
        )

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, LossTerm]:
        """Mean nats per token of the answers, and of the questions."""
        logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]  # (B, T-1, V)
        targets = batch.ids[:, 1:]
        each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        each = each.view_as(targets)
        place = torch.arange(1, batch.ids.shape[1], device=each.device)  # of each target in its row
        question = place < batch.prompt_ends[:, None]
        answer = (place < batch.ends[:, None]) & ~question
        return {
            "answer": LossTerm(distributed.global_mean((each * answer).sum(), answer.sum()), 1.0),
            "question": LossTerm(
                distributed.global_mean((each * question).sum(), question.sum()), self.config.question_weight
            ),
        }

    def flops(self, batch: Batch, step: int) -> int:
        """Model FLOPs of forward and backward, see train/flops.py."""
        return TRAINED * self._matrices * batch.num_tokens

    def evaluate(self, model: nn.Module, step: int, label: str) -> dict[str, Metric]:
        """accuracy: exact match of greedy answers;  answer_nll: nats per answer token."""
        lm = FrozenLM(getattr(model, "module", model), self.tokenizer)
        return score(lm, self.config, self._run)


@torch.no_grad()
def score(lm: FrozenLM, config: PretrainConfig, run: Run) -> dict[str, Metric]:
    """Metrics of a language model on the held-out problems, by all ranks together."""
    problems = distributed.shard(load_problems(config.problems, "eval"))
    results: list[tuple[bool, float, int]] = []
    for start in range(0, len(problems), config.eval.batch_size):
        some = problems[start : start + config.eval.batch_size]
        ids, mask = lm.encode([prompt_text(p, config.problems) for p in some], add_bos=True, padding="left")
        answers = lm.encode(
            [answer_text(p, config.problems) for p in some], add_bos=False, add_eos=True, padding="right"
        )
        replies = generate(lm, lm.embed(ids), mask, config.eval.max_new_tokens)
        right = [answers_match(extract_answer(r), p.gold) for r, p in zip(replies, some, strict=True)]
        nll, count = answer_nll(lm, lm.embed(ids), mask, *answers)
        results += zip(right, nll.tolist(), count.tolist(), strict=True)
        run.progress("evaluation", len(results), len(problems))
    results = distributed.gather_in_order(results)
    return {
        "accuracy": proportion(sum(right for right, _, _ in results), len(results)),
        "answer_nll": ratio([nll for _, nll, _ in results], [float(count) for _, _, count in results]),
    }


def train(config: PretrainConfig, run: Run) -> dict[str, Any] | None:
    """Train, then write the best weights as a folder that `from_pretrained` loads: RUN/export."""
    begin(config, run)
    workload = Pretraining(config, run)
    summary = fit(workload, config, run)
    if summary is None:
        return None

    def score_export(export: Path) -> dict[str, Metric]:
        return score(load_frozen(str(export), torch.float32, distributed.device()), config, run)

    write = partial(write_export, workload)
    return finish_export("pretrain", config, run, workload.model, summary, write, score_export)


def write_export(workload: Pretraining, weights: Path, export: Path) -> None:
    """fp16 weights, config and tokenizer, complete or not there at all."""
    model: Any = build_model(workload.config.model, workload.tokenizer)
    load_weights(model, weights)
    save_folder(model, workload.tokenizer, export)
