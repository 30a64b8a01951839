"""The toy pair's tokenizers: same bytes every time, every problem comes back, digits stay single."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from latentbridge.data.language_model import pad, token_ids
from latentbridge.data.tokenizers import build_tokenizer
from latentbridge.data.word_problems import WordProblems


@pytest.fixture(scope="module", params=["bpe", "characters"])
def tokenizer(request):
    return build_tokenizer(request.param)


def test_building_again_gives_the_same_bytes():
    assert (
        build_tokenizer("bpe").backend_tokenizer.to_str() == build_tokenizer("bpe").backend_tokenizer.to_str()
    )


def test_special_tokens_are_the_first_three_ids(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>"]) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_a_model_reads_a_bos_only_where_its_tokenizer_puts_one():
    tokenizer = build_tokenizer("characters")
    assert token_ids(tokenizer, ["7"], add_bos=True)[0][0] == tokenizer.bos_token_id
    # as of Qwen2.5 and SmolLM2: there is a <bos>, and nothing that puts it before a text
    tokenizer.backend_tokenizer.post_processor = None

    assert token_ids(tokenizer, ["7"], add_bos=True) == token_ids(tokenizer, ["7"], add_bos=False)


def test_every_problem_comes_back_as_written(tokenizer):
    texts = [f"{p.question}\nA: {p.answer}" for p in WordProblems("eval", 300, "all")]

    assert (
        tokenizer.batch_decode(token_ids(tokenizer, texts, add_bos=True), skip_special_tokens=True) == texts
    )


def test_each_digit_is_a_token_of_its_own(tokenizer):
    assert len(token_ids(tokenizer, ["907"], add_bos=False)[0]) == 3


def test_prompt_and_answer_split_apart_are_the_tokens_of_the_whole(tokenizer):
    problem = WordProblems("train", 8, "all")[1]
    prompt, answer = f"{problem.question}\nA: ", problem.answer
    apart = token_ids(tokenizer, [prompt, answer], add_bos=False)

    assert apart[0] + apart[1] == token_ids(tokenizer, [prompt + answer], add_bos=False)[0]


def test_characters_has_one_token_per_character():
    assert token_ids(build_tokenizer("characters"), ["A: b\n"], add_bos=True, add_eos=True) == [
        [1, *build_tokenizer("characters").convert_tokens_to_ids(["A", ":", " ", "b", "\n"]), 2]
    ]


def test_a_saved_tokenizer_loads_as_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    texts = ["Kofi has 35 tiles.\nA: 3+5=8 #### 8"]

    assert token_ids(AutoTokenizer.from_pretrained(tmp_path), texts, add_bos=True) == token_ids(
        tokenizer, texts, add_bos=True
    )


def test_padding_goes_to_the_side_that_was_asked_for():
    left, left_mask = pad([[5], [6, 7, 8]], "left")
    right, right_mask = pad([[5], [6, 7, 8]], "right")

    assert left.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert left_mask.tolist() == [[False, False, True], [True, True, True]]
    assert right.tolist() == [[5, 0, 0], [6, 7, 8]]
    assert right_mask.tolist() == [[True, False, False], [True, True, True]]
