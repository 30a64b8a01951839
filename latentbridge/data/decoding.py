"""Greedy replies of a frozen model, many at once: one fixed block of memory, finished rows leave it.

On a GPU a step of the whole model is recorded once for every number of rows and then replayed: what the host
would launch kernel by kernel is launched at once. On a CPU the same step is simply called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentbridge.data.language_model import TOKENS_AT_ONCE, FrozenLM, causal_mask, positions

# a completed answer line ends a reply; pretrained models go on to invent the next question
_ANSWER_LINE = re.compile(r"#### -?[0-9.,]+(?=\n)")
# asking the device which rows have ended stalls it, so ask seldom
_STEPS_BETWEEN_CHECKS = 16
# an answer line fits into so many tokens, even character by character
_TAIL = 2 * _STEPS_BETWEEN_CHECKS
# lengths are rounded up to multiples of this, so that few blocks are ever needed
_BUCKET = 64
# places for tokens in one block: 13 GB where a token takes 128 KB, as in 8 B models of today
_TOKENS_IN_MEMORY = 98_304
# blocks a model keeps: one after soft tokens, one after whole prompts
_BLOCKS = 2


def generate(lm: FrozenLM, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> list[str]:
    """Greedy replies; each ends before <eos>, or with its first completed line `#### number`.

    embeds: (B, T, D), mask: (B, T), padded on the left
    """
    if not bool(mask[:, -1].all()):
        raise ValueError("generate: a row ends in padding; pad prompts on the left")
    length = _length(embeds, max_new_tokens)
    stops = _stop_ids(lm)
    together = max(1, _TOKENS_IN_MEMORY // length)
    texts: list[str] = []
    for start in range(0, len(embeds), together):
        part = slice(start, start + together)
        block = _block(lm, len(embeds[part]), length)
        rows = block.decode(embeds[part], mask[part], max_new_tokens, lambda rows: _ended(lm, rows, stops))
        texts += _texts(lm, rows, stops)
    return texts


class Reply(NamedTuple):
    """num_tokens: made until the reply had ended, with <eos> or what completed its answer line."""

    text: str
    num_tokens: int


def reply(
    lm: FrozenLM,
    embeds: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    num_tokens: int | None = None,
    after_first: Callable[[], None] = lambda: None,
) -> Reply:
    """What `generate` gives for one prompt, embeds (1, T, D), in a way that can be timed.

    num_tokens: of the reply, where it is known: no token is made beyond it; else its end is seen up to
    15 tokens late.  after_first: called when the device has been told to choose the first token
    """
    block, stops = _block(lm, 1, _length(embeds, max_new_tokens)), _stop_ids(lm)
    steps = num_tokens or max_new_tokens
    (row,) = block.decode(embeds, mask, steps, lambda rows: _ended(lm, rows, stops), after_first)
    row = row[: _count_to_end(lm, row, stops)]
    (text,) = _texts(lm, [row], stops)
    return Reply(text, len(row))


def _length(embeds: Tensor, max_new_tokens: int) -> int:
    return -(-(embeds.shape[1] + max_new_tokens) // _BUCKET) * _BUCKET


def release(*models: FrozenLM) -> None:
    """Give back the memory that replies were made in; training needs it between evaluations."""
    for lm in models:
        lm.scratch.pop("blocks", None)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _block(lm: FrozenLM, rows: int, length: int) -> _Block:
    """The model's block of this length, made anew where it has too few rows."""
    blocks: dict[int, _Block] = lm.scratch.setdefault("blocks", {})
    block = blocks.pop(length, None)
    if block is None or block.rows < rows:
        while len(blocks) >= _BLOCKS:
            del blocks[next(iter(blocks))]
        block = _Block(lm, rows, length)
    # the one used last is the last to go
    blocks[length] = block
    return block


