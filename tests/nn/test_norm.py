import pytest
import torch

from latentbridge.nn.norm import RMSNorm, match_rms, rms


def test_rms_norm_divides_by_the_root_mean_square_and_applies_its_weight():
    norm = RMSNorm(2)
    norm.weight.data = torch.tensor([1.0, 10.0])

    # mean of 9 and 16 is 12.5
    expected = torch.tensor([3.0, 40.0]) / 12.5**0.5
    assert torch.allclose(norm(torch.tensor([3.0, 4.0])), expected)


def test_rms_norm_does_not_damp_small_inputs_in_bf16():
    small = torch.full((1, 5), 0.01, dtype=torch.bfloat16)

    assert torch.allclose(RMSNorm(5).bfloat16()(small).float(), torch.ones(1, 5), atol=0.02)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 79.0, 1e4])
def test_matched_vectors_have_the_target_rms_however_far_away_they_were(scale: float):
    """The seed clamped the factor to 0.25..4 where 0.003 was needed (D5)."""
    x = scale * torch.randn(2, 3, 7)

    assert torch.allclose(rms(match_rms(x, 0.0027)), torch.full((2, 3, 1), 0.0027))


def test_matching_keeps_directions_and_trains_only_those():
    x = torch.randn(4, 6, requires_grad=True)
    matched = match_rms(x, 0.5)
    matched.sum().backward()

    assert torch.allclose(torch.cosine_similarity(matched, x), torch.ones(4))
    assert torch.allclose((x.grad * x).sum(-1), torch.zeros(4), atol=1e-6)
    assert x.grad.abs().max() > 0
