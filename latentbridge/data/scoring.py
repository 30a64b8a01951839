"""How likely a frozen model finds an answer, with gradient to what it read before; no weight is ever trained.

The logits of all tokens together would take 4 V bytes each (0.5 MB where V = 128,256); here they live for
one chunk of tokens at a time, and their gradient is taken at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from latentbridge.data.attention import NAME, can_pack
from latentbridge.data.language_model import FrozenLM, positions, to_device
from latentbridge.data.prefix import Prefix
from latentbridge.nn.head import nll_in_place

# tokens of one pack: a token's attention to all of them costs a 24th of its products with weights 4096 wide,
# and two thirds of those at width 256, where packs of 4,096 took 1.6 times as long in all
_PACK = 1024
# tokens whose logits exist at the same time: 0.5 GB in float32 at V = 128,256
_CHUNK = 1024


def answer_states(
    lm: FrozenLM,
    prefix_embeds: Tensor,
    prefix_mask: Tensor,
    answer_ids: Tensor,
    answer_mask: Tensor,
    after: Prefix | None = None,
) -> Tensor:
    """Last states that predict each answer token, (B, A, D), with gradient to the prefix.

    prefix_embeds: (B, T, D), prefix_mask: (B, T), padded on the left;  answer_*: (B, A), padded on the right
    after: what all rows have read before that
    Column i has seen the prefix and the answer tokens before i: the one shift of labels happens here.
    """
    # the last answer token predicts nothing that is scored
    read_ids, read_mask = answer_ids[:, :-1], answer_mask[:, :-1]
    embeds = torch.cat([prefix_embeds, lm.embed(read_ids).to(prefix_embeds.dtype)], dim=1)
    mask = torch.cat([prefix_mask, read_mask], dim=1)
    if after is not None:
        output = after.read(embeds, mask)
    else:
        output = lm.model.base_model(
            inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False
        )
    states: Tensor = output.last_hidden_state[:, prefix_embeds.shape[1] - 1 :]
    return states


@dataclass(frozen=True)
class PackedAnswers:
    """What predicts each answer token of a batch, without padding.

    states: (N, D);  rows, columns: (N,) whose token it predicts, and which of the answer
    """

    states: Tensor
    rows: Tensor
    columns: Tensor


def packed_answer_states(
    lm: FrozenLM,
    before: Tensor,
    opening: int,
    text_lengths: Sequence[int],
    answer_ids: Tensor,
    answer_lengths: Sequence[int],
) -> PackedAnswers:
    """As `answer_states`, but rows are laid end to end, so that nothing is computed for padding.

    before: (B, T, D), of which the first `opening` places of a row and its last `text_lengths` are real
    answer_ids: (B, A), padded on the right
    Each token keeps to its own row: by a kernel for ragged batches where there is one, else by a mask.
    The gradient goes to `before`.
    """
    T = before.shape[1]
    embeds = torch.cat([before, lm.embed(answer_ids[:, :-1]).to(before.dtype)], dim=1)
    parts: list[Tensor] = []
    rows: list[int] = []
    columns: list[int] = []
    lengths = [opening + text + answer - 1 for text, answer in zip(text_lengths, answer_lengths, strict=True)]
    # each time anew: another attention would read what the empty mask hides
    ours = lm.model.config._attn_implementation == NAME
    is_ragged = ours and can_pack(before) and _takes_ragged(lm)
    for pack in [list(range(len(lengths)))] if is_ragged else _packs(lengths):
        index: list[int] = []
        segments: list[int] = []
        places: list[int] = []
        predicts: list[int] = []
        for row in pack:
            start, answer = row * embeds.shape[1], answer_lengths[row]
            index += range(start, start + opening)
            index += range(start + T - text_lengths[row], start + T + answer - 1)
            # the last token before the answer predicts its first one
            predicts += range(len(index) - answer, len(index))
            segments += [row] * lengths[row]
            places += range(lengths[row])
            rows += [row] * answer
            columns += range(answer)
        table = torch.tensor([index, segments, places], device="cpu")
        index_at, segment, place = to_device(table, before.device)
        inputs = {"inputs_embeds": embeds.flatten(0, 1)[index_at][None], "position_ids": place[None]}
        if is_ragged:
            ends = to_device(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), before.device)
            # not looked at, but transformers would make one
            mask = segment.new_ones(1, 1, dtype=torch.bool)
            inputs |= {"cu_seq_lens_q": ends, "max_length_q": max(lengths)}
        else:
            mask = (segment[:, None] == segment) & (place[:, None] >= place)
        output = lm.model.base_model(**inputs, attention_mask=mask[None, None], use_cache=False)
        parts.append(output.last_hidden_state[0][to_device(torch.tensor(predicts), before.device)])
    where = to_device(torch.tensor([rows, columns]), before.device)
    return PackedAnswers(torch.cat(parts), where[0], where[1])


@torch.no_grad()
def _takes_ragged(lm: FrozenLM) -> bool:
    """Whether a family hands our words on to its attention; some do not, and would read what comes later."""
    if "ragged" not in lm.scratch:
        ids = torch.arange(2, 14, device=lm.device)
        place = torch.cat([torch.arange(5), torch.arange(7)]).to(lm.device)
        inputs = {"inputs_embeds": lm.embed(ids)[None], "position_ids": place[None], "use_cache": False}
        row = (torch.arange(12, device=lm.device) >= 5).long()
        mask = (row[:, None] == row) & (place[:, None] >= place)
        ends = torch.tensor([0, 5, 12], dtype=torch.int32, device=lm.device)
        read, whole = lm.model.base_model, mask.new_ones(1, 1, 1, 1)
        plain = read(**inputs, attention_mask=mask[None, None]).last_hidden_state
        ragged = read(**inputs, attention_mask=whole, cu_seq_lens_q=ends, max_length_q=7).last_hidden_state
        apart = (plain.float() - ragged.float()).norm() / plain.float().norm()
        lm.scratch["ragged"] = bool(apart < 0.05)
    found: bool = lm.scratch["ragged"]
    return found


def _packs(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows that go together, in order: as many as keep a pack's mask small beside what it masks."""
    pack: list[int] = []
    total = 0
    for row, length in enumerate(lengths):
        if pack and total + length > _PACK:
            yield pack
            pack, total = [], 0
        pack.append(row)
        total += length
    yield pack


