"""What the benchmark of shared experts tells about an update."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("phases")


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", "collectives"),
        (
            "void pytorch_flash::flash_bwd_kernel<Flash_bwd_kernel_traits<64, cutlass::bfloat16_t>>",
            "attention",
        ),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "products"),
        (
            "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<GemmUniversal>>",
            "products",
        ),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::exp_kernel_cuda>", "rest"),
        ("Memcpy DtoH (Device -> Pinned)", "rest"),
        ("gloo:all_to_all", "collectives"),
        ("aten::addmm", "products"),
        ("aten::baddbmm", "products"),
        ("aten::mul", "rest"),
    ],
)
def test_what_a_device_does_is_told_by_its_name(phases: ModuleType, kernel: str, kind: str) -> None:
    assert phases._kind(kernel) == kind


def test_a_device_is_idle_where_no_kernel_of_any_stream_runs(phases: ModuleType) -> None:
    assert phases._gaps([(7, 9), (0, 2), (1, 5), (1.5, 3), (12, 13)]) == 2 + 3


def test_a_phase_takes_its_mean_over_updates_and_not_what_lies_between_them(phases: ModuleType) -> None:
    clock = phases.Stopwatch()
    clock._marks = [0.0, 0.001, 0.005, 7.0, 7.003, 7.009]

    assert clock.milliseconds(2) == pytest.approx([2.0, 5.0])


def test_the_busiest_rank_is_found_in_every_layer_of_every_update(phases: ModuleType) -> None:
    busiest = importlib.import_module("expert_parallel").busiest
    # of four experts two a rank: 6 of a mean of 5, then 9, then 5
    loads = [torch.tensor([[4.0, 2.0, 1.0, 3.0], [1.0, 0.0, 9.0, 0.0]]), torch.tensor([[5.0, 0.0, 5.0, 0.0]])]

    assert busiest(loads, 2) == pytest.approx((1.2 + 1.8 + 1.0) / 3)
    assert busiest(loads, 1) == 1.0
