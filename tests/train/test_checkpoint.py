from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from latentbridge.errors import RunError
from latentbridge.rundir import read_json
from latentbridge.train import checkpoint, distributed
from latentbridge.train.config import TrainConfig
from latentbridge.train.engine import Engine, TorchEngine, build_engine


@pytest.fixture
def engine(toy: Any) -> Engine:
    train = TrainConfig(steps=6, batch_size=4, engine="torch")
    return TorchEngine(toy.Model(dropout=0.0), toy.make_config().optim, train)


def _kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_last_is_one_complete_folder_and_older_ones_are_gone(tmp_path: Path, engine: Engine) -> None:
    for step in (2, 4, 6):
        checkpoint.save_last(tmp_path, engine, {"step": step})

    folders = [path.name for path in tmp_path.iterdir() if not path.is_symlink()]
    assert folders == [os.readlink(tmp_path / "last")]
    assert folders[0].startswith("last-6-")
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["engine.pt", "state.json"]
    assert checkpoint.read_last(tmp_path) == (tmp_path / folders[0], {"step": 6})


def test_a_run_without_a_checkpoint_has_no_state(tmp_path: Path) -> None:
    assert checkpoint.read_last(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("where", ["_sync_tree", "write_json", "_link"])
def test_a_crash_before_the_swap_leaves_the_checkpoint_before_it(
    tmp_path: Path, ranks: Any, engine: Engine, where: str
) -> None:
    checkpoint.save_last(tmp_path, engine, {"step": 2})

    def crash() -> None:
        setattr(checkpoint, where, _kill)
        checkpoint.save_last(tmp_path, engine, {"step": 4})

    ranks.until_killed(crash)
    assert read_json(tmp_path / "last" / "state.json") == {"step": 2}
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("last-")]) == 2

    checkpoint.tidy(tmp_path, best=None)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("last-")] == [
        os.readlink(tmp_path / "last")
    ]
    engine.load(tmp_path / "last")


def test_best_follows_what_last_remembers_after_a_crash_between_the_two(
    tmp_path: Path, engine: Engine
) -> None:
    names = [
        checkpoint.write_best(tmp_path, checkpoint.full_weights(engine.module), {"step": step})
        for step in (3, 6)
    ]
    checkpoint.link_best(tmp_path, names[0])
    # killed here: `last` remembers the second already
    checkpoint.tidy(tmp_path, names[1])

    assert read_json(tmp_path / "best" / "state.json")["step"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", names[1]]


def test_a_run_that_starts_anew_forgets_another_attempts_best(tmp_path: Path, engine: Engine) -> None:
    checkpoint.link_best(
        tmp_path, checkpoint.write_best(tmp_path, checkpoint.full_weights(engine.module), {"step": 3})
    )
    checkpoint.tidy(tmp_path, best=None)

    assert list(tmp_path.iterdir()) == []


def test_seed_fault_d2_best_is_a_copy_that_later_updates_do_not_reach(tmp_path: Path, engine: Engine) -> None:
    best = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    name = checkpoint.write_best(tmp_path, checkpoint.full_weights(engine.module), {"step": 3})
    engine.backward(engine.model(torch.ones(4, 5)).square().mean())
    engine.update(lr_factor=1.0)
    assert not torch.equal(engine.module.state_dict()["down.weight"], best["down.weight"])

    checkpoint.load_best(tmp_path, name, engine.module)
    assert all(torch.equal(tensor, best[name]) for name, tensor in engine.module.state_dict().items())


def test_a_damaged_best_is_refused(tmp_path: Path, engine: Engine) -> None:
    name = checkpoint.write_best(tmp_path, checkpoint.full_weights(engine.module), {"step": 3})
    weights = tmp_path / name / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)

    with pytest.raises(RunError, match=r"model\.safetensors: its SHA-256 is not the one in state\.json"):
        checkpoint.load_best(tmp_path, name, engine.module)


def test_weights_of_another_model_or_size_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3, 2)}, path)
    with pytest.raises(RunError, match="not the weights of Linear; unmatched: bias"):
        checkpoint.load_weights(nn.Linear(2, 3), path)

    with pytest.raises(RunError, match=r"weight is \(3, 2\), the model's is \(3, 5\)"):
        checkpoint.load_weights(nn.Linear(5, 3, bias=False), path)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor([2.0]))
        self.register_buffer("cache", torch.zeros(3), persistent=False)


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    source, target = Tied(), Tied()
    path = tmp_path / "model.safetensors"
    save_file(checkpoint.full_weights(source), path)
    checkpoint.load_weights(target, path)

    assert set(load_file(path)) == {"embedding.weight", "scale"}
    assert torch.equal(target.head.weight, source.embedding.weight)
    assert target.head.weight is target.embedding.weight


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_best_holds_the_full_weights_whatever_zero_split(
    tmp_path: Path, ranks: Any, toy: Any, zero_stage: int
) -> None:
    def write_spoil_and_read() -> tuple[bool, bool]:
        distributed.init()
        torch.manual_seed(1)
        config = toy.make_config(zero_stage=zero_stage)
        model = toy.Model(dropout=0.0)
        original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        engine = build_engine(model, config.optim, config.train)
        name = checkpoint.write_best(tmp_path, checkpoint.full_weights(engine.module), {"step": 3})
        checkpoint.link_best(tmp_path, name)
        engine.backward(engine.model(torch.ones(2, 5)).square().mean())
        engine.update(lr_factor=1.0)
        changed = checkpoint.full_weights(engine.module)
        checkpoint.load_best(tmp_path, name, engine.module)
        restored = checkpoint.full_weights(engine.module)
        same = [torch.equal(tensor, original[name]) for name, tensor in restored.items()]
        return all(same), any(torch.equal(changed[name], original[name]) for name in changed)

    assert ranks(write_spoil_and_read) == [(True, False), (True, False)]
    assert {name: tuple(t.shape) for name, t in load_file(tmp_path / "best" / "model.safetensors").items()}[
        "up.weight"
    ] == (7, 5)
