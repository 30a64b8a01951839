from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType

import pytest
import torch

from latentbridge.nn import gated_delta_backend
from latentbridge.nn.gated_delta import gated_delta_rule
from latentbridge.nn.gated_delta_backend import choose_backend, error_of, rule_of

CUDA, CPU, WIDTHS = torch.device("cuda"), torch.device("cpu"), (5, 7)


@pytest.fixture
def installed(monkeypatch):
    """fla as if it were here, on a card and with a Triton of a test's choice; the card is this processor."""
    calls = []
    monkeypatch.setattr(gated_delta_backend, "against_kernels", lambda device, dtype: None)

    def rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
        calls.append((scale, output_final_state))
        return gated_delta_rule(q, k, v, g, beta, state=initial_state)

    def install(capability: tuple[int, int], triton: str, rule=rule) -> list:
        for name in ("fla", "fla.ops", "fla.ops.gated_delta_rule"):
            module = ModuleType(name)
            module.__path__ = []
            module.chunk_gated_delta_rule = rule
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        versions = {"triton": triton, "flash-linear-attention": "0.5.2"}
        monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
        return calls

    return install


def test_without_cuda_16_bits_or_the_package_it_is_torch_and_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)

    assert choose_backend(CPU, torch.bfloat16, WIDTHS) == ("torch", "kernels run on CUDA, and this is cpu")
    assert "these are torch.float32" in choose_backend(CUDA, torch.float32, WIDTHS).reason
    name, reason = choose_backend(CUDA, torch.bfloat16, WIDTHS)
    assert name == "torch" and "flash-linear-attention is not to be had" in reason
    assert "our kernel does not run: " in reason


@pytest.mark.parametrize(("error", "name"), [(0.003, "triton"), (0.03, "torch"), (float("nan"), "torch")])
def test_our_kernel_is_used_where_it_agrees_with_the_recurrence(monkeypatch, error: float, name: str):
    """fla's gradients were wrong on one card by one version of Triton, and nothing said so."""
    monkeypatch.setitem(sys.modules, "fla", None)
    monkeypatch.setattr(gated_delta_backend, "error_of", lambda *given: error)
    found = choose_backend(CUDA, torch.bfloat16, WIDTHS)

    assert found.name == name
    assert f"{error:.1e}" in found.reason


def test_a_wrong_gradient_is_an_error_and_a_right_one_is_a_rounding():
    def wrong(q, k, v, log_decay, beta):
        # the output stays as it is
        return gated_delta_rule(q, k, v, log_decay + 0.1 * (log_decay.detach() - log_decay), beta)

    assert error_of(gated_delta_rule, CPU, torch.bfloat16, WIDTHS) < 0.01
    assert error_of(wrong, CPU, torch.bfloat16, WIDTHS) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("capability", "triton", "name"),
    [
        ((9, 0), "3.3.1", "fla"),
        ((9, 0), "3.4.0", "torch"),
        ((9, 0), "3.7.0+git1", "torch"),
        ((9, 0), "3.7.1", "fla"),
        ((9, 0), "3.10.0", "fla"),
        ((8, 0), "3.5.0", "fla"),
    ],
)
def test_fla_is_not_used_where_its_gradients_are_wrong(installed, capability, triton, name):
    installed(capability, triton)
    found = choose_backend(CPU, torch.bfloat16, WIDTHS)

    assert found.name == name
    assert (triton if name == "torch" else "flash-linear-attention 0.5.2") in found.reason


def wrong_output(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
    out, last = gated_delta_rule(q, k, v, g, beta, state=initial_state)
    return 1.1 * out, last


def wrong_gradient(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
    # the output stays as it is
    return gated_delta_rule(q, k, v, g + 0.1 * (g.detach() - g), beta, state=initial_state)


def refusing(*given, **more):
    raise RuntimeError("no kernel for this width")


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (wrong_output, "flash-linear-attention 0.5.2 is wrong here, by 1.0e-01"),
        (wrong_gradient, "flash-linear-attention 0.5.2 is wrong here, by "),
        (refusing, "flash-linear-attention 0.5.2 does not run: RuntimeError: no kernel for this width"),
    ],
)
def test_fla_stands_the_test_that_our_kernel_stands_or_ours_is_asked(installed, monkeypatch, rule, why):
    """A version that no list knows of."""
    installed((9, 0), "3.8.0", rule)
    found = choose_backend(CPU, torch.bfloat16, WIDTHS)

    assert found.name == "torch"
    assert found.reason.startswith(why)
    assert "; our kernel does not run: " in found.reason

    monkeypatch.setattr(
        gated_delta_backend, "rule_of", lambda name: rule if name == "fla" else gated_delta_rule
    )
    assert choose_backend(CPU, torch.bfloat16, WIDTHS).name == "triton"


def test_every_tensor_goes_to_fla_under_its_own_name(installed):
    calls = installed((9, 0), "3.7.1")
    torch.manual_seed(3)
    q, k, v = torch.randn(2, 9, 3, 5), torch.randn(2, 9, 3, 5), torch.randn(2, 9, 3, 7)
    k = torch.nn.functional.normalize(k, dim=-1)
    given = q, k, v, -torch.rand(2, 9, 3), torch.rand(2, 9, 3)
    state = torch.randn(2, 3, 5, 7)
    for found, expected in zip(
        rule_of("fla")(*given, state=state), rule_of("torch")(*given, state=state), strict=True
    ):
        assert torch.equal(found, expected)
    # its own scale is 1 / sqrt(K) too
    assert calls == [(None, True)]
