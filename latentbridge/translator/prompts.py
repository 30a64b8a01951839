"""What each model reads of a problem: one split's texts as token tables.

After the soft tokens the target reads text: the end of the prompt alone (soft_only) or all of it
(soft_plus_text), in training and evaluation alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from latentbridge.data.config import ProblemsConfig
from latentbridge.data.language_model import FrozenLM, pad, to_device, token_ids
from latentbridge.data.problems import Problem, Split, answer_text, load_problems, prompt_text, target_cue
from latentbridge.errors import ConfigError
from latentbridge.translator.config import LanguageModelConfig, TranslatorConfig

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

    @cached_property
    def shared(self) -> Tensor:
        """The ids that all rows begin with, (P,); one token of every row is left to itself."""
        same = (self._ids == self._ids[0]).all(dim=0)
        count = min(int(same.long().cumprod(0).sum()), min(self.lengths) - 1)
        return self._ids[0, :count].long()

    def take(self, indices: Sequence[int], padding: Literal["left", "right"], skip: int = 0) -> Padded:
        """These rows, little wider than the longest of them; padded places hold id 0.

        skip: tokens to leave out at the beginning of each
        """
        longest = max(self.lengths[index] for index in indices) - skip
        width = min(-(-longest // _BUCKET) * _BUCKET, self._ids.shape[1] - skip)
        rows = to_device(torch.tensor(indices), self.device)
        lengths = self._device_lengths[rows, None] - skip  # (B, 1)
        places = torch.arange(width, device=self.device).expand(len(rows), width)
        if padding == "left":
            places = places - (width - lengths)
        mask = (places >= 0) & (places < lengths)
        ids = self._ids[rows].gather(1, places.clamp(min=0) + skip).long()
        return Padded(ids * mask, mask)


def _widen(block: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(block, (0, width - block.shape[1]))


# where the problems of a split come from
ProblemSets = Callable[[ProblemsConfig, Split], Sequence[Problem]]

# never in a problem: where a chat template is cut into what comes before the user's words and after
_CUT = "\u2063CUT\u2063"
_MARKER = "####"


class Frame:
    """What stands around everything that a model reads: <bos>, or a turn of its chat template."""

    def __init__(self, config: LanguageModelConfig, lm: FrozenLM) -> None:
        self._tokenizer = lm.tokenizer
        self.is_chat = config.chat_template
        before, self._after = _template(lm.tokenizer, config.model) if self.is_chat else ("", "")
        (self.opening,) = token_ids(lm.tokenizer, [before], add_bos=not self.is_chat)

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text in its frame."""
        return [[*self.opening, *row] for row in self.rest(texts)]

    def rest(self, texts: Sequence[str]) -> list[list[int]]:
        """The same without the opening, after which soft tokens may come."""
        return token_ids(self._tokenizer, [text + self._after for text in texts], add_bos=False)


def _template(tokenizer: object, name: str) -> tuple[str, str]:
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"chat_template is true, but the tokenizer of '{name}' has none; "
            "write false, or take an instruct model"
        )
    turn = [{"role": "user", "content": _CUT}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)  # type: ignore[attr-defined]
    before, after = text.split(_CUT)
    return before, after