def token_nll(lm: FrozenLM, states: Tensor, ids: Tensor) -> Tensor:
    """Negative log-likelihood of every token in nats, with gradient to the states that predict it.

    states: (..., D);  ids: (...);  returns (...) float32
    """
    nll: Tensor = _HeadNll.apply(states.flatten(0, -2), lm.head, ids.flatten())  # type: ignore[no-untyped-call]
    return nll.view_as(ids)


def answer_nll(
    lm: FrozenLM, prefix_embeds: Tensor, prefix_mask: Tensor, answer_ids: Tensor, answer_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each answer after its prefix: arguments as in `answer_states`.

    returns nll (B,) float32, summed over the answer's tokens in nats;  number of those tokens (B,) int64
    """
    states = answer_states(lm, prefix_embeds, prefix_mask, answer_ids, answer_mask)
    return (token_nll(lm, states, answer_ids) * answer_mask).sum(dim=1), answer_mask.sum(dim=1)


class _HeadNll(torch.autograd.Function):
    """Cross-entropy behind a frozen output layer; keeps the gradient to the states instead of any logits."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: nn.Module, ids: Tensor) -> Tensor:
        nll = states.new_empty(len(states), dtype=torch.float32)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        weight: Any = head.weight
        for start in range(0, len(states), _CHUNK):
            part = slice(start, start + _CHUNK)
            nll[part], share = nll_in_place(head(states[part]).float(), ids[part], gradient is not None)
            if gradient is not None and share is not None:
                gradient[part] = share.to(states.dtype) @ weight
        ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * above[0][:, None].to(gradient.dtype)), None, None
