import pytest
import torch
from torch import Tensor

from latentbridge.nn.flow import flow_error_per_row, integrate


def test_a_straight_flow_arrives_at_its_data_in_any_number_of_steps():
    noise, data = torch.randn(2, 3, 8), torch.randn(2, 3, 8)

    for steps in (1, 2, 5):
        assert torch.allclose(integrate(lambda x, t: data - noise, noise, steps), data, atol=1e-5)


def test_steps_are_taken_from_where_they_start():
    """Euler steps begin at time 0; the seed's began one step late."""
    times: list[list[float]] = []

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        times.append(time.tolist())
        return x

    # dx/dt = x from 1: (1 + 1/4)^4
    end = integrate(velocity, torch.ones(2, 1, 1), steps=4)
    assert times == [[0.0] * 2, [0.25] * 2, [0.5] * 2, [0.75] * 2]
    assert end.flatten().tolist() == pytest.approx([1.25**4] * 2)


def test_the_error_is_taken_on_the_line_and_is_zero_for_the_velocity_along_it():
    noise, data = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    time, mask = torch.tensor([0.25, 0.75]), torch.ones(2, 3, dtype=torch.bool)
    seen: list[Tensor] = []

    def right(x: Tensor, _: Tensor) -> Tensor:
        seen.append(x)
        return data - noise

    assert flow_error_per_row(right, noise, data, mask, time).tolist() == [0.0, 0.0]
    assert torch.allclose(seen[0][0], 0.75 * noise[0] + 0.25 * data[0])
    assert torch.allclose(seen[0][1], 0.25 * noise[1] + 0.75 * data[1])


def test_places_without_data_do_not_count():
    noise, data = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    mask = torch.tensor([[True, False, True], [False] * 3])
    wrong = torch.tensor([2.0, 9.0, 4.0])[None, :, None].expand(2, 3, 4)

    error = flow_error_per_row(lambda x, t: wrong, noise, data, mask, torch.tensor([0.5, 0.5]))
    assert error.tolist() == [(4 + 16) / 2, 0.0]
