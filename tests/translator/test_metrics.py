from typing import Any

import pytest

from latentbridge.metric import void
from latentbridge.translator.metrics import Sample, metrics_of

GOLD, WRONG, NONE = "1+1=2 #### 2", "1+1=3 #### 3", "no idea"
ANSWERS = {
    "bridged": GOLD,
    "shuffled_source": WRONG,
    "no_source": NONE,
    "source_alone": GOLD,
    "target_alone": GOLD,
    "cut_text": WRONG,
    "cascade": GOLD,
}
NLL = {
    "no_context": 3.0,
    "full_text": 1.0,
    "cut_text": 2.5,
    "bridged": 1.5,
    "shuffled_source": 3.5,
    "no_source": 3.0,
}


def sample(index: int = 0, gold: str = "2", nll: dict[str, float] | None = None, **answers: str) -> Sample:
    return Sample(
        index=index,
        prompt="One and one?\nA: ",
        solution=GOLD,
        gold=gold,
        question_tokens=6,
        prompt_tokens=9,
        nll={**NLL, **(nll or {})},
        answers={**ANSWERS, **answers},
    )


def measure(*samples: Sample, prompt_mode: Any = "soft_only") -> dict[str, Any]:
    return metrics_of(samples, soft_tokens=3, prompt_mode=prompt_mode)


def test_context_recovered_is_the_share_of_what_the_full_text_gains():
    # gains of the bridge: 1.5 of 2 and 0.5 of 1, together 2 of 3
    second = sample(1, nll={"no_context": 2.0, "bridged": 1.5, "cut_text": 2.0})
    metrics = measure(sample(), second)

    assert metrics["context_recovered"].value == pytest.approx(2 / 3)
    assert metrics["context_recovered_cut_text"].value == pytest.approx(0.5 / 3)
    # a control below no context at all is negative, not zero
    assert metrics["context_recovered_shuffled_source"].value == pytest.approx(-2 / 3)
    assert metrics["bridged_nll"].value == pytest.approx(1.5)


def test_without_a_gain_from_text_nothing_can_be_recovered_and_the_metric_is_void():
    metrics = measure(sample(nll={"full_text": 3.2}))

    assert metrics["context_recovered"] == void(
        "the target answers no better with the full text than with none", 1
    )


def test_accuracies_count_extracted_answers_that_equal_the_gold_one():
    metrics = measure(sample(0), sample(1, bridged=NONE), sample(2, bridged="#### 2."))

    accuracy = {name: metrics[f"{name}_accuracy"].value for name in ANSWERS}
    assert accuracy == pytest.approx(
        {
            "bridged": 1 / 3,
            "shuffled_source": 0,
            "no_source": 0,
            "source_alone": 1,
            "target_alone": 1,
            "cut_text": 0,
            "cascade": 1,
        }
    )


def test_an_answer_that_was_not_found_matches_nothing_not_even_an_invalid_gold():
    assert measure(sample(gold="[invalid]", bridged=NONE))["bridged_accuracy"].value == 0


def test_accuracies_are_left_out_where_nothing_was_generated_never_zero():
    silent = Sample(**{**vars(sample()), "answers": {}})

    assert not [name for name in measure(silent) if name.endswith("_accuracy")]


def test_compression_is_counted_in_text_tokens_per_soft_token_and_void_when_text_is_shown():
    metrics = measure(sample())

    assert (metrics["compression_question"].value, metrics["compression_prompt"].value) == (2.0, 3.0)
    assert measure(sample(), prompt_mode="soft_plus_text")["compression_question"].value is None


def test_a_record_starts_with_the_eleven_published_keys_in_their_order():
    record = sample(4, bridged=NONE).as_record("250")

    assert list(record)[:11] == [
        *("eval_step", "index", "question", "gold_full_text", "gold_extracted"),
        *("source_full", "source_extracted", "target_full", "target_extracted"),
        *("bridged_full", "bridged_extracted"),
    ]
    assert record["question"] == "One and one?\nA:"
    assert record["gold_full_text"] == "One and one?\nA: 1+1=2 #### 2"
    assert (record["bridged_extracted"], record["bridged_match"]) == ("[invalid]", False)
    assert (record["source_full"], record["source_extracted"], record["source_alone_match"]) == (
        GOLD,
        "2",
        True,
    )


def test_the_config_names_every_metric_of_the_final_evaluation(configure):
    assert set(configure().metric_names()) == set(measure(sample()))
