"""Ranks that share one set of experts train, save and evaluate what ranks that each hold all do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentbridge.config import Origin, Tree, build
from latentbridge.errors import ConfigError, RunError
from latentbridge.job import Run
from latentbridge.lm.mixture import MixtureLm, train
from latentbridge.lm.mixture_config import MixtureLmConfig
from latentbridge.rundir import RunDir, read_json, read_jsonl
from latentbridge.train import loop
from latentbridge.train.checkpoint import load_weights
from latentbridge.train.loop import begin, fit

TINY = {
    "seed": 5,
    "text": {"context": 11, "eval_tokens": 77},
    "model": {"dim": 24, "layers": 2, "heads": 3, "ffn_mult": 2},
    "mixture": {"num_experts": 4},
    "optim": {"lr": 1e-2, "weight_decay": 0.1, "clip_norm": 1.43},
    "train": {"engine": "torch", "steps": 5, "batch_size": 4, "log_every": 1, "eval_every": 5},
    "eval": {"batch_size": 3},
}
ENGINES: dict[str, dict[str, Any]] = {
    "torch": {"train.engine": "torch"},
    **{f"zero {stage}": {"train": {"engine": "deepspeed", "zero_stage": stage}} for stage in (0, 1, 2)},
}
BF16: dict[str, dict[str, Any]] = {
    "torch bf16": {"train": {"engine": "torch", "precision": "bf16"}},
    **{
        f"zero {stage} bf16": {"train": {"engine": "deepspeed", "zero_stage": stage, "precision": "bf16"}}
        for stage in (1, 2)
    },
}
SHARED = {"mixture.expert_parallel": 2}


def config_of(*changes: dict[str, Any]) -> MixtureLmConfig:
    origins = {(): Origin("test.yaml", 1)}
    tree = Tree(TINY, origins)
    for change in changes:
        tree = tree.override(Tree(change, origins))
    return build(MixtureLmConfig, tree)


class Trained:
    """A run of these settings: what it logged, what it wrote and what came out."""

    def __init__(self, ranks: Any, folder: Path, *changes: dict[str, Any], world_size: int = 2) -> None:
        folder.mkdir(parents=True)
        self.folder = RunDir(folder)
        self.final = ranks(_train, config_of(*changes), folder, world_size=world_size)[0]["final"]
        self.curve = [[record["loss"], record["grad_norm"]] for record in read_jsonl(self.folder.train_log)]
        self.best = folder / "checkpoints" / "best" / "model.safetensors"


def _train(config: MixtureLmConfig, folder: Path) -> Any:
    return train(config, Run(RunDir(folder)))


@pytest.fixture(scope="module")
def whole(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Every rank holds all experts."""
    return Trained(ranks, tmp_path_factory.mktemp("whole") / "launch" / "run")


