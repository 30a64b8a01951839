import torch

from latentbridge.nn.dit import DiTBlock, TimeEmbedding


def test_a_new_block_changes_nothing_and_all_of_it_can_learn_once_its_gates_open():
    torch.manual_seed(0)
    block = DiTBlock(dim=8, heads=4)
    x, condition = torch.randn(2, 3, 8), torch.randn(2, 8)
    assert torch.equal(block(x, condition), x)

    torch.nn.init.normal_(block.modulation.weight)
    moved = block(x, condition)
    (moved * torch.randn_like(moved)).sum().backward()
    assert [name for name, p in block.named_parameters() if not p.grad.any()] == []


def test_each_row_is_steered_by_its_own_condition():
    block = DiTBlock(dim=8, heads=4)
    torch.nn.init.normal_(block.modulation.weight)
    x, condition = torch.randn(1, 3, 8).expand(2, -1, -1), torch.randn(2, 8)

    both = block(x, condition)
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    assert torch.allclose(both[1:], block(x[1:], condition[1:]), atol=1e-6)


def test_times_that_differ_by_a_hundredth_are_far_apart():
    """The seed left times in 0..1 unscaled: nearly all of its waves stood still."""
    torch.manual_seed(0)
    embed = TimeEmbedding(16)
    seen: list[torch.Tensor] = []
    embed.first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    embed(torch.tensor([0.50, 0.51]))

    (waves,) = seen
    assert waves.shape == (2, 16)
    # cos and sin of 500 and 510 first
    assert torch.allclose(waves[:, 0], torch.tensor([500.0, 510.0]).cos(), atol=1e-4)
    assert torch.allclose(waves[:, 8], torch.tensor([500.0, 510.0]).sin(), atol=1e-4)
    assert (waves[0] - waves[1]).abs().max() > 0.5