class _Slots:
    """Keys and values of every layer at fixed places; looks to transformers like one of its caches.

    keys, values: by layer (rows, Hkv, length, Dh), made when the first are known
    """

    is_compileable = False

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length = rows, length
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        # the rows that are worked on
        self.part = slice(0, rows)
        # where the next token goes, None while a prompt is read
        self.slot: Tensor | None = None

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if layer == len(self.keys):
            for store, given in ((self.keys, keys), (self.values, values)):
                heads, width = given.shape[1], given.shape[3]
                store.append(given.new_zeros(self.rows, heads, self.length, width))
        mine = self.keys[layer][self.part], self.values[layer][self.part]
        self._put(mine[0], keys)
        self._put(mine[1], values)
        # a prompt only sees itself
        return (keys, values) if self.slot is None else mine

    def _put(self, store: Tensor, given: Tensor) -> None:
        if self.slot is None:
            store[:, :, : given.shape[2]].copy_(given)
        else:
            store.index_copy_(2, self.slot, given)

    def keep(self, rows: Tensor) -> None:
        """Move these rows to the front."""
        for store in (*self.keys, *self.values):
            store[: len(rows)] = store[rows]

    def get_seq_length(self, *_: Any) -> int:
        """Asked for where positions or masks are missing, which never is so here."""
        return 0


