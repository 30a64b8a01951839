import pytest
import torch

from latentbridge.data.language_model import load_frozen
from latentbridge.data.problems import prompt_text
from latentbridge.errors import ConfigError
from latentbridge.translator.losses import masked_mean
from latentbridge.translator.prompts import Prompts, Tokens

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


CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_with_a_chat_template_both_models_read_one_turn_of_a_user(configure, models, monkeypatch):
    """The seed prompted two instruct models without their template."""
    for lm in models:
        monkeypatch.setattr(lm.tokenizer, "chat_template", CHAT)
    config = configure({"source.chat_template": True, "target.chat_template": True})
    prompts = Prompts(config, "eval", *models)
    source, target = (lm.tokenizer for lm in models)
    prompt = prompt_text(prompts.problems[2], config.problems)

    whole = prompts.source.take([2], "left")
    assert source.decode(whole.values[0][whole.mask[0]]) == f"<bos>[user]{prompt}[end][assistant]"
    # the soft tokens come where the user speaks
    assert target.decode(prompts.target_frame.opening) == "<bos>[user]"
    assert target.decode(prompts.visible([2]).values[0]) == "A: [end][assistant]"
    relayed = prompts.relayed(["4 + 4 = 8"], [2])
    assert target.decode(relayed.values[0][relayed.mask[0]]).endswith(" = 8\nA: [end][assistant]")


def test_a_tokenizer_without_a_chat_template_is_refused(configure, models):
    with pytest.raises(ConfigError, match=r"chat_template is true, but the tokenizer of .* has none"):
        Prompts(configure({"source.chat_template": True}), "eval", *models)


def test_an_answer_of_a_turn_of_its_own_starts_without_a_space(configure, models, monkeypatch):
    gsm8k = {"name": "gsm8k", "train_examples": 4, "eval_examples": 3, "few_shot": 1, "templates": "all"}
    plain = Prompts(configure({"problems": gsm8k}), "eval", *models)
    monkeypatch.setattr(models[1].tokenizer, "chat_template", CHAT)
    chat = Prompts(configure({"problems": gsm8k, "target.chat_template": True}), "eval", *models)
    first = [
        models[1].tokenizer.decode(prompts.answer.take([0], "right").values[0][:3])
        for prompts in (plain, chat)
    ]

    assert first == [" Ja", "Jan"]


def test_what_all_rows_begin_with_is_found_and_can_be_skipped():
    tokens = Tokens([[9, 8, 7, 1, 2], [9, 8, 7, 3], [9, 8, 7, 1, 5, 6]], CPU)

    assert tokens.shared.tolist() == [9, 8, 7]
    ids, mask = tokens.take([0, 1], "left", skip=3)
    assert (ids[:, -2:].tolist(), mask[:, -2:].tolist()) == ([[1, 2], [0, 3]], [[True, True], [False, True]])
    # one token of every row is left to itself
    assert Tokens([[4, 4, 4], [4, 4]], CPU).shared.tolist() == [4]