@pytest.fixture(scope="module")
def shared(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(ranks, tmp_path_factory.mktemp("shared") / "launch" / "run", SHARED, ENGINES["zero 1"])


@pytest.mark.parametrize(
    ("engine", "world_size", "expert_parallel"),
    [
        *((engine, 2, 2) for engine in ENGINES),
        ("torch", 4, 2),
        ("zero 0", 4, 2),
        ("zero 2", 4, 2),
        ("zero 1", 4, 4),
    ],
)
def test_shared_experts_train_as_whole_ones_do(
    ranks: Any, tmp_path: Path, whole: Trained, engine: str, world_size: int, expert_parallel: int
) -> None:
    """Losses, the norm of all gradients, by which they are clipped, and every weight, experts' too."""
    sharing = {"mixture.expert_parallel": expert_parallel}
    found = Trained(ranks, tmp_path / "launch" / "run", ENGINES[engine], sharing, world_size=world_size)

    assert torch.tensor(found.curve) == pytest.approx(torch.tensor(whole.curve), rel=1e-5)
    assert {norm > 1.43 for _, norm in whole.curve} == {True, False}
    expected = load_file(whole.best)
    for name, weights in load_file(found.best).items():
        torch.testing.assert_close(weights, expected.pop(name), rtol=1e-3, atol=1e-4)
    assert not expected


@pytest.mark.parametrize("engine", BF16)
def test_in_bf16_they_do_to_its_own_precision(ranks: Any, tmp_path: Path, engine: str) -> None:
    one, two = (
        Trained(ranks, tmp_path / name / "run", BF16[engine], sharing)
        for name, sharing in (("whole", {}), ("shared", SHARED))
    )

    assert torch.tensor(two.curve) == pytest.approx(torch.tensor(one.curve), rel=3e-2)


@pytest.mark.parametrize(
    "kind",
    [
        {"mixture.dispatch": {"kind": "padded", "capacity_factor": 0.8}},
        {"mixture": {"router.strategy": "expert_choice", "balance.weight": 0.0}},
        {"mixture.router.strategy": "bias_balanced"},
        {"train.micro_batch_size": 1},
    ],
    ids=str,
)
def test_routing_of_all_kinds_trains_the_same(ranks: Any, tmp_path: Path, kind: dict[str, Any]) -> None:
    one = Trained(ranks, tmp_path / "whole" / "run", kind)
    two = Trained(ranks, tmp_path / "shared" / "run", kind, SHARED, ENGINES["zero 1"])

    assert torch.tensor(two.curve) == pytest.approx(torch.tensor(one.curve), rel=1e-5)
    for name, metric in one.final.items():
        assert two.final[name]["value"] == pytest.approx(metric["value"], rel=1e-3), name


@pytest.mark.parametrize("engine", [*ENGINES, "torch bf16", "zero 2 bf16"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(ranks: Any, tmp_path: Path, engine: str) -> None:
    settings = (ENGINES | BF16)[engine]
    config = config_of(settings, SHARED, {"train.checkpoint_every": 2})
    folder = tmp_path / "broken" / "run"
    folder.mkdir(parents=True)

    def stopped() -> None:
        class Stopped(Exception):
            pass

        class Breaking(MixtureLm):
            def losses(self, model: Any, batch: Any, step: int) -> Any:
                if step == 4:
                    raise Stopped
                return super().losses(model, batch, step)

        run = Run(RunDir(folder))
        begin(config, run)
        with pytest.raises(Stopped):
            fit(Breaking(config, run), config, run)

    expected = Trained(ranks, tmp_path / "whole" / "run", settings, SHARED)
    ranks(stopped)
    found = ranks(_train, config, folder)[0]["final"]

    assert found == expected.final
    resumed = load_file(folder / "checkpoints" / "best" / "model.safetensors")
    for name, weights in load_file(expected.best).items():
        assert torch.equal(weights, resumed[name]), name


@pytest.mark.parametrize("engine", ["torch", "zero 2"])
def test_they_can_be_tried_out_before_the_first_update(
    ranks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Trained, engine: str
) -> None:
    """The first minute of a run on a GPU: each term of the loss goes back through the exchange on its own."""
    monkeypatch.setattr(loop._Loop, "_is_tried_out", lambda self: True)
    made = Trained(ranks, tmp_path / "launch" / "run", ENGINES[engine], SHARED)

    assert set(read_json(made.folder.first_minute)) == {"update", "evaluation", "checkpoint"}
    assert torch.tensor(made.curve) == pytest.approx(torch.tensor(whole.curve), rel=1e-5)


@pytest.mark.parametrize("engine", ["torch", "zero 0", "zero 1"])
def test_a_checkpoint_is_for_as_many_sharing_ranks_as_wrote_it(
    ranks: Any, tmp_path: Path, engine: str
) -> None:
    made = Trained(ranks, tmp_path / "launch" / "run", ENGINES[engine], SHARED)

    def resume() -> None:
        with pytest.raises(RunError, match=r"expert_parallel 2.* Resume with what wrote it"):
            begin(config_of(ENGINES[engine]), Run(made.folder))

    ranks(resume)


def test_the_best_weights_hold_every_expert_and_fit_any_number_of_sharing_ranks(
    ranks: Any, tmp_path: Path, whole: Trained, shared: Trained
) -> None:
    def measured(source: Trained, *changes: dict[str, Any]) -> float | None:
        folder = RunDir(tmp_path / "launch" / "run")
        folder.path.mkdir(parents=True, exist_ok=True)
        config = config_of(*changes)
        begin(config, Run(folder))
        made = MixtureLm(config, Run(folder))
        load_weights(made.model, source.best)
        return made.evaluate(made.model.eval(), 5, "final")["test_nll"].value

    alone = ranks(measured, shared, world_size=1)
    together = ranks(measured, whole, SHARED)

    assert alone == [pytest.approx(shared.final["test_nll"]["value"], rel=1e-6)]
    assert together == [pytest.approx(whole.final["test_nll"]["value"], rel=1e-6)] * 2


def test_parameters_are_counted_wherever_they_are(whole: Trained, shared: Trained) -> None:
    counted = [
        list(read_jsonl(run.folder.path / "experts.jsonl"))[-1]["parameters"] for run in (whole, shared)
    ]

    assert counted[0] == counted[1]


def test_a_rank_holds_its_share_alone_and_a_token_meets_as_many_weights(ranks: Any, tmp_path: Path) -> None:
    def held(*changes: dict[str, Any]) -> tuple[list[tuple[int, ...]], int]:
        config, folder = config_of(*changes), RunDir(tmp_path / "launch" / "run")
        folder.path.mkdir(parents=True, exist_ok=True)
        begin(config, Run(folder))
        made = MixtureLm(config, Run(folder))
        ups = [tuple(p.shape) for name, p in made.model.named_parameters() if name.endswith("experts.up")]
        return ups, made.matrices_per_token()

    ((_, expected), _), *both = ranks(held), *ranks(held, SHARED)

    assert both == [([(2, 24, 48)] * 2, expected)] * 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mixture.expert_parallel": 3}, "4 experts cannot be shared equally; make it a divisor"),
        (SHARED | {"mixture.dispatch.kind": "loop"}, "write dropless or padded"),
        (
            SHARED | ENGINES["zero 1"] | {"train": {"engine": "deepspeed", "zero_stage": 3}},
            "write zero_stage: 2",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config_of(changes)


def test_ranks_that_make_no_whole_number_of_sets_are_refused(ranks: Any, tmp_path: Path) -> None:
    def start() -> None:
        with pytest.raises(ConfigError, match=r"is 2, but the ranks are 1: .* divisor of the number"):
            begin(config_of(SHARED), Run(RunDir(tmp_path)))

    ranks(start, world_size=1)