class _Block:
    """Room for so many rows of so many tokens, and the recorded steps that work on it."""

    def __init__(self, lm: FrozenLM, rows: int, length: int) -> None:
        self.rows = rows
        self._lm, self._slots = lm, _Slots(rows, length)
        device = lm.device
        # added to the scores: kernels take it as it is, where truth values would be converted each time
        dtype = lm.embedding.dtype
        self._hidden = torch.finfo(dtype).min
        self._mask = torch.zeros(rows, 1, 1, length, dtype=dtype, device=device)
        self._token = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._place = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._chosen = torch.zeros(rows, length, dtype=torch.int64, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.no_grad()
    def decode(
        self,
        embeds: Tensor,
        mask: Tensor,
        steps: int,
        ended: Callable[[Tensor], list[bool]],
        after_first: Callable[[], None] = lambda: None,
    ) -> list[list[int]]:
        """Tokens after each prompt, at most `steps`; what follows a row's end has no meaning.

        ended: which rows of tokens so far (n, steps) need not go on
        """
        total = len(mask)
        finished: dict[int, list[int]] = {}
        self._read(embeds, mask)
        after_first()
        rows = list(range(total))
        done = 1
        while rows:
            ahead = min(_STEPS_BETWEEN_CHECKS, steps - done)
            for _ in range(ahead):
                self._advance(len(rows))
            done += ahead
            chosen = self._chosen[: len(rows), :done]
            over = [True] * len(rows) if done >= steps else ended(chosen)
            leaving = [place for place, is_over in enumerate(over) if is_over]
            if leaving:
                for place, tokens in zip(leaving, chosen[leaving].tolist(), strict=True):
                    finished.setdefault(rows[place], tokens)
            going = [place for place, is_over in enumerate(over) if not is_over]
            rows = self._shrink(rows, going)
        return [finished[row] for row in range(total)]

    def _read(self, embeds: Tensor, mask: Tensor) -> None:
        """Take the prompts in, and choose the first token of each reply."""
        total, width = mask.shape
        self._slots.slot = None
        place = positions(mask)
        together = max(1, TOKENS_AT_ONCE // width)
        states = torch.cat(
            [
                self._read_rows(embeds, mask, place, slice(start, min(start + together, total)))
                for start in range(0, total, together)
            ]
        )
        self._slots.slot = self._slot
        self._mask.fill_(self._hidden)
        self._mask[:total, 0, 0, :width].masked_fill_(mask, 0.0)
        self._place[:total] = place[:, -1:]
        self._slot.fill_(width - 1)
        self._step.zero_()
        self._choose(states, total)

    def _read_rows(self, embeds: Tensor, mask: Tensor, place: Tensor, part: slice) -> Tensor:
        """Last states (rows, 1, D) of some prompts."""
        self._slots.part = part
        states: Tensor = self._lm.model.base_model(
            inputs_embeds=embeds[part],
            attention_mask=causal_mask(mask[part]),
            position_ids=place[part],
            past_key_values=self._slots,
            use_cache=True,
        ).last_hidden_state[:, -1:]
        return states

    def _choose(self, states: Tensor, rows: int) -> None:
        token = self._lm.head(states).argmax(dim=-1)  # (rows, 1)
        self._token[:rows] = token
        self._chosen[:rows].index_copy_(1, self._step, token)
        self._step += 1
        self._slot += 1
        self._place[:rows] += 1

    def _work(self, rows: int) -> None:
        """One step: read the last token of each of the first rows, and choose the next."""
        mask = self._mask[:rows]
        mask.index_fill_(3, self._slot, 0.0)
        states = self._lm.model.base_model(
            input_ids=self._token[:rows],
            attention_mask=mask,
            position_ids=self._place[:rows],
            past_key_values=self._slots,
            use_cache=True,
        ).last_hidden_state
        self._choose(states, rows)

    def _advance(self, rows: int) -> None:
        self._slots.part = slice(0, rows)
        if self._lm.device.type != "cuda":
            self._work(rows)
            return
        if rows not in self._graphs:
            self._graphs[rows] = self._record(rows)
        self._graphs[rows].replay()

    def _record(self, rows: int) -> torch.cuda.CUDAGraph:
        """Record a step; what the trials before it change is put back."""
        state = (self._token, self._place, self._slot, self._step)
        kept = [tensor.clone() for tensor in state]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._work(rows)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._work(rows)
        for tensor, before in zip(state, kept, strict=True):
            tensor.copy_(before)
        return graph

    def _shrink(self, rows: list[int], going: list[int]) -> list[int]:
        """Let rows leave: on a GPU only where half of them would, for every number is recorded anew."""
        keep = len(going)
        if self._lm.device.type == "cuda":
            keep = next(size for size in _halves(len(rows)) if size >= len(going))
        if not going or keep == len(rows):
            return rows if going else []
        # rows that have ended fill the places up to the recorded number
        staying = (
            going + [place for place in range(len(rows)) if place not in set(going)][: keep - len(going)]
        )
        index = torch.tensor(staying, device=self._lm.device)
        self._slots.keep(index)
        for tensor in (self._mask, self._token, self._place, self._chosen):
            tensor[:keep] = tensor[index]
        return [rows[place] for place in staying]


def _halves(rows: int) -> list[int]:
    sizes = [rows]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    return sizes[::-1]


def _ended(lm: FrozenLM, rows: Tensor, stops: set[int]) -> list[bool]:
    """Which rows have a stop token or a completed answer line."""
    stopped = torch.isin(rows, torch.tensor(sorted(stops), device=rows.device)).any(dim=1).tolist()
    tails = _decode(lm, rows[:, -_TAIL:].tolist(), stops)
    return [
        is_stopped or _ANSWER_LINE.search(text) is not None
        for is_stopped, text in zip(stopped, tails, strict=True)
    ]


def _count_to_end(lm: FrozenLM, row: Sequence[int], stops: set[int]) -> int:
    """Tokens of a reply up to the one that ends it; all of them where none does."""
    for count, token in enumerate(row, start=1):
        if token in stops:
            return count
        (text,) = _decode(lm, [row[max(0, count - _TAIL) : count]], stops)
        if _ANSWER_LINE.search(text):
            return count
    return len(row)


def _texts(lm: FrozenLM, rows: Sequence[Sequence[int]], stops: set[int]) -> list[str]:
    texts = _decode(lm, rows, stops)
    lines = [_ANSWER_LINE.search(text) for text in texts]
    return [text[: line.end()] if line else text for text, line in zip(texts, lines, strict=True)]


def _decode(lm: FrozenLM, rows: Sequence[Sequence[int]], stops: set[int]) -> list[str]:
    """Text of each row up to its first stop token."""
    kept = []
    for row in rows:
        end = next((place for place, token in enumerate(row) if token in stops), len(row))
        kept.append(row[:end])
    texts: list[str] = lm.tokenizer.batch_decode(kept, skip_special_tokens=True)
    return texts


def _stop_ids(lm: FrozenLM) -> set[int]:
    """Every token that ends a reply: instruct models have several."""
    ids = {lm.tokenizer.eos_token_id}
    config = getattr(lm.model, "generation_config", None)
    listed = config.eos_token_id if config is not None else None
    ids.update(listed if isinstance(listed, list) else [listed])
    return {int(token) for token in ids if token is not None}
