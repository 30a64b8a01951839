from __future__ import annotations

import torch
import torch.nn.functional as F

from latentbridge.nn.short_convolution import ShortConvolution


def made() -> tuple[ShortConvolution, torch.Tensor]:
    torch.manual_seed(4)
    return ShortConvolution(3), torch.randn(2, 7, 3)


def test_two_channels_by_hand():
    layer = ShortConvolution(2, width=3)
    layer.taps.data = torch.tensor([[1.0, 10.0, 100.0], [0.0, 0.0, -1.0]])
    out, window = layer(torch.tensor([[[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]]]))

    assert torch.equal(out[0, :, 0], F.silu(torch.tensor([100.0, 210.0, 321.0, 432.0])))
    assert torch.equal(out[0, :, 1], F.silu(torch.tensor([-5.0, -6.0, -7.0, -8.0])))
    assert window.tolist() == [[[3.0, 7.0], [4.0, 8.0]]]


def test_it_is_the_depthwise_convolution_of_torch_padded_on_the_left():
    layer, x = made()
    expected = F.silu(F.conv1d(F.pad(x.mT, (3, 0)), layer.taps[:, None], groups=3)).mT

    assert torch.allclose(layer(x)[0], expected, atol=1e-6)


def test_no_token_changes_what_is_before_it_beside_it_or_in_another_channel():
    layer, x = made()
    other = x.clone()
    other[0, 2, 1] += 1
    change = (layer(other)[0] - layer(x)[0]).abs() > 1e-6

    assert change.nonzero().tolist() == [[0, t, 1] for t in (2, 3, 4, 5)]


def test_token_by_token_over_a_window_is_the_whole_at_once():
    layer, x = made()
    window = layer.start(2)
    outs = []
    for t in range(7):
        out, window = layer(x[:, t : t + 1], window)
        assert window.shape == (2, 3, 3)
        outs.append(out)

    whole, last = layer(x)
    assert torch.allclose(torch.cat(outs, dim=1), whole, atol=1e-6)
    assert torch.equal(window, last)


def test_a_single_tap_has_an_empty_window():
    torch.manual_seed(5)
    layer, x = ShortConvolution(3, width=1), torch.randn(2, 5, 3)
    out, window = layer(x)

    assert torch.equal(out, F.silu(x * layer.taps[:, 0]))
    assert window.shape == layer(x, window)[1].shape == (2, 0, 3)


def test_what_is_read_in_16_bits_after_a_first_window_stays_in_16_bits():
    layer, x = made()
    first, window = layer(x[:, :2].bfloat16(), layer.start(2))
    whole, _ = layer(x[:, :2].bfloat16())

    assert layer.taps.dtype == torch.float32
    assert first.dtype == window.dtype == torch.bfloat16
    assert torch.equal(first, whole)


def test_a_window_keeps_no_more_than_itself():
    layer, x = made()

    assert layer(x)[1].untyped_storage().nbytes() == 2 * 3 * 3 * 4
