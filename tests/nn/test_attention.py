import pytest
import torch
from torch import Tensor, nn

from latentbridge.nn.attention import MultiHeadAttention


def torch_reference(ours: MultiHeadAttention, dim: int, context_dim: int) -> nn.MultiheadAttention:
    """torch's own layer with the same weights."""
    key, value = ours.key_value.weight.split(dim)
    reference = nn.MultiheadAttention(dim, ours.heads, kdim=context_dim, vdim=context_dim, batch_first=True)
    state = {
        "q_proj_weight": ours.query.weight,
        "k_proj_weight": key,
        "v_proj_weight": value,
        "in_proj_bias": torch.cat([ours.query.bias, ours.key_value.bias]),
        "out_proj.weight": ours.out.weight,
        "out_proj.bias": ours.out.bias,
    }
    reference.load_state_dict({name: tensor.detach() for name, tensor in state.items()})
    return reference


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """B=2, Q=3, D=8; S=5, Dc=6; the second row has two real positions."""
    torch.manual_seed(1)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    return torch.randn(2, 3, 8), torch.randn(2, 5, 6), mask


def test_it_equals_torch_attention_with_its_own_key_width_and_padding():
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, heads=4, context_dim=6)
    x, context, mask = batch()

    expected, _ = torch_reference(attention, 8, 6)(x, context, context, key_padding_mask=~mask)
    assert torch.allclose(attention(x, context, mask), expected, atol=1e-6)


def test_what_is_masked_is_never_read():
    attention = MultiHeadAttention(8, heads=2, context_dim=6)
    x, context, mask = batch()
    before = attention(x, context, mask)
    context[~mask] += 3

    assert torch.equal(attention(x, context, mask), before)
    assert not torch.allclose(attention(x, context), before)


def test_attention_weights_are_dropped_in_train_mode_only():
    attention = MultiHeadAttention(8, heads=2, context_dim=6, dropout=0.5)
    x, context, mask = batch()

    assert not torch.equal(attention(x, context, mask), attention(x, context, mask))
    attention.eval()
    assert torch.equal(attention(x, context, mask), attention(x, context, mask))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim is 8; it must be a multiple of heads"):
        MultiHeadAttention(8, heads=3)
