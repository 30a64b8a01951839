"""What experts take: classes, loads and bits, by hand; a hash router is the case whose answer is known."""

from __future__ import annotations

import numpy
import pytest
import torch

from latentbridge.data.encoders import NO_CHARACTER, build_encoder, describe_encoder
from latentbridge.lm.mixture import _takers
from latentbridge.lm.specialisation import (
    NOBODY,
    Choices,
    class_loads,
    classes_of,
    describe,
    information,
    information_metrics,
)
from latentbridge.nn.hashing import hashed_experts
from latentbridge.nn.routers import Router

TOKENS = 30_000


def ids_of(*values):
    return numpy.array(values)


def drawn(vocab, count=TOKENS, seed=3):
    return numpy.random.default_rng(seed).integers(0, vocab, count)


def test_every_kind_of_character_has_its_class():
    names, classes = classes_of(["a", "Q", "7", " ", "\n", "!", NO_CHARACTER, "é"])

    assert [names[number] for number in classes] == [
        "lower case",
        "upper case",
        "digit",
        "space",
        "newline",
        "punctuation",
        "other",
        "lower case",
    ]


def test_a_piece_of_a_word_is_told_by_how_it_begins():
    names, classes = classes_of([" the", "ing", " 12", '."', "\n\n", "", NO_CHARACTER, "Once"])

    assert [names[number] for number in classes] == [
        "word start",
        "continuation",
        "number",
        "punctuation",
        "whitespace",
        "other",
        "other",
        "continuation",
    ]


@pytest.mark.parametrize("tokenizer", ["characters", "bytes", "bpe"])
def test_the_texts_of_ids_spell_what_was_encoded(tokenizer):
    paragraphs = ["Once upon a time, 12 cats sat.\n\n", "the cat sat on the mat\n\n"]
    encoder = build_encoder(tokenizer, describe_encoder(tokenizer, 300, paragraphs))
    texts = encoder.texts()

    assert len(texts) == encoder.vocab_size
    for paragraph in paragraphs:
        (block,) = encoder.encode([paragraph])
        assert "".join(texts[number] for number in block[0]) == paragraph


def test_a_tokenizer_that_marks_words_still_has_its_spaces():
    texts = build_encoder("bundled:llama_bpe", "").texts()

    assert any(text.startswith(" ") and text[1:].isalpha() for text in texts)


def test_pairs_are_counted_by_class_and_expert():
    sent = numpy.array([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=bool)

    assert class_loads(ids_of(1, 0, 1, 1), sent, 2).tolist() == [[0, 1, 1], [2, 1, 0]]


def test_bits_by_hand_before_any_correction():
    # expert 0 takes a, a, b and expert 1 takes b: 1 + H(1/4) - H(2/4, 1/4, 1/4) bits
    found = information(ids_of(0, 0, 0, 1), ids_of(7, 7, 9, 9))

    assert found.plain == pytest.approx(1 + 0.8112781 - 1.5)
    # one more pair than tokens or experts less one have: (1 + 1 - 2) / (2 · 4 ln 2)
    assert found.bits == pytest.approx(found.plain)


def test_an_expert_that_the_token_decides_tells_its_whole_entropy():
    values = drawn(23)
    found = information(values % 5, values)

    assert found.as_record()["share"] == pytest.approx(1)
    assert found.expert_entropy == pytest.approx(numpy.log2(5), abs=0.02)
    assert abs(found.shuffled) < 0.002


def test_independent_choices_tell_nothing_although_the_plain_estimate_says_so():
    """(61 - 1)(8 - 1) / (2 · 6000 ln 2) bits are the bias of a plain estimate."""
    experts, values = drawn(8, 6000, seed=1), drawn(61, 6000, seed=2)
    found = information(experts, values)

    assert found.plain == pytest.approx(60 * 7 / (12_000 * numpy.log(2)), rel=0.3)
    assert abs(found.bits) < 0.01


def test_too_few_tokens_for_their_vocabulary_show_in_the_control():
    experts, values = drawn(8, 500, seed=1), drawn(4000, 500, seed=2)
    found = information(experts, values)

    assert found.bits - found.shuffled == pytest.approx(0, abs=0.2)
    assert found.shuffled > 0.5


def test_tokens_that_nobody_takes_are_left_out_and_counted():
    some = information(ids_of(0, NOBODY, 1, 0, NOBODY), ids_of(4, 4, 6, 4, 6))

    assert some.tokens == 3
    assert information(ids_of(NOBODY, NOBODY), ids_of(1, 2)) is None


def test_one_expert_for_all_tells_nothing_and_has_no_share():
    found = information(ids_of(2, 2, 2), ids_of(0, 1, 0)).as_record()

    assert (found["bits"], found["share"]) == (pytest.approx(0), None)


def batch(ids, first, experts=3, classes=6):
    loads = [numpy.ones((classes, experts), dtype=int)] * len(first)
    return Choices(numpy.array(ids), [numpy.array(layer) for layer in first], loads)


def test_batches_add_up_and_the_first_words_are_kept_with_their_experts():
    texts = [" the", "re", " 12", "."]
    described = describe(
        [
            batch([[0, 1], [2, 3]], [[0, 1, 2, NOBODY], [1, 1, 1, 1]]),
            batch([[0, 3]], [[0, 2], [1, 1]]),
        ],
        texts,
    )

    assert described["classes"][:2] == ["word start", "continuation"]
    assert described["tokens"] == [2, 1, 1, 2, 0, 0]
    assert [layer["without_expert"] for layer in described["layers"]] == [1, 0]
    assert described["layers"][0]["load"][0] == [2, 2, 2]
    assert described["passages"] == [
        {"tokens": [" the", "re"], "experts": [[0, 1], [1, 1]]},
        {"tokens": [" 12", "."], "experts": [[2, NOBODY], [1, 1]]},
    ]


def test_a_passage_ends_after_some_hundred_characters():
    ids = numpy.zeros((4, 250), dtype=int)
    described = describe([batch(ids, [numpy.zeros(1000, dtype=int)])], ["x", "y"])

    assert [len(passage["tokens"]) for passage in described["passages"]] == [250, 250, 100]


def test_a_layer_where_no_token_has_an_expert_is_void_not_zero():
    described = describe([batch([[0, 1]], [[0, 1], [NOBODY, NOBODY]])], ["a", "B"])

    assert all(metric.void for metric in information_metrics(described, "test").values())


def test_a_hash_router_tells_all_of_its_expert_and_a_random_one_less():
    ids = torch.from_numpy(drawn(71, 4000))
    router = Router("hash", 24, 8, 2, hash_seed=3).eval()
    told = _takers(router(torch.zeros(4000, 24), ids))
    found = information(told["first"].numpy(), ids.numpy())

    assert told["first"].tolist() == hashed_experts(ids, 8, 2, 3)[:, 0].tolist()
    assert found.as_record()["share"] == pytest.approx(1)
    assert (told["sent"].sum(dim=1) == 2).all()


def test_expert_choice_has_the_expert_of_the_largest_gate_first_or_nobody():
    torch.manual_seed(0)
    router = Router("expert_choice", 24, 8, 2).eval()
    routing = router(torch.randn(50, 24))
    told = _takers(routing)

    taken = routing.probs > router.threshold
    assert torch.equal(told["sent"], taken)
    largest = routing.probs.where(taken, 0).argmax(dim=1)
    assert torch.equal(told["first"], largest.where(taken.any(dim=1), NOBODY))
    assert not (taken.sum(dim=1) == 2).all()
