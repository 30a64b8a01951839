import math

import pytest
import torch

from latentbridge.translator.losses import info_nce_per_row, kl_per_token, masked_mean

HALF = [0.0, 0.0]
THREE_TO_ONE = [math.log(3.0), 0.0]  # probabilities 3/4 and 1/4


def test_kl_is_taken_from_the_teacher():
    teacher, student = torch.tensor([HALF, THREE_TO_ONE]), torch.tensor([THREE_TO_ONE, HALF])

    # 1/2 ln((1/2)/(3/4)) + 1/2 ln((1/2)/(1/4));  3/4 ln((3/4)/(1/2)) + 1/4 ln((1/4)/(1/2))
    expected = [0.5 * math.log(2 / 3) + 0.5 * math.log(2), 0.75 * math.log(1.5) + 0.25 * math.log(0.5)]
    assert kl_per_token(student, teacher).tolist() == pytest.approx(expected)


def test_masked_mean_leaves_padding_out():
    x = torch.tensor([[[2.0, 4.0], [4.0, 0.0], [99.0, 99.0]]])

    assert masked_mean(x, torch.tensor([[True, True, False]])).tolist() == [[3.0, 2.0]]


def test_info_nce_picks_each_rows_own_target_among_those_of_all_ranks():
    targets = torch.eye(3)
    soft = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.1]])  # near targets 1 and 2, at any length

    loss = info_nce_per_row(soft, targets, torch.tensor([1, 2]), temperature=0.5)
    # logits 2, 0, 0
    assert loss.tolist() == pytest.approx([math.log(1 + 2 * math.exp(-2))] * 2)
    assert info_nce_per_row(soft, targets, torch.tensor([0, 0]), temperature=0.5).min() > 2


def test_equal_targets_would_give_info_nce_nothing_to_learn_from():
    """What the seed's few-shot prefix did to its targets (D6); test_prompts checks that ours differ."""
    soft = torch.randn(4, 5, requires_grad=True)
    loss = info_nce_per_row(soft, torch.ones(4, 5), torch.arange(4), temperature=0.07).mean()
    loss.backward()

    assert loss.item() == pytest.approx(math.log(4))
    assert soft.grad.abs().max() < 1e-6
