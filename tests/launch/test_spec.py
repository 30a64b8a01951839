"""Specs to cells: what runs, under which names and ids, and which mistakes are refused where."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from latentbridge.errors import ConfigError
from latentbridge.launch.spec import expand, parse_settings, read_spec


def cells(path, project, settings=()):
    spec, tree = read_spec(path, project)
    return expand(spec, tree, parse_settings(list(settings)), project)


def test_runs_cross_grid_zip_and_seeds(write_spec, project):
    path = write_spec("""
        name: sweep
        job: count
        seeds: [1, 2]
        runs: {plain: {}, slow: {step_s: 0.5}}
        grid: {steps: [4, 6, 9]}
        zip: {source.model: [x, y], target.model: [v, w]}
        """)

    made = cells(path, project)

    assert len(made) == 2 * 3 * 2 * 2
    assert len({cell.id for cell in made}) == 24
    one = next(cell for cell in made if cell.name == "slow_steps=6_model=y_model=w-s2")
    assert (one.config.steps, one.config.step_s, one.config.seed) == (6, 0.5, 2)
    assert (one.config.source.model, one.config.target.model) == ("y", "w")


def test_exclude_leaves_out_the_cells_that_match_every_key(write_spec, project):
    path = write_spec("""
        name: sweep
        job: count
        grid: {steps: [4, 6], step_s: [0.1, 0.2, 0.3]}
        exclude:
          - {steps: 4, step_s: 0.2}
        """)

    assert [cell.name for cell in cells(path, project)] == [
        "steps=4_step_s=0.1",
        "steps=4_step_s=0.3",
        "steps=6_step_s=0.1",
        "steps=6_step_s=0.2",
        "steps=6_step_s=0.3",
    ]


def test_swap_exchanges_source_and_target(write_spec, project):
    write_spec("source: {model: small}\ntarget: {model: large}", name="pair")
    path = write_spec("name: s\njob: count\nbase: pair\nruns: {forward: {}, back: {swap: [source, target]}}")

    forward, back = cells(path, project)

    assert (forward.config.source.model, back.config.source.model) == ("small", "large")
    assert back.config.target.model == "small"


def test_ids_do_not_depend_on_key_order_comments_names_or_the_way_a_key_is_written(write_spec, project):
    one = write_spec("name: s\njob: count\nruns: {a: {steps: 4, source.model: x}}", name="one")
    two = write_spec(
        """
        job: count       # the same, told differently
        runs:
          other_name:
            source: {model: x}
            steps: 4
        name: t
        """,
        name="two",
    )

    assert cells(one, project)[0].id == cells(two, project)[0].id


def test_ids_do_not_depend_on_the_hash_seed_of_the_process(write_spec, project):
    path = write_spec("name: s\njob: count\ngrid: {steps: [4, 6], step_s: [0.1, 0.2]}")
    script = (
        "import json, sys; from pathlib import Path; from latentbridge.launch.spec import *\n"
        "root = Path(sys.argv[2]); spec, tree = read_spec(Path(sys.argv[1]), root)\n"
        "print(json.dumps([c.id for c in expand(spec, tree, parse_settings([]), root)]))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", script, str(path), str(project)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert len(seen) == 1
    assert len(set(json.loads(seen.pop()))) == 4


def test_the_seeds_of_the_seed_three_names_for_one_experiment_are_refused(write_spec, project):
    path = write_spec("""
        name: ablations
        job: count
        runs:
          ablation_b: {steps: 4}
          ablation_c: {steps: 4, step_s: 0.0}
        """)

    with pytest.raises(ConfigError, match=r"spec.yaml:5: runs 'ablation_b' and 'ablation_c' have the same"):
        cells(path, project)


def test_set_goes_on_top_of_every_cell(write_spec, project):
    path = write_spec("name: s\njob: count\nruns: {a: {steps: 4}, b: {steps: 5, step_s: 0.5}}")

    made = cells(path, project, ["steps=7"])

    assert [cell.config.steps for cell in made] == [7, 7]
    assert made[1].config.step_s == 0.5


def test_set_takes_lists_and_refuses_a_seed_beside_seeds(write_spec, project):
    write_spec("source: {model: x}\ntarget: {model: y}", name="pair")
    path = write_spec("name: s\njob: count\nbase: pair\nseeds: [3]")

    (cell,) = cells(path, project, ["swap=[source, target]"])

    assert cell.config.source.model == "y"
    with pytest.raises(ConfigError, match="--set seed: the spec lists seeds"):
        cells(path, project, ["seed=4"])


def test_resources_are_no_part_of_the_id(write_spec, project):
    path = write_spec("name: s\njob: count\nseeds: [3]\nruns: {a: {steps: 4}}", name="one")
    wide = write_spec(
        "name: s\njob: count\nseeds: [3]\nruns: {a: {steps: 4, resources.nodes: 2}}", name="two"
    )

    (narrow,), (two_nodes,) = cells(path, project), cells(wide, project)

    assert narrow.id == two_nodes.id
    assert two_nodes.resources.values == {"nodes": 2}


MISTAKES = {
    "unknown top-level key": (
        "name: s\njob: count\nsead: [1]",
        r"spec.yaml:3: unknown key 'sead'; did you mean 'seeds'",
    ),
    "unknown setting": (
        "name: s\njob: count\nruns:\n  a: {stebs: 4}",
        r"spec.yaml:4: run 'a': unknown key 'stebs'; did you mean 'steps'",
    ),
    "unknown nested setting": (
        "name: s\njob: count\nruns:\n  a:\n    source.modle: x",
        r"spec.yaml:5: run 'a': unknown key 'source.modle'; did you mean 'model'",
    ),
    "number written as text": (
        'name: s\njob: count\nruns:\n  a: {steps: "32"}',
        r"spec.yaml:4: run 'a': 'steps' is '32' \(text\); .* write 32 without quotes",
    ),
    "yaml 1.1 boolean": (
        "name: s\njob: count\nruns:\n  a: {steps: off}",
        r"spec.yaml:4: .*'steps' is 'off' \(text\)",
    ),
    "unknown job": ("name: s\njob: coumt", r"spec.yaml:2: there is no jobs/coumt.py; did you mean 'count'"),
    "unknown base": ("name: s\njob: count\nbase: nope", r"spec.yaml:3: there is no base configs/nope.yaml"),
    "duplicate key": (
        "name: s\njob: count\nname: t",
        r"spec.yaml:3: the key 'name' was already set in line 1",
    ),
    "unequal zip": (
        "name: s\njob: count\nzip:\n  steps: [1, 2]\n  step_s: [0.1]",
        r"spec.yaml:3: zip lists differ in length",
    ),
    "empty grid": ("name: s\njob: count\ngrid:\n  steps: []", r"spec.yaml:4: 'grid.steps' is empty"),
    "exclude that hits nothing": (
        "name: s\njob: count\ngrid: {steps: [1]}\nexclude:\n  - {steps: 2}",
        r"spec.yaml:5: exclude rule .* matches no cell",
    ),
    "need of an unknown run": (
        "name: s\njob: count\nruns: {one: {}, two: {steps: 9}}\nneeds:\n  two: [wan]",
        r"spec.yaml:5: no run is called 'wan'",
    ),
    "needs in a circle": (
        "name: s\njob: count\nruns: {one: {}, two: {steps: 9}}\nneeds:\n  one: [two]\n  two: [one]",
        r"spec.yaml:5: 'one' needs itself",
    ),
    "comparison with an unknown run": (
        "name: s\njob: count\nruns: {one: {}}\ncompare:\n  - {baseline: one, against: [too], metric: m}",
        r"spec.yaml:5: no run is called 'too'",
    ),
    "no YAML": ("name: [s", r"spec.yaml:\d+: not valid YAML"),
    "a list at the top": ("- name: s", r"spec.yaml:1: the top level must be a mapping"),
    "a name no folder could have": ("name: a/b\njob: count", r"spec.yaml:1: 'name' is 'a/b'"),
    "repeated seed": (
        "name: s\njob: count\nseeds:\n  [1, 1]",
        r"spec.yaml:3: runs 's-s1' and 's-s1' have the same",
    ),
    "override into a value": (
        "name: s\njob: count\nruns:\n  a: {steps: 4, steps.deep: 5}",
        r"spec.yaml:4: 'steps.deep' reaches into 'steps'",
    ),
    "one setting written twice in two ways": (
        "name: s\njob: count\nruns:\n  a:\n    source.model: x\n    source: {model: y}",
        r"spec.yaml:6: run 'a'|spec.yaml:6: 'source.model' was already set at configs/spec.yaml:5",
    ),
    "a run called like a folder of the launch": (
        "name: s\njob: count\nruns:\n  cache: {}",
        r"spec.yaml:4: a run may not be called 'cache'",
    ),
    "a run name that leads elsewhere": (
        "name: s\njob: count\nruns:\n  ../evil: {}",
        r"spec.yaml:4: a run may not be called '../evil'",
    ),
    "a rule broken inside a mapping that only the spec wrote": (
        "name: s\njob: count\nruns:\n  a:\n    nowhere.at.all: 1",
        r"spec.yaml:5: run 'a': unknown key 'nowhere'",
    ),
    "custom tag": ("name: !!python/object:os.system s\njob: count", r"spec.yaml:1: the tag"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_with_file_line_key_and_remedy(mistake, write_spec, project):
    text, complaint = MISTAKES[mistake]
    path = project / "configs" / "spec.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=complaint):
        cells(path, project)


def test_every_complaint_of_a_spec_is_told_at_once(write_spec, project):
    path = write_spec("name: s\njob: count\nruns:\n  a: {stebs: 4}\n  b: {steps: x}")

    with pytest.raises(ConfigError) as caught:
        cells(path, project)

    assert len(str(caught.value).splitlines()) == 2
