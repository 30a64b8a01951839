"""Reading, scoring and answering must not depend on padding, neighbours or batch size."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

from latentbridge.data.decoding import generate
from latentbridge.data.language_model import (
    hidden_states,
    kv_bytes_per_token,
    load_frozen,
    positions,
)
from latentbridge.data.scoring import answer_nll
from latentbridge.errors import ConfigError, PreflightError

PROMPTS = ["Kofi has 3 tiles.\nA: ", "A: ", "Zoe ties up 12 parcels of 7 figs each.\nA: "]
ANSWERS = ["3+4=7 #### 7", "12/3=4 #### 4", "2*2=4 4-3=1 #### 1"]


@pytest.fixture(scope="module", params=[("llama", "bpe", 4, 2), ("gpt2", "characters", 3)], ids=str)
def lm(request, tiny_lm):
    return tiny_lm(*request.param)


def read(lm, texts, padding="left"):
    ids, mask = lm.encode(texts, add_bos=True, padding=padding)
    return lm.embed(ids), mask


def test_answer_nll_equals_the_plain_library_loss(lm):
    answers = lm.encode(ANSWERS, add_bos=False, add_eos=True, padding="right")
    nll, count = answer_nll(lm, *read(lm, PROMPTS), *answers)

    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        before, _ = lm.encode([prompt], add_bos=True, padding="right")
        after, _ = lm.encode([answer], add_bos=False, add_eos=True, padding="right")
        ids = torch.cat([before, after], dim=1)
        labels = torch.cat([torch.full_like(before, -100), after], dim=1)
        plain = lm.model(input_ids=ids, labels=labels).loss

        assert count[row] == after.shape[1]
        torch.testing.assert_close(nll[row] / count[row], plain, rtol=1e-4, atol=1e-5)


def test_answer_nll_sends_gradient_to_the_prefix_and_none_to_padding(lm):
    embeds, mask = read(lm, PROMPTS)
    embeds = embeds.clone().requires_grad_()
    answers = lm.encode(ANSWERS, add_bos=False, padding="right")
    answer_nll(lm, embeds, mask, *answers)[0].sum().backward()

    assert embeds.grad.isfinite().all()
    assert (embeds.grad[mask].abs().sum(dim=-1) > 0).all()
    assert (embeds.grad[~mask] == 0).all()


def test_hidden_states_of_a_text_are_the_same_under_either_padding(lm):
    left_ids, left_mask = lm.encode(PROMPTS, add_bos=True, padding="left")
    right_ids, right_mask = lm.encode(PROMPTS, add_bos=True, padding="right")
    left = hidden_states(lm, left_ids, left_mask, layer=1)
    right = hidden_states(lm, right_ids, right_mask, layer=1)

    assert left.shape == (*left_ids.shape, 24)
    torch.testing.assert_close(left[left_mask], right[right_mask], rtol=1e-4, atol=1e-5)


def test_a_layer_that_does_not_exist_is_refused_and_never_becomes_the_last(lm):
    ids, mask = lm.encode(PROMPTS, add_bos=True, padding="right")

    assert torch.equal(hidden_states(lm, ids, mask, layer=-1), hidden_states(lm, ids, mask, layer=2))
    with pytest.raises(ConfigError, match=r"layer is 3.*-3\.\.2"):
        hidden_states(lm, ids, mask, layer=3)


def test_positions_count_real_tokens_only():
    mask = torch.tensor([[False, False, True, True], [True, True, True, False]])

    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_a_saved_model_loads_frozen_and_in_evaluation_mode(lm, tmp_path):
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    loaded = load_frozen(str(tmp_path), torch.float32, torch.device("cpu"))

    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert (loaded.hidden_size, loaded.num_layers) == (24, 2)
    assert generate(loaded, *read(loaded, PROMPTS), 8) == generate(lm, *read(lm, PROMPTS), 8)


def test_a_folder_that_holds_no_weights_is_reported_with_its_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    with pytest.raises(PreflightError, match=str(tmp_path)):
        load_frozen(str(tmp_path), torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        # both published models: the seed counted 0.5 MB, as if every query head had keys of its own
        ({"num_key_value_heads": 8, "head_dim": 128}, 131_072),
        ({"num_key_value_heads": 8, "head_dim": None}, 131_072),
        ({}, 524_288),
        ({"num_key_value_heads": 8, "head_dim": 64}, 65_536),
    ],
)
def test_a_token_takes_keys_and_values_of_the_key_heads_alone(heads, expected):
    config = SimpleNamespace(num_hidden_layers=32, num_attention_heads=32, hidden_size=4096, **heads)

    assert kv_bytes_per_token(config, 2) == expected


def test_the_bytes_of_a_cache_are_those_that_the_library_keeps(lm):
    cache = DynamicCache(config=lm.model.config)
    ids, mask = lm.encode([PROMPTS[2]], add_bos=True, padding="left")
    lm.model(input_ids=ids, attention_mask=mask.long(), past_key_values=cache, use_cache=True)

    kept = sum(block.nbytes for layer in cache.layers for block in (layer.keys, layer.values))
    assert kept == ids.shape[1] * lm.kv_bytes_per_token


def test_a_name_that_could_be_a_folder_says_that_the_hub_was_asked(monkeypatch, tmp_path):
    def away(*_, **__):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", away)

    with pytest.raises(PreflightError, match=f"No folder {tmp_path}/models/small, so the hub was asked"):
        load_frozen("models/small", torch.float32, torch.device("cpu"))
