import pytest
import torch

from latentbridge.data.language_model import FrozenLM, causal_mask, hidden_states, load_frozen, positions
from latentbridge.data.prefix import Prefix
from latentbridge.data.scoring import answer_states

SHARED, OWN = "Tom has 3 cards. ", ["How many? A: ", "A: "]


@pytest.fixture(scope="module", params=["bundled:llama_bpe", "bundled:gpt2_char"])
def lm(request) -> FrozenLM:
    return load_frozen(request.param, torch.float32, torch.device("cpu"))


def encode(lm: FrozenLM, texts: list[str], **words: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return lm.encode(texts, add_bos=words.get("add_bos", False), padding="right")


def test_what_follows_a_prefix_is_read_as_if_both_had_been_read_together(lm):
    prefix = Prefix(lm, encode(lm, [SHARED], add_bos=True)[0][0])
    ids, mask = encode(lm, OWN)
    read = prefix.read(lm.embed(ids), mask, every_layer=True)

    for row, text in enumerate(OWN):
        whole = torch.cat([encode(lm, [SHARED], add_bos=True)[0], encode(lm, [text])[0]], dim=1)
        count = int(mask[row].sum())
        for layer in (0, 2, -1):
            expected = hidden_states(lm, whole, torch.ones_like(whole, dtype=torch.bool), layer)[0]
            assert torch.allclose(prefix.states[layer], expected[:-count], atol=1e-4)
            assert torch.allclose(read.hidden_states[layer][row, :count], expected[-count:], atol=1e-4)


def test_an_answer_after_a_prefix_is_scored_as_after_the_whole_text_with_its_gradient(lm):
    start, _ = encode(lm, [SHARED], add_bos=True)
    ids, mask = lm.encode(OWN, add_bos=False, padding="left")
    answer = encode(lm, ["3+4=7", "12"])
    embeds = lm.embed(ids).clone().requires_grad_()
    found = answer_states(lm, embeds, mask, *answer, after=Prefix(lm, start[0]))
    (gradient,) = torch.autograd.grad((found * answer[1][..., None]).square().sum(), embeds)

    again = lm.embed(ids).clone().requires_grad_()
    # the prefix comes after the padding of the shorter row, so rows are read one by one
    rows = []
    for row in range(2):
        both = torch.cat([lm.embed(start), again[row : row + 1, ~mask[row].logical_not()]], dim=1)
        full = torch.ones(both.shape[:2], dtype=torch.bool)
        rows.append(answer_states(lm, both, full, *(block[row : row + 1] for block in answer))[0])
    expected = torch.stack(rows)
    (wanted,) = torch.autograd.grad((expected * answer[1][..., None]).square().sum(), again)

    assert torch.allclose(found[answer[1]], expected[answer[1]], atol=1e-4)
    assert torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-3)


def test_a_token_reads_what_is_before_it_and_padding_reads_itself():
    mask = torch.tensor([[False, True, True], [True, True, False]])

    assert causal_mask(mask)[:, 0].int().tolist() == [
        [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
    ]
    assert causal_mask(mask, before=2)[:, 0, :, :2].all()
    assert positions(mask).shape == mask.shape
