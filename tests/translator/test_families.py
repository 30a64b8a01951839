"""The published families of ablations as specs that ship, and the bases that they and others start from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from latentbridge.config import Origin, build, config_id, dump
from latentbridge.launch.plan import make_plan
from latentbridge.launch.spec import read_base
from latentbridge.translator.config import TranslatorConfig

CONFIGS = Path(__file__).parents[2] / "configs"
BASES = sorted(path.stem for path in (CONFIGS / "translator").glob("*.yaml"))
FAMILIES = [
    "token_length",
    "stability",
    "bridge_kinds",
    "teachers",
    "injection",
    "layer_grid",
    "phase1_b_c",
    "push",
    "direction",
]
SEEDS = (1234, 1235, 1236)


def comment(spec: str) -> str:
    text = (CONFIGS / f"{spec}.yaml").read_text()
    return text[: text.index("\nname: ")]


def settings_by_cell(spec: str) -> dict[str, dict[str, Any]]:
    """Every setting of each cell's first run."""
    cells = make_plan(spec, cluster=None, settings=[], root=CONFIGS.parent).cells
    return {cell.cell: dump(cell.config) for cell in cells if cell.config.seed == SEEDS[0]}


def differing(first: Any, second: Any, key: str = "") -> set[str]:
    """Dotted keys of settings that differ; of a mapping that only one side has, its own."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return set() if first == second else {key}
    return set().union(*(differing(first[k], second[k], f"{key}.{k}".lstrip(".")) for k in first))


def base_config(name: str) -> TranslatorConfig:
    return build(TranslatorConfig, read_base(f"translator/{name}", CONFIGS.parent, Origin("test", 0)))


@pytest.mark.parametrize("spec", FAMILIES)
def test_a_family_has_the_cells_that_its_comment_counts_three_seeds_each_and_no_two_alike(spec):
    cells = make_plan(spec, cluster=None, settings=[], root=CONFIGS.parent).cells
    counted = re.search(r"Cost: (\d+) cells x 3 seeds", comment(spec))

    assert counted and int(counted[1]) == len({cell.cell for cell in cells})
    assert len({cell.id for cell in cells}) == len(cells) == 3 * int(counted[1])
    assert {cell.config.seed for cell in cells} == {*SEEDS}


def test_every_base_is_a_whole_config_and_no_two_are_one_experiment():
    assert len({config_id("translator", base_config(name)) for name in BASES}) == len(BASES)


def test_phase_1_b_and_c_differ_in_exactly_the_keys_that_the_comment_names():
    cells = settings_by_cell("phase1_b_c")
    names = ("B to C", "ablB_kl_only", "ablC_kl_prompt"), ("C to phase 1", "ablC_kl_prompt", "phase1_all_fix")
    for step, first, second in names:
        (named,) = re.findall(rf"^# +{step} +(.*)$", comment("phase1_b_c"), re.MULTILINE)
        assert differing(cells[first], cells[second]) == set(re.findall(r"[a-z_]+(?:\.\w+)+|teacher", named))


def test_the_stability_family_takes_one_fix_at_a_time():
    stable, *others = settings_by_cell("stability").values()

    assert sorted(len(differing(stable, other)) for other in others) == [1] * 6
