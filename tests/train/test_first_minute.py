from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latentbridge.rundir import RunDir, read_json, read_jsonl, write_json
from latentbridge.train import loop, recorded
from latentbridge.train.first_minute import FIRST_MINUTE
from latentbridge.train.loop import LossTerm


@pytest.fixture
def heavy(toy: Any) -> type:
    class Heavy(toy.Workload):  # type: ignore[misc,name-defined]
        """The toy, whose last examples are the heaviest."""

        def heaviest(self, count: int) -> Sequence[int]:
            self.tried = [count]
            return range(self.num_examples - count, self.num_examples)

        def heaviest_steps(self, steps: int) -> Sequence[int]:
            return [1, steps]

        def evaluate_heaviest(self, model: nn.Module) -> None:
            assert not self.model.training and not torch.is_grad_enabled()
            model(self.inputs)

    return Heavy


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a device to fill up."""
    monkeypatch.setattr(loop._Loop, "_is_tried_out", lambda self: not self.run.leaves_out(FIRST_MINUTE))


def curve(folder: Path) -> list[tuple[float, float]]:
    return [(record["loss"], record["grad_norm"]) for record in read_jsonl(RunDir(folder).train_log)]


def found(folder: Path) -> dict[str, Any]:
    return dict(read_json(RunDir(folder).first_minute))


@pytest.mark.parametrize(
    "engine", [{"engine": "torch"}, {"zero_stage": 1}, {"zero_stage": 2}, {"zero_stage": 3}]
)
def test_trying_everything_out_changes_nothing_that_follows(
    ranks: Any, toy: Any, heavy: type, on_gpu: None, tmp_path: Path, engine: dict[str, Any]
) -> None:
    config = toy.make_config(**engine)
    ranks(toy.run, tmp_path / "tried", config, heavy(dropout=0.3))
    ranks(toy.run, tmp_path / "plain", config, toy.Workload(dropout=0.3))

    assert curve(tmp_path / "tried") == curve(tmp_path / "plain")
    assert list(found(tmp_path / "tried")) == ["update", "evaluation", "checkpoint"]
    assert not RunDir(tmp_path / "plain").first_minute.exists()
    assert not list((tmp_path / "tried" / "checkpoints").glob("first*"))


def test_a_term_that_trains_nothing_ends_the_run_before_its_first_update(
    ranks: Any, toy: Any, heavy: type, on_gpu: None, tmp_path: Path
) -> None:
    class Constant(heavy):  # type: ignore[misc,valid-type]
        def losses(self, model: nn.Module, batch: Any, step: int) -> dict[str, LossTerm]:
            terms = super().losses(model, batch, step)
            return terms | {"size": LossTerm(terms["size"].value * 0.0, 0.01)}

    with pytest.raises(
        pytest.fail.Exception, match=r"losses.size weighs 0.01, but has no gradient and trains nothing"
    ):
        ranks(toy.run, tmp_path / "run", toy.make_config(engine="torch"), Constant(), world_size=1)
    assert not RunDir(tmp_path / "run").train_log.exists()


def test_a_run_that_goes_on_tries_nothing_out_again(
    ranks: Any, toy: Any, heavy: type, on_gpu: None, tmp_path: Path
) -> None:
    ranks(toy.run, tmp_path / "run", toy.make_config(engine="torch", steps=2), heavy(), world_size=1)
    RunDir(tmp_path / "run").first_minute.unlink()
    ranks(toy.run, tmp_path / "run", toy.make_config(engine="torch", steps=4), heavy(), world_size=1)

    assert not RunDir(tmp_path / "run").first_minute.exists()


def test_it_can_be_left_out_and_the_manifest_says_so(
    ranks: Any, toy: Any, heavy: type, on_gpu: None, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "manifest.json", {"rehearsal": {"checks": {}, "off": ["first_minute"]}})
    ranks(toy.run, tmp_path / "run", toy.make_config(engine="torch"), heavy(), world_size=1)

    assert not RunDir(tmp_path / "run").first_minute.exists()


def test_what_forwards_remember_is_forgotten_and_figures_without_a_weight_are_let_be(
    ranks: Any, toy: Any, heavy: type, on_gpu: None, tmp_path: Path
) -> None:
    """A router's load is a buffer, and a share of dropped tokens a figure that has no gradient."""

    class Remembering(heavy):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.model.register_buffer("seen", torch.zeros(()))

        def losses(self, model: nn.Module, batch: Any, step: int) -> dict[str, LossTerm]:
            self.model.seen += 1
            return super().losses(model, batch, step) | {"share": LossTerm(torch.tensor(0.5), 0.0)}

        def evaluate(self, model: nn.Module, step: int, label: str) -> Any:
            assert label == "final" or float(self.model.seen) == step
            return super().evaluate(model, step, label)

    ranks(toy.run, tmp_path / "run", toy.make_config(engine="torch"), Remembering(), world_size=1)

    assert list(found(tmp_path / "run")) == ["update", "evaluation", "checkpoint"]


def test_a_compiled_part_that_gives_its_gradient_once_is_tried_out(
    ranks: Any, toy: Any, heavy: type, on_gpu: None, tmp_path: Path
) -> None:
    """Asked twice, after it was compiled for one time, it ended the run."""
    part = torch.compile(lambda x: x.sin().exp().sin(), backend="aot_eager", dynamic=False)

    class Compiled(heavy):  # type: ignore[misc,valid-type]
        def heaviest(self, count: int) -> Sequence[int]:
            once = torch.ones((), requires_grad=True)
            torch.autograd.grad(part(once), once)
            return super().heaviest(count)

        def losses(self, model: nn.Module, batch: Any, step: int) -> dict[str, LossTerm]:
            terms = super().losses(model, batch, step)
            total = part(sum(term.value for term in terms.values()))
            return {name: LossTerm(total + term.value, term.weight) for name, term in terms.items()}

    ranks(toy.run, tmp_path / "run", toy.make_config(engine="torch"), Compiled(), world_size=1)

    assert list(found(tmp_path / "run")) == ["update", "evaluation", "checkpoint"]


def test_what_is_compiled_is_weighed_as_it_will_run(
    ranks: Any, toy: Any, heavy: type, on_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uncompiled it takes twice the memory: what would have fitted was refused."""

    class Compiled(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.module(x)
            return scores

    @dataclass(frozen=True)
    class Batch:
        numbers: torch.Tensor

    class Fixed(heavy):  # type: ignore[misc,valid-type]
        def load_batch(self, indices: Sequence[int]) -> Batch:
            return Batch(torch.tensor(indices))

        def begin_update(self, step: int) -> None:
            pass

        def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, LossTerm]:
            return self.fixed_losses(model, batch)

        def fixed_losses(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
            assert isinstance(model, Compiled)
            return super().losses(lambda x: model(x.bfloat16()).float(), batch.numbers, 1)  # type: ignore[no-any-return]

        def evaluate(self, model: nn.Module, step: int, label: str) -> Any:
            assert not isinstance(model, Compiled)
            return super().evaluate(lambda x: model(x.bfloat16()).float(), step, label)

        def evaluate_heaviest(self, model: nn.Module) -> None:
            model(self.inputs.bfloat16())

    monkeypatch.setattr(recorded, "compiled", Compiled)
    config = toy.make_config(engine="torch", precision="bf16", recorded=True)
    ranks(toy.run, tmp_path / "run", config, Fixed(), world_size=1)

    assert list(found(tmp_path / "run")) == ["update", "evaluation", "checkpoint"]
    assert len(curve(tmp_path / "run")) == 6
