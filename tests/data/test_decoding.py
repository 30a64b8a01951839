from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from latentbridge.data.attention import NAME
from latentbridge.data.decoding import generate, reply
from latentbridge.data.language_model import FrozenLM
from latentbridge.data.tokenizers import build_tokenizer

PROMPTS = ["Tom has 3 cards and finds 14 more. A: ", "A: ", "How many? A: "]


@pytest.fixture(params=[("llama", 6, None), ("llama", 6, 2), ("gpt2", 3, None)], ids=str)
def lm(request, tiny_lm) -> FrozenLM:
    family, heads, kv_heads = request.param
    return tiny_lm(family, "characters", heads, kv_heads)


def read(lm: FrozenLM, texts: list[str], padding: Any = "left") -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = lm.encode(texts, add_bos=True, padding=padding)
    return lm.embed(ids), mask


def theirs(lm: FrozenLM, texts: list[str], steps: int) -> list[str]:
    ids, mask = lm.encode(texts, add_bos=True, padding="left")
    rows = lm.model.generate(
        input_ids=ids,
        attention_mask=mask.long(),
        max_new_tokens=steps,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
    )
    return list(lm.tokenizer.batch_decode(rows[:, ids.shape[1] :], skip_special_tokens=True))


def test_replies_are_the_librarys_with_its_attention_and_with_ours(lm):
    expected = theirs(lm, PROMPTS, 41)
    assert generate(lm, *read(lm, PROMPTS), max_new_tokens=41) == expected

    lm.model.config._attn_implementation = NAME
    lm.scratch.clear()
    assert generate(lm, *read(lm, PROMPTS), max_new_tokens=41) == expected


def test_a_reply_does_not_depend_on_its_neighbours_or_padding(lm):
    together = generate(lm, *read(lm, PROMPTS), max_new_tokens=20)
    alone = [generate(lm, *read(lm, [prompt]), max_new_tokens=20)[0] for prompt in PROMPTS]

    assert together == alone
    assert len(set(together)) == 3


def test_memory_is_used_again_and_what_was_in_it_does_not_matter(lm):
    first = generate(lm, *read(lm, PROMPTS), max_new_tokens=20)
    (block,) = lm.scratch["blocks"].values()
    generate(lm, *read(lm, [PROMPTS[2], PROMPTS[0]]), max_new_tokens=20)

    assert generate(lm, *read(lm, PROMPTS), max_new_tokens=20) == first
    assert list(lm.scratch["blocks"].values()) == [block]


def test_generate_refuses_prompts_padded_on_the_right(lm):
    with pytest.raises(ValueError, match="on the left"):
        generate(lm, *read(lm, PROMPTS, padding="right"), max_new_tokens=2)


class Scripted(nn.Module):
    """A model that recites one text a row, told apart by where it stands: row r has read r + 1 tokens more.

    steps: rows of every call
    """

    def __init__(self, rows: list[list[int]], vocabulary: int) -> None:
        super().__init__()
        self.rows, self.vocabulary, self.steps = rows, vocabulary, []
        self.generation_config = None
        self.table = nn.Embedding(vocabulary, 5)

    @property
    def base_model(self) -> Any:
        return self.recite

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return nn.Identity()

    def recite(self, position_ids: torch.Tensor, **_: Any) -> Any:
        step = len(self.steps)
        self.steps.append(len(position_ids))
        rows = (position_ids[:, -1] - step).tolist()
        wanted = [self.rows[row][min(step, len(self.rows[row]) - 1)] for row in rows]
        states = nn.functional.one_hot(torch.tensor(wanted), self.vocabulary).float()[:, None]
        return SimpleNamespace(last_hidden_state=states)


def recite(texts: list[str], max_new_tokens: int) -> tuple[list[str], list[int]]:
    tokenizer = build_tokenizer("characters")
    rows = [tokenizer.convert_tokens_to_ids(list(text)) + [2] * text.endswith("7") for text in texts]
    model = Scripted(rows, len(tokenizer))
    # row r reads r + 1 tokens
    mask = torch.arange(len(texts)).flip(0) < torch.arange(1, len(texts) + 1)[:, None]
    replies = generate(FrozenLM(model, tokenizer), torch.zeros(*mask.shape, 5), mask, max_new_tokens)
    return replies, model.steps


def test_rows_leave_once_they_have_ended_by_eos_or_answer_line():
    long = "a" * 40 + "#### 8\n"
    replies, steps = recite(["3+4=7 #### 7", long, "#### 12\nQ: What next? #### 13"], max_new_tokens=100)

    assert replies == ["3+4=7 #### 7", long[:-1], "#### 12"]
    # asked after 17 tokens, and every 16 from there on
    assert steps == [3] * 17 + [1] * 32


def test_a_number_that_may_still_grow_is_not_a_completed_answer():
    replies, _ = recite(["#### 123456789123456789"], max_new_tokens=16)

    assert replies == ["#### 12345678912"]


def test_an_answer_line_across_two_checks_is_found():
    replies, steps = recite(["x" * 14 + "#### 17\n" + "y" * 90], max_new_tokens=90)

    assert replies == ["x" * 14 + "#### 17"]
    assert len(steps) == 33


@pytest.mark.parametrize(
    ("said", "expected", "num_tokens"),
    [
        # the stop token is made as well
        ("3+4=7 #### 7", "3+4=7 #### 7", 13),
        # and so is what shows that the number has ended
        ("a" * 40 + "#### 8\n" + "y" * 30, "a" * 40 + "#### 8", 47),
        ("no end", "no end" + "d" * 54, 60),
    ],
)
def test_a_reply_that_is_timed_makes_no_token_beyond_its_end(said, expected, num_tokens):
    tokenizer = build_tokenizer("characters")
    row = tokenizer.convert_tokens_to_ids(list(said)) + [2] * said.endswith("7")
    prompt = torch.zeros(1, 1, 5), torch.ones(1, 1, dtype=torch.bool)
    steps: list[int] = []

    model = Scripted([row], len(tokenizer))
    assert reply(FrozenLM(model, tokenizer), *prompt, 60) == (expected, num_tokens)
    model = Scripted([row], len(tokenizer))
    again = reply(
        FrozenLM(model, tokenizer),
        *prompt,
        60,
        num_tokens,
        after_first=lambda: steps.append(len(model.steps)),
    )
    assert again == (expected, num_tokens)
    assert (steps, len(model.steps)) == ([1], num_tokens)
