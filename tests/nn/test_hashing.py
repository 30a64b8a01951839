import torch

from latentbridge.nn.hashing import hashed_experts


def test_a_token_gets_distinct_experts():
    experts = hashed_experts(torch.arange(1000), num_experts=97, top_k=3, seed=0)

    assert all(len(set(row)) == 3 for row in experts.tolist())


def test_experts_depend_on_the_id_and_not_on_its_place():
    """The seed hashed positions: with 8 experts, the same 8 pairs over and over."""
    ids = torch.tensor([5, 9, 5, 1_000_003, 9])
    experts = hashed_experts(ids, num_experts=64, top_k=2, seed=0)

    assert experts[0].tolist() == experts[2].tolist() != experts[1].tolist() == experts[4].tolist()
    assert torch.equal(hashed_experts(ids.flip(0), 64, 2, seed=0), experts.flip(0))


def test_ids_spread_evenly_over_experts_and_pairs():
    experts = hashed_experts(torch.arange(56_000), num_experts=8, top_k=2, seed=0)

    # 14,000 a place and expert, 1,000 for each of the 56 ordered pairs; a fair draw deviates by 31
    pairs = torch.bincount(experts[:, 0] * 8 + experts[:, 1], minlength=64)
    assert pairs.view(8, 8).diagonal().sum() == 0
    assert (pairs[pairs > 0] - 1000).abs().max() < 150
    assert (pairs > 0).sum() == 56


def test_another_seed_gives_another_table():
    ids = torch.arange(800)
    same = hashed_experts(ids, 8, 1, seed=0) == hashed_experts(ids, 8, 1, seed=1)

    # 1 in 8 by chance
    assert 50 < same.sum() < 150
