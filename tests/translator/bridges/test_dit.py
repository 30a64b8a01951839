from typing import Any

import pytest
import torch
from torch import Tensor

from latentbridge.nn.norm import rms
from latentbridge.translator.bridges import build_bridge
from latentbridge.translator.bridges.dit import DiTBridge
from latentbridge.translator.config import BridgeConfig, DiTConfig

B, S, Q, DS, DT = 2, 5, 3, 12, 20


def small_bridge(dit: dict[str, Any] | None = None, **changes: Any) -> DiTBridge:
    """Q=3, D=8, Ds=12, Dt=20, with its zero-initialised layers set, as after some training."""
    torch.manual_seed(0)
    sizes = {"kind": "dit", "soft_tokens": Q, "dim": 8, "depth": 2, "heads": 4}
    bridge = build_bridge(BridgeConfig(**{**sizes, **changes}, dit=DiTConfig(**(dit or {}))), DS, DT, 0.0107)
    assert isinstance(bridge, DiTBridge)
    for block in bridge.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.3)
    torch.nn.init.normal_(bridge.no_condition, std=0.3)
    return bridge


def states() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(B, S, DS), torch.tensor([[True] * S, [True, True, False, False, False]])


def noise(seed: int = 2) -> Tensor:
    return torch.randn(B, Q, DT, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("pool", "parameters"), [("mean", 60_873_728), ("attention", 128_003_072)])
def test_both_published_kinds_have_the_published_number_of_parameters(pool: Any, parameters: int):
    config = BridgeConfig(
        kind="dit", soft_tokens=2048, dim=512, depth=6, heads=8, dit=DiTConfig(pool=pool, drop_condition=0.1)
    )
    with torch.device("meta"):
        bridge = build_bridge(config, source_dim=4096, target_dim=4096, target_rms=0.0107)

    assert sum(parameter.numel() for parameter in bridge.parameters()) == parameters


def test_soft_tokens_depend_on_the_source_and_on_the_noise_and_have_the_targets_scale():
    bridge = small_bridge()
    hidden, mask = states()
    soft = bridge(hidden, mask, noise())

    assert torch.equal(bridge(hidden, mask, noise()), soft)
    assert not torch.allclose(bridge(hidden + 1, mask, noise()), soft)
    assert not torch.allclose(bridge(hidden, mask, noise(3)), soft)
    assert torch.allclose(rms(soft), torch.full((B, Q, 1), 0.0107))


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_padding_of_the_source_changes_nothing(pool: str):
    bridge = small_bridge({"pool": pool})
    hidden, mask = states()
    alone = bridge(hidden[1:, :2], mask[1:, :2], noise()[1:])
    hidden[~mask] += 3

    assert torch.allclose(bridge(hidden, mask, noise())[1:], alone, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_the_flow_error_reaches_every_parameter(pool: str):
    """The seed detached it, and never computed it in training: two teachers gave the same 75 losses (D4)."""
    bridge = small_bridge({"pool": pool, "drop_condition": 0.5})
    read = (*states(), noise(), (torch.randn(B, Q, DT), torch.ones(B, Q, dtype=torch.bool)))
    torch.manual_seed(0)  # one of the two rows loses its condition
    _, flow = bridge(*read)
    flow.sum().backward()

    assert flow.shape == (B,)
    assert [name for name, p in bridge.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_soft_tokens_send_gradient_through_every_step_of_the_flow():
    bridge = small_bridge()
    (bridge(*states(), noise()) * torch.randn(B, Q, DT)).sum().backward()

    missing = [
        n for n, p in bridge.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert missing == []
    assert not bridge.no_condition.requires_grad


def test_the_flow_error_counts_only_what_the_teacher_has():
    bridge = small_bridge()
    vectors = torch.randn(B, Q, DT)
    given = torch.tensor([[True, True, False], [False] * 3])
    errors = []
    for there in (vectors, torch.where(given[..., None], vectors, 9.0)):
        torch.manual_seed(4)
        errors.append(bridge(*states(), noise(), (there, given))[1])

    # the place of a vector that is not there is read, so only a row without any is exactly the same
    assert errors[0][1] == errors[1][1] == 0
    assert errors[0][0] > 0


def test_training_and_evaluation_take_their_own_number_of_steps():
    bridge = small_bridge({"train_sampling_steps": 1, "eval_sampling_steps": 3})
    calls: list[int] = []
    bridge.into.register_forward_hook(lambda *_: calls.append(1))

    bridge.train()(*states(), noise())
    assert len(calls) == 1
    bridge.eval()(*states(), noise())
    assert len(calls) == 1 + 3


def test_guidance_of_one_is_the_conditional_flow_and_more_goes_beyond_it():
    guided = {w: small_bridge({"guidance": w, "drop_condition": 0.1}) for w in (1.0, 2.5)}
    plain = small_bridge()(*states(), noise())

    assert torch.allclose(guided[1.0](*states(), noise()), plain, atol=1e-6)
    assert not torch.allclose(guided[2.5](*states(), noise()), plain, atol=1e-3)


def test_a_row_without_its_condition_learns_from_no_condition_alone():
    bridge = small_bridge({"drop_condition": 0.999999})
    torch.manual_seed(5)
    _, flow = bridge(*states(), noise(), (torch.randn(B, Q, DT), torch.ones(B, Q, dtype=torch.bool)))
    flow.sum().backward()

    assert bridge.no_condition.grad.any()
    assert not bridge.align.weight.grad.any()