class Prompts:
    """Both models' views of one split; each table is made when it is first asked for."""

    def __init__(
        self,
        config: TranslatorConfig,
        split: Split,
        source: FrozenLM,
        target: FrozenLM,
        problems: ProblemSets = load_problems,
    ) -> None:
        self.problems = problems(config.problems, split)
        self._config, self._source, self._target = config, source, target
        self.source_frame, self.target_frame = Frame(config.source, source), Frame(config.target, target)

    def __len__(self) -> int:
        return len(self.problems)

    @cached_property
    def source(self) -> Tokens:
        """The whole prompt, as the source reads it."""
        return Tokens(self.source_frame.whole(self.prompt_texts), self._source.device)

    @cached_property
    def prompt(self) -> Tokens:
        """The whole prompt in the target's tokens, without its opening."""
        return Tokens(self.target_frame.rest(self.prompt_texts), self._target.device)

    @cached_property
    def question(self) -> Tokens:
        """The question alone in the target's tokens."""
        rows = token_ids(self._target.tokenizer, [p.question for p in self.problems], add_bos=False)
        return Tokens(rows, self._target.device)

    @cached_property
    def answer(self) -> Tokens:
        """The worked solution and <eos>: what is scored."""
        rows = token_ids(self._target.tokenizer, self._answer_texts, add_bos=False, add_eos=True)
        return Tokens(rows, self._target.device)

    @cached_property
    def marker(self) -> Tokens:
        """1 at the tokens of an answer that spell the last `####`, 0 at its others."""
        encoded = self._target.tokenizer(
            self._answer_texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        rows = []
        for text, offsets in zip(self._answer_texts, encoded.offset_mapping, strict=True):
            start = text.rindex(_MARKER)
            spells = [int(low < start + len(_MARKER) and high > start) for low, high in offsets]
            rows.append([*spells, 0])  # <eos>
        return Tokens(rows, self._target.device)

    @cached_property
    def cue(self) -> Tokens:
        """The end of every prompt, the same for all problems (one row)."""
        return Tokens(self.target_frame.rest([target_cue(self._config.problems)]), self._target.device)

    @cached_property
    def cut_prompt(self) -> Tokens:
        """The last tokens of the question, as many as there are soft tokens, and the end of the prompt."""
        keep = self._config.model.soft_tokens
        questions = token_ids(self._target.tokenizer, [p.question for p in self.problems], add_bos=False)
        (cue,) = self.target_frame.rest(["\n" + target_cue(self._config.problems)])
        return Tokens([question[-keep:] + cue for question in questions], self._target.device)

    def relayed(self, texts: Sequence[str], indices: Sequence[int]) -> Padded:
        """Words in the place of soft tokens: these texts, each before what `visible` shows of its problem.

        Of a text only the last `eval.max_new_tokens` tokens are taken: it ends in what matters.
        """
        config = self._config
        shown = [target_cue(config.problems)] * len(indices)
        if config.prompt_mode == "soft_plus_text":
            shown = [self.prompt_texts[index] for index in indices]
        heads = token_ids(self._target.tokenizer, texts, add_bos=False)
        tails = self.target_frame.rest([f"\n{text}" for text in shown])
        keep = config.eval.max_new_tokens
        rows = [head[-keep:] + tail for head, tail in zip(heads, tails, strict=True)]
        return Tokens(rows, self._target.device).take(range(len(rows)), "left")

    def visible(self, indices: Sequence[int], with_text: Sequence[bool] | None = None) -> Padded:
        """What the target reads after the soft tokens.

        with_text: which rows show the whole prompt; None: as prompt_mode says
        """
        shown = with_text or [self._config.prompt_mode == "soft_plus_text"] * len(indices)
        if not any(shown):
            return self.cue.take([0] * len(indices), "left")
        if all(shown):
            return self.prompt.take(indices, "left")
        prompt, cue = self.prompt.take(indices, "left"), self.cue.take([0] * len(indices), "left")
        return _choose(to_device(torch.tensor(shown), self._target.device), prompt, cue)

    def visible_lengths(self, indices: Sequence[int], with_text: Sequence[bool] | None = None) -> list[int]:
        """Tokens of each row that `visible` gives."""
        shown = with_text or [self._config.prompt_mode == "soft_plus_text"] * len(indices)
        cue = self.cue.lengths[0]
        return [self.prompt.lengths[i] if show else cue for i, show in zip(indices, shown, strict=True)]

    @property
    def longest_visible(self) -> int:
        """Tokens of the longest text that `visible` gives in this run."""
        sometimes = self._config.text_curriculum_steps or self._config.losses.decode.weight
        all_of_it = self._config.prompt_mode == "soft_plus_text" or sometimes
        return max((self.prompt if all_of_it else self.cue).lengths)

    @cached_property
    def prompt_texts(self) -> list[str]:
        """All that a model reads of each problem when it answers from text."""
        return [prompt_text(problem, self._config.problems) for problem in self.problems]

    @cached_property
    def _answer_texts(self) -> list[str]:
        texts = [answer_text(problem, self._config.problems) for problem in self.problems]
        # the space is what `Answer:` leaves to the answer; a turn of its own starts without
        return [text.lstrip() for text in texts] if self.target_frame.is_chat else texts


def _choose(first: Tensor, yes: Padded, no: Padded) -> Padded:
    """Rows of `yes` where `first` (B,) is True, of `no` elsewhere; both padded on the left."""
    missing = yes.values.shape[1] - no.values.shape[1]
    widened = [torch.nn.functional.pad(block, (missing, 0)) for block in no]
    pairs = zip(yes, widened, strict=True)
    return Padded(*(torch.where(first[:, None], shown, hidden) for shown, hidden in pairs))
