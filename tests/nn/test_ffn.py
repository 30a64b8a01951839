import torch
import torch.nn.functional as F

from latentbridge.nn.ffn import SwiGLU


def test_swiglu_multiplies_a_silu_gate_with_a_value_and_projects_back():
    ffn = SwiGLU(3, inner=5)
    x = torch.randn(2, 4, 3)
    (gate, value), (gate_bias, value_bias) = ffn.gate_value.weight.split(5), ffn.gate_value.bias.split(5)

    hidden = F.silu(x @ gate.T + gate_bias) * (x @ value.T + value_bias)
    assert torch.allclose(ffn(x), hidden @ ffn.down.weight.T + ffn.down.bias, atol=1e-6)


def test_default_width_is_eight_thirds_rounded_down():
    # floor(8 * 7 / 3) = 18
    assert SwiGLU(7).down.weight.shape == (7, 18)
