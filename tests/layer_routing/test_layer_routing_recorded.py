"""Recorded updates of layers that read by gated delta, by softmax, or by both: what they need, and change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flexing import flex_on_cpu
from torch.utils._python_dispatch import TorchDispatchMode

from latentbridge.job import Run
from latentbridge.layer_routing import train as train_module
from latentbridge.layer_routing.train import train
from latentbridge.nn import products
from latentbridge.nn.backend import Backend
from latentbridge.rundir import RunDir, read_jsonl

STATIC = {"mixers": ["gdn", "gdn", "gdn", "softmax"]}
DENSE = {"routing.compute": "dense"}
# widths that the grouped kernel takes
SPARSE = {"gdn.value_width": 8}
BOTH = {"routing": {"compute": "dense", "router_gradient": "both"}}
# a host that read these would wait for the device, which no graph can hold, and sizes would follow from data;
# what is lifted is a number of the host's, which would be copied there
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh")


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products by the grouped kernel, and attention by blocks; torch refuses the latter's gradients here."""
    flex_on_cpu(monkeypatch)
    monkeypatch.setattr(products, "_kernel_takes", lambda *given: True)
    monkeypatch.setattr(train_module, "choose_reader", lambda *given: Backend("by_blocks", ""))


class NoReads(TorchDispatchMode):
    # flex_attention is one
    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in READS), f"{func} reads the device"
        indices = (
            args[1] if str(func).startswith(("aten.index.", "aten.index_put", "aten._index_put")) else ()
        )
        chosen = [index.dtype for index in indices if index is not None]
        assert torch.bool not in chosen, f"{func} counts what a mask chooses"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", [STATIC, DENSE, BOTH, SPARSE])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_an_update_reads_nothing_back_and_makes_all_of_it_on_the_device(make, changes):
    """A device without numbers has nothing to read, and no tensor of another goes with one of its own."""
    workload = make(**changes)
    workload.model.to("meta", torch.bfloat16).train()
    batch = workload.load_batch([0, 1, 2])
    there = replace(batch, blocks=batch.blocks.to("meta"))
    workload.begin_update(1)
    with NoReads():
        terms = workload.fixed_losses(workload.model, there)
        total = sum(term.weight * term.value for term in terms.values())
        found = torch.autograd.grad(total, list(workload.model.parameters()))

    assert {gradient.device.type for gradient in found} == {"meta"}


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_model_of_every_mixer_is_one_graph_to_a_compiler(make):
    workload = make(**SPARSE)
    model, blocks = workload.model.bfloat16().train(), workload.load_batch([0, 1, 2]).blocks
    torch._dynamo.reset()
    quick = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    found = []
    for call in (model, quick):
        torch.manual_seed(1)
        found.append(call(blocks).total)

    torch.testing.assert_close(*found)


@pytest.mark.parametrize("changes", [STATIC, DENSE, SPARSE])
def test_recorded_updates_are_the_plain_ones(ranks, config_of, tmp_path: Path, changes):
    losses = []
    for recorded in (True, False):
        folder = tmp_path / f"recorded_{recorded}" / "run"
        folder.mkdir(parents=True)
        settings = {"train.precision": "bf16", "train.recorded": recorded, "train.steps": 4, **changes}
        ranks(train, config_of(**settings), Run(RunDir(folder)), world_size=1)
        losses.append([(log["loss"], log["losses"]) for log in read_jsonl(folder / "train.jsonl")])

    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
