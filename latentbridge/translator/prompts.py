"""What each model reads: one split's problems as token tables, and the target's input put together.

The target always reads [bos][soft tokens][text] and then the answer. Text is the end of the prompt alone
(soft_only) or all of it (soft_plus_text), in training and evaluation alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from latentbridge.data.language_model import FrozenLM, pad, token_ids
from latentbridge.data.problems import Split, answer_text, load_problems, prompt_text, target_cue
from latentbridge.errors import ConfigError
from latentbridge.translator.config import TranslatorConfig

_ENCODE_AT_ONCE = 20_000
# widths of batches are multiples of this: attention kernels are planned anew for every shape they meet
_BUCKET = 8


class Padded(NamedTuple):
    """Rows of different lengths as one block: ids (B, T) or vectors (B, T, D), and mask (B, T) bool."""

    values: Tensor
    mask: Tensor


class Tokens:
    """One text a problem as token ids, kept on the device: a batch costs no tokenizing and no waiting."""

    def __init__(self, rows: Sequence[Sequence[int]], device: torch.device) -> None:
        self.device = device
        self.lengths = [len(row) for row in rows]
        blocks = [
            pad(rows[start : start + _ENCODE_AT_ONCE], "right")[0].to(torch.int32)
            for start in range(0, len(rows), _ENCODE_AT_ONCE)
        ]
        self._ids = torch.cat([_widen(block, max(self.lengths)) for block in blocks]).to(device)
        self._device_lengths = torch.tensor(self.lengths, device=device)

    def take(self, indices: Sequence[int], padding: Literal["left", "right"]) -> Padded:
        """These rows, little wider than the longest of them; padded places hold id 0."""
        longest = max(self.lengths[index] for index in indices)
        width = min(-(-longest // _BUCKET) * _BUCKET, self._ids.shape[1])
        rows = to_device(torch.tensor(indices), self.device)
        lengths = self._device_lengths[rows, None]  # (B, 1)
        places = torch.arange(width, device=self.device).expand(len(rows), width)
        if padding == "left":
            places = places - (width - lengths)
        mask = (places >= 0) & (places < lengths)
        ids = self._ids[rows].gather(1, places.clamp(min=0)).long()
        return Padded(ids * mask, mask)


def _widen(block: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(block, (0, width - block.shape[1]))


def to_device(block: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without making the host wait for what the device is doing."""
    return block.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else block


class Prompts:
    """Both models' views of one split; each table is made when it is first asked for."""

    def __init__(self, config: TranslatorConfig, split: Split, source: FrozenLM, target: FrozenLM) -> None:
        self.problems = load_problems(config.problems, split)
        self._config, self._source, self._target = config, source, target

    def __len__(self) -> int:
        return len(self.problems)

    @cached_property
    def source(self) -> Tokens:
        """The whole prompt, as the source reads it."""
        texts = [prompt_text(problem, self._config.problems) for problem in self.problems]
        return Tokens(token_ids(self._source.tokenizer, texts, add_bos=True), self._source.device)

    @cached_property
    def prompt(self) -> Tokens:
        """The whole prompt in the target's tokens, without <bos>."""
        return self._encode([prompt_text(problem, self._config.problems) for problem in self.problems])

    @cached_property
    def question(self) -> Tokens:
        """The question alone in the target's tokens."""
        return self._encode([problem.question for problem in self.problems])

    @cached_property
    def answer(self) -> Tokens:
        """The worked solution and <eos>: what is scored."""
        texts = [answer_text(problem, self._config.problems) for problem in self.problems]
        return self._encode(texts, add_eos=True)

    @cached_property
    def cue(self) -> Tokens:
        """The end of every prompt, the same for all problems (one row)."""
        return self._encode([target_cue(self._config.problems)])

    @cached_property
    def cut_prompt(self) -> Tokens:
        """The last tokens of the question, as many as there are soft tokens, and the end of the prompt."""
        keep = self._config.model.soft_tokens
        questions = token_ids(self._target.tokenizer, [p.question for p in self.problems], add_bos=False)
        end = "\n" + target_cue(self._config.problems)
        (cue,) = token_ids(self._target.tokenizer, [end], add_bos=False)
        return Tokens([question[-keep:] + cue for question in questions], self._target.device)

    def visible(self, indices: Sequence[int]) -> Padded:
        """What the target reads after the soft tokens."""
        return self.visible_table.take(self._rows(indices), "left")

    @property
    def visible_table(self) -> Tokens:
        """All that `visible` can give."""
        return self.cue if self._config.prompt_mode == "soft_only" else self.prompt

    def _rows(self, indices: Sequence[int]) -> Sequence[int]:
        return [0] * len(indices) if self._config.prompt_mode == "soft_only" else indices

    def _encode(self, texts: Sequence[str], add_eos: bool = False) -> Tokens:
        rows = token_ids(self._target.tokenizer, texts, add_bos=False, add_eos=add_eos)
        return Tokens(rows, self._target.device)


def target_input(lm: FrozenLM, soft: Tensor | None, text: Padded) -> Padded:
    """Embeddings [bos][soft][text] before an answer; models that know no <bos> read none.

    soft: (B, Q, D) or None;  text: ids (B, T), padded on the left
    returns vectors (B, 1 + Q + T, D) and their mask, whose last column is all True
    """
    parts, masks = [lm.embed(text.values)], [text.mask]
    if soft is not None:
        parts.insert(0, soft.to(lm.embedding.dtype))
    if lm.tokenizer.bos_token_id is not None:
        parts.insert(0, lm.embedding[lm.tokenizer.bos_token_id].expand(len(text.mask), 1, -1))
    width = sum(part.shape[1] for part in parts[:-1])
    masks.insert(0, text.mask.new_ones(len(text.mask), width))
    return Padded(torch.cat(parts, dim=1), torch.cat(masks, dim=1))


def refuse_too_long(lm: FrozenLM, longest: int, what: str) -> None:
    """Complain before training if a model would be asked for more positions than it has."""
    limit = getattr(lm.model.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"{what} can take {longest} tokens, but {lm.model.config.model_type} has {limit} positions; "
            "lower eval.max_new_tokens, problems.few_shot or model.soft_tokens"
        )
