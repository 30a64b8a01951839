from __future__ import annotations

from typing import Any

from latentbridge.config import Config, JobConfig, dump
from latentbridge.rehearsal.ablation import Ablation, Cell, leaves


class Layer(Config):
    width: int = 8
    gain: float = 1.0
    kind: str = "plain"


class Settings(JobConfig):
    """gain counts where kind is `gated`; width shrinks to an even number; workers change nothing computed."""

    layer: Layer = Layer()
    left: str = "A"
    right: str = "B"
    workers: int = 1
    steps: int = 10


def fingerprint(config: Any) -> str:
    layer = config.layer
    gain = layer.gain if layer.kind == "gated" else None
    return repr((layer.width // 2, gain, layer.kind, config.left, config.right, config.steps))


def shrink(config: Any) -> dict[str, Any]:
    return dump(config.model_copy(update={"layer": config.layer.model_copy(update={"width": 2})}))


ABLATION = Ablation(Settings, fingerprint, shrink, engineering=("workers",), protocol=("steps",))
BASE = dump(Settings())


def cell(name: str, overrides: dict[str, Any], swap: tuple[str, str] | None = None) -> Cell:
    layer = Layer(**{key.split(".")[1]: value for key, value in overrides.items() if "." in key})
    settings = Settings(layer=layer, **{key: value for key, value in overrides.items() if "." not in key})
    if swap:
        settings = settings.model_copy(update={"left": "B", "right": "A"})
    return Cell([name], dump(settings), shrink(settings), list(overrides), swap)


def test_two_cells_that_compute_the_same_are_found_with_the_keys_that_feign_a_difference():
    """Three published ablations differed in one flag, and that flag did nothing."""
    first, second = cell("a", {"layer.gain": 2.0}), cell("b", {"layer.gain": 3.0})
    other = cell("c", {"layer.kind": "gated"})

    assert list(ABLATION.same([first, second, other])) == [(first, second, ["layer.gain"])]


def test_cells_that_differ_in_how_they_are_run_or_only_at_full_size_are_no_twins():
    assert list(ABLATION.same([cell("a", {}), cell("b", {"workers": 2})])) == []
    # 8 and 9 are one width on the tiny models: nothing is proven
    assert list(ABLATION.same([cell("a", {}), cell("b", {"layer.width": 9})])) == []


def test_an_override_without_effect_is_found_beside_those_that_have_one():
    dead = cell("a", {"layer.gain": 2.0, "left": "C", "steps": 20, "workers": 4})
    alive = cell("b", {"layer.gain": 2.0, "layer.kind": "gated"})

    assert list(ABLATION.idle(dead, BASE)) == ["layer.gain"]
    assert list(ABLATION.idle(alive, BASE)) == []


def test_a_swap_counts_as_an_override():
    assert list(ABLATION.idle(cell("a", {}, swap=("left", "right")), BASE)) == []
    same = Ablation(Settings, lambda _: "always", shrink, (), ())

    assert list(same.idle(cell("a", {}, swap=("left", "right")), BASE)) == ["swap"]


def test_leaves_are_named_by_their_dotted_keys():
    assert leaves({"a": {"b": 1, "c": {"d": [2, 3]}}, "e": None}) == {"a.b": 1, "a.c.d": [2, 3], "e": None}
