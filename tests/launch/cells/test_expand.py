"""Specs to cells: exactly which runs, under which names, and ids that follow from what they compute alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from textwrap import dedent

import pytest
import yaml
from golden_specs import BASES, DEFAULTS, GOLDEN, identify, spec_text

from latentbridge.errors import ConfigError
from latentbridge.launch.cells.expand import read_cells


@pytest.fixture
def expanded(write_spec, project):
    """Cells of a spec's text, with the bases of golden_specs beside it."""
    for name, text in BASES.items():
        write_spec(text, name=name)

    def expand_text(text, settings=()):
        path = project / "configs" / "golden.yaml"
        path.write_text(text)
        return read_cells(path, list(settings), project)[1]

    return expand_text


def named(cells):
    return {cell.name: cell.id for cell in cells}


def test_there_are_forty_golden_cases():
    assert len(GOLDEN) >= 40


@pytest.mark.parametrize("case", GOLDEN)
def test_a_spec_becomes_exactly_these_runs_in_this_order_with_these_ids(case, expanded):
    made = named(expanded(spec_text(case)))

    assert list(made.items()) == list(identify(GOLDEN[case][1]).items())


def turned_round(value):
    """The same mappings, their keys in reverse; the order of a list means something and stays."""
    if isinstance(value, dict):
        return {key: turned_round(value[key]) for key in reversed(value)}
    return [turned_round(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", GOLDEN)
def test_neither_key_order_nor_comments_nor_whitespace_change_an_id(case, expanded):
    text = spec_text(case)
    ids = named(expanded(text))
    block = yaml.safe_dump(yaml.safe_load(text), sort_keys=False)
    spaced = re.sub(r"$", r"  # as before\n", f"\n{block}", flags=re.MULTILINE)
    flow = yaml.safe_dump(yaml.safe_load(text), sort_keys=False, default_flow_style=True, width=20)
    reordered = yaml.safe_dump(turned_round(yaml.safe_load(text)), sort_keys=False)

    assert named(expanded(spaced)) == ids
    assert named(expanded(flow)) == ids
    assert sorted(named(expanded(reordered)).values()) == sorted(ids.values())


def test_the_hash_seed_of_the_process_changes_neither_names_nor_ids_nor_their_order(expanded, project):
    here = {}
    for number, case in enumerate(GOLDEN):
        here[str(number)] = list(named(expanded(spec_text(case))).items())
        (project / "configs" / f"{number}.yaml").write_text(spec_text(case))
    script = (
        "import json, sys; from pathlib import Path\n"
        "from latentbridge.launch.cells.expand import read_cells\n"
        "root = Path(sys.argv[1])\n"
        "files = [root / 'configs' / f'{number}.yaml' for number in range(int(sys.argv[2]))]\n"
        "made = {file.stem: [(c.name, c.id) for c in read_cells(file, [], root)[1]] for file in files}\n"
        "print(json.dumps(made))"
    )
    for seed in ("0", "7"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(project), str(len(GOLDEN))],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == json.loads(json.dumps(here))


def test_needs_pair_runs_of_one_seed(expanded):
    cells = expanded(spec_text("needs change no id"))

    assert {cell.name: cell.needs for cell in cells}["two-s2"] == ("one-s2",)
    assert {cell.name: cell.needs for cell in cells}["one-s1"] == ()


def test_a_reference_needs_every_seed_of_its_cells(expanded):
    best = expanded(spec_text("a reference over seeds"))[-1]

    assert best.needs == ("c_1-s1", "c_1-s2")
    assert best.best_of["steps"].candidates == ("c_1",)


def test_the_id_of_a_reference_follows_what_its_cells_compute_and_not_their_names(expanded):
    spec = spec_text("a reference")
    before = named(expanded(spec))

    renamed = named(expanded(spec.replace("c_", "other_")))
    changed = named(expanded(spec.replace("steps: 6", "steps: 7")))

    assert renamed["best"] == before["best"]
    assert changed["best"] != before["best"]


def test_another_metric_or_mode_is_another_reference(expanded):
    spec = spec_text("a reference")

    ids = {
        named(
            expanded(spec.replace("metric: loss", f"metric: {metric}").replace("mode: min", f"mode: {mode}"))
        )["best"]
        for metric in ("loss", "score")
        for mode in ("min", "max")
    }

    assert len(ids) == 4


def test_the_config_of_a_reference_shows_it_as_written_until_somebody_won(expanded):
    best = expanded(spec_text("a reference"))[-1]

    assert best.settings == {
        **DEFAULTS,
        "steps": {"best_of": "c_*", "metric": "loss", "mode": "min"},
    }
    assert best.overrides == {"steps": {"best_of": "c_*", "metric": "loss", "mode": "min"}}
    assert best.config.steps == 4  # as if the first had won


def test_set_goes_on_top_of_every_cell_and_of_references(expanded):
    spec = "runs: {a: {steps: 4}, b: {steps: {best_of: a, metric: loss, mode: min}, step_s: 0.5}}"

    cells = expanded(f"name: s\njob: count\n{spec}\n", ["steps=7"])

    assert [(cell.config.steps, cell.best_of, cell.needs) for cell in cells] == [(7, {}, ()), (7, {}, ())]
    assert cells[1].config.step_s == 0.5


def test_set_takes_lists_and_refuses_a_seed_beside_seeds(expanded):
    text = "name: s\njob: count\nseeds: [3]\nruns: {a: {source.model: x, target.model: y}}\n"

    (cell,) = expanded(text, ["swap=[source, target]"])

    assert (cell.config.source.model, cell.config.target.model) == ("y", "x")
    with pytest.raises(ConfigError, match="--set seed: the spec lists seeds"):
        expanded(text, ["seed=4"])


def test_a_reference_set_for_all_cells_goes_in_a_circle(expanded):
    with pytest.raises(ConfigError, match=r"--set steps=.*: 'c_1' needs itself: c_1 -> c_2 -> c_1"):
        expanded(
            "name: s\njob: count\nruns: {c_1: {step_s: 0.1}, c_2: {step_s: 0.2}}\n",
            ["steps={best_of: 'c_*', metric: loss, mode: min}"],
        )


def test_a_run_s_own_resources_go_on_top_of_the_spec_s(expanded):
    one, two = expanded(spec_text("resources are no setting"))

    assert one.resources.values == {"nodes": 3}
    assert two.resources.values == {"nodes": 4}


def test_five_thousand_named_runs_keep_their_own_lines(expanded):
    runs = "".join(f"  r{index}: {{steps: {index + 1}}}\n" for index in range(5000))

    cells = expanded(f"name: s\njob: count\nruns:\n{runs}")

    assert len({cell.id for cell in cells}) == 5000
    with pytest.raises(ConfigError, match=r"golden.yaml:4711: run 'r4707': 'steps' is 'x'"):
        expanded(f"name: s\njob: count\nruns:\n{runs.replace('r4707: {steps: 4708}', 'r4707: {steps: x}')}")


def test_a_mistake_of_many_cells_is_told_once(expanded):
    with pytest.raises(ConfigError) as caught:
        expanded("name: s\njob: count\ngrid:\n  steps: [4, x]\n  fail_times: [1, 2, 3, 4, 5]\n")

    (line,) = str(caught.value).splitlines()
    assert line.startswith("configs/golden.yaml:4: run 'steps=x_fail_times=1' and 4 more: 'steps' is 'x'")


def test_one_pass_tells_what_is_wrong_with_the_spec_its_cells_and_what_they_refer_to(expanded):
    with pytest.raises(ConfigError) as caught:
        expanded(
            dedent("""\
            name: s
            job: count
            sead: 3
            retry: {oom: -1}
            runs:
              one: {stebs: 4}
              two: {steps: {best_of: 'on', metric: loss, mode: min}}
              three: {source.model: {best_of: '*', metric: loss}}
            needs: {two: [too]}
            compare: [{baseline: one, against: [tree], metric: loss}]
            """)
        )

    lines = [line.split(":")[1] for line in str(caught.value).splitlines()]
    assert lines == ["3", "4", "6", "7", "8", "9", "10"]


def test_a_candidate_that_cannot_be_made_is_told_once_and_not_again_by_who_refers_to_it(expanded):
    with pytest.raises(ConfigError) as caught:
        expanded(spec_text("a reference").replace("steps: 6", "steps: x"))

    (line,) = str(caught.value).splitlines()
    assert "run 'c_2': 'steps' is 'x' (text)" in line
