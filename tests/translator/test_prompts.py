import pytest
import torch

from latentbridge.data.language_model import load_frozen
from latentbridge.data.problems import prompt_text
from latentbridge.errors import ConfigError
from latentbridge.translator.losses import masked_mean
from latentbridge.translator.prompts import Prompts, Tokens, refuse_too_long, target_input

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(pair):
    return tuple(load_frozen(pair[name], torch.float32, CPU) for name in ("source", "target"))


def test_tokens_are_padded_on_the_side_asked_for_to_the_longest_row_taken():
    tokens = Tokens([[5, 6], [7], list(range(30, 42))], CPU)

    right, left = tokens.take([1, 0], "right"), tokens.take([1, 0], "left")
    assert right.values.tolist() == [[7, *[0] * 7], [5, 6, *[0] * 6]]
    assert left.values.tolist() == [[*[0] * 7, 7], [*[0] * 6, 5, 6]]
    assert right.mask.tolist() == [[True] + [False] * 7, [True] * 2 + [False] * 6]
    assert left.mask.tolist() == [[False] * 7 + [True], [False] * 6 + [True] * 2]


def test_widths_are_multiples_of_eight_but_never_more_than_any_row_needs():
    tokens = Tokens([[5, 6], [7], list(range(30, 42))], CPU)

    assert tokens.take([0, 2], "left").values.shape == (2, 12)
    assert Tokens([[4, 4, 4]], CPU).take([0, 0], "left").mask.all()


def test_the_target_reads_bos_then_soft_tokens_then_text(models):
    target = models[1]
    soft = torch.randn(2, 3, 20)
    text = Tokens([[5, 6], [7]], CPU).take([0, 1], "left")

    vectors, mask = target_input(target, soft, text)
    assert torch.equal(vectors[0], torch.cat([target.embedding[[1]], soft[0], target.embedding[[5, 6]]]))
    assert mask.tolist() == [[True] * 6, [True, True, True, True, False, True]]


def test_soft_only_shows_the_end_of_the_prompt_and_soft_plus_text_all_of_it(configure, models):
    config = configure()
    only = Prompts(config, "eval", *models)
    plus = Prompts(configure({"prompt_mode": "soft_plus_text"}), "eval", *models)
    tokenizer = models[1].tokenizer
    texts = [prompt_text(plus.problems[index], config.problems) for index in (4, 2)]

    assert tokenizer.batch_decode(only.visible([4, 2]).values) == ["A: ", "A: "]
    shown = plus.visible([4, 2])
    assert [tokenizer.decode(ids[mask]) for ids, mask in zip(*shown, strict=True)] == texts


def test_the_cut_prompt_has_as_many_question_tokens_as_there_are_soft_tokens(configure, models):
    prompts = Prompts(configure({"model.soft_tokens": 5}), "eval", *models)

    # the tiny target has one token a byte
    cut = models[1].tokenizer.decode(prompts.cut_prompt.take([0], "left").values[0])
    assert cut == prompts.problems[0].question[-5:] + "\nA: "


def test_answers_are_scored_with_their_end_of_text(configure, models):
    prompts = Prompts(configure(), "train", *models)
    ids = prompts.answer.take([3], "right").values

    assert models[1].tokenizer.decode(ids[0]) == prompts.problems[3].answer + "<eos>"


def test_info_nce_targets_differ_although_all_prompts_share_their_worked_examples(configure, models):
    """The seed pooled the first tokens of the prompt: the same eight examples for every row (D6)."""
    gsm8k = {"name": "gsm8k", "train_examples": 4, "eval_examples": 3, "few_shot": 8, "templates": "all"}
    prompts = Prompts(configure({"problems": gsm8k}), "train", *models)

    ids, mask = prompts.question.take([0, 1, 2, 3], "right")
    pooled = masked_mean(models[1].embed(ids), mask)
    assert torch.pdist(pooled).min() > 1e-3
    shared = prompts.prompt.take([0, 1, 2, 3], "right").values[:, :64]
    assert (shared == shared[0]).all()


def test_what_exceeds_a_models_positions_is_refused_before_training(models):
    refuse_too_long(models[0], 256, "source: a training prompt")
    with pytest.raises(
        ConfigError, match="a training prompt can take 257 tokens, but gpt2 has 256 positions"
    ):
        refuse_too_long(models[0], 257, "source: a training prompt")
