import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentbridge.data import scoring
from latentbridge.data.assets import resolve_model
from latentbridge.data.language_model import FrozenLM, load_frozen
from latentbridge.data.scoring import answer_states, packed_answer_states, token_nll
from latentbridge.errors import PreflightError

PROMPTS, ANSWERS = ["Tom has 3 cards. A: ", "A: "], ["3+4=7\n#### 7", "1\n#### 1, and so on"]


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return load_frozen("bundled:llama_bpe", torch.float32, torch.device("cpu"))


class Head:
    """A frozen model that is an output layer only."""

    def __init__(self, head: nn.Linear) -> None:
        self.head = head


def test_token_nll_is_minus_log_of_the_tokens_probability():
    # probabilities 1/2 and 1/2;  3/4 and 1/4
    states = torch.tensor([[[0.0], [math.log(3)], [math.log(3)]]])
    head = nn.Linear(1, 2, bias=False)
    head.weight.data = torch.tensor([[1.0], [0.0]])

    nll = token_nll(Head(head), states, torch.tensor([[1, 0, 1]]))
    assert nll.tolist()[0] == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)])


@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradient_in_chunks_are_those_of_the_whole_logits(bias: bool, monkeypatch):
    monkeypatch.setattr(scoring, "_CHUNK", 4)
    torch.manual_seed(0)
    head = nn.Linear(6, 11, bias=bias).requires_grad_(False)
    states, ids = torch.randn(2, 5, 6, requires_grad=True), torch.randint(11, (2, 5))
    weights = torch.randn(2, 5)

    plain = F.cross_entropy(head(states).transpose(1, 2), ids, reduction="none")
    (expected,) = torch.autograd.grad((plain * weights).sum(), states)
    chunked = token_nll(Head(head), states, ids)
    (gradient,) = torch.autograd.grad((chunked * weights).sum(), states)

    assert torch.allclose(chunked, plain, atol=1e-6)
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_logits_exist_for_one_chunk_of_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(scoring, "_CHUNK", 4)
    widths: list[int] = []
    head = nn.Linear(6, 11)
    head.register_forward_hook(lambda _, inputs, __: widths.append(len(inputs[0])))

    token_nll(Head(head), torch.randn(2, 5, 6), torch.randint(11, (2, 5)))
    assert widths == [4, 4, 2]


def test_each_state_predicts_the_answer_token_after_it_whatever_the_padding(lm):
    """Labels shifted twice, or not at all, made void runs of 13."""
    before, mask = lm.encode(PROMPTS, add_bos=True, padding="left")
    ids, answer_mask = lm.encode(ANSWERS, add_bos=False, padding="right")
    states = answer_states(lm, lm.embed(before), mask, ids, answer_mask)

    assert states.shape == (*ids.shape, lm.hidden_size)
    for row in range(2):
        whole = torch.cat([before[row][mask[row]], ids[row][answer_mask[row]]])
        logits = lm.model(whole[None]).logits[0]
        count = int(answer_mask[row].sum())
        expected = logits[-count - 1 : -1]
        assert torch.allclose(lm.head(states[row, :count]), expected, atol=1e-3)


@pytest.mark.parametrize("pack", [4096, 20])
def test_packed_rows_say_what_padded_rows_say_with_the_same_gradient(lm, pack: int, monkeypatch):
    """Half of a batch of answers is padding; packed, nothing is computed for it."""
    monkeypatch.setattr(scoring, "_PACK", pack)
    text, mask = lm.encode(PROMPTS, add_bos=False, padding="left")
    ids, answer_mask = lm.encode(ANSWERS, add_bos=False, padding="right")
    soft = torch.randn(2, 3, lm.hidden_size)
    found = []
    for packed in (False, True):
        here = soft.clone().requires_grad_()
        before = torch.cat([here, lm.embed(text)], dim=1)
        if packed:
            lengths = [block.sum(dim=1).tolist() for block in (mask, answer_mask)]
            made = packed_answer_states(lm, before, 3, lengths[0], ids, lengths[1])
            assert made.rows.tolist() == [row for row in range(2) for _ in range(lengths[1][row])]
            states = torch.zeros(*ids.shape, lm.hidden_size)
            states = states.index_put((made.rows, made.columns), made.states)
        else:
            full = torch.cat([torch.ones(2, 3, dtype=torch.bool), mask], dim=1)
            states = answer_states(lm, before, full, ids, answer_mask) * answer_mask[..., None]
        (gradient,) = torch.autograd.grad(states.square().sum(), here)
        found.append((states.detach(), gradient))

    assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-3)


def test_a_family_whose_logits_are_more_than_a_product_is_refused(tmp_path: Path):
    from transformers import AutoTokenizer, CohereConfig, CohereForCausalLM

    config = CohereConfig(
        vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    CohereForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(resolve_model("bundled:llama_bpe")).save_pretrained(tmp_path)

    with pytest.raises(PreflightError, match="makes more of its last states than its output layer's product"):
        load_frozen(str(tmp_path), torch.float32, torch.device("cpu"))
