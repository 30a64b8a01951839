"""Specs to cells: exactly which runs, under which names, and ids that follow from what they compute alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from copy import deepcopy
from textwrap import dedent

import pytest
import yaml

from latentbridge.errors import ConfigError
from latentbridge.launch.cells.expand import read_cells

# what jobs/count.py computes where nobody says otherwise
DEFAULTS = {
    "seed": 1234,
    "steps": 3,
    "step_s": 0.0,
    "fail_at": None,
    "fail_times": 1,
    "fail_rank": None,
    "source": {"model": "a"},
    "target": {"model": "b"},
}
BASES = {
    "half": "steps: 8\nsource: {model: big}\n",
    "quarter": "base: half\nstep_s: 0.25\nsource.model: small\n",
    "chooser": "steps: {best_of: 'c_*', metric: loss, mode: min}\n",
}

# a spec, and for every run, in order, what it computes differently from DEFAULTS
GOLDEN = {
    "a spec that says nothing": ("", {"s": {}}),
    "seeds alone": ("seeds: [1, 2]", {"s-s1": {"seed": 1}, "s-s2": {"seed": 2}}),
    "one run": ("runs: {one: {}}", {"one": {}}),
    "named runs": (
        "runs: {one: {steps: 4}, two: {steps: 5, step_s: 0.5}}",
        {"one": {"steps": 4}, "two": {"steps": 5, "step_s": 0.5}},
    ),
    "a dotted key": ("runs: {one: {source.model: x}}", {"one": {"source.model": "x"}}),
    "a nested mapping": ("runs: {one: {source: {model: x}}}", {"one": {"source.model": "x"}}),
    "two ways in one run": (
        "runs: {one: {source: {model: x}, target.model: y}}",
        {"one": {"source.model": "x", "target.model": "y"}},
    ),
    "an empty mapping": ("runs: {one: {source: {}, steps: 4}}", {"one": {"steps": 4}}),
    "null": ("runs: {one: {fail_at: null, steps: 4}}", {"one": {"steps": 4}}),
    "a base": ("base: half", {"s": {"steps": 8, "source.model": "big"}}),
    "a base with a base": ("base: quarter", {"s": {"steps": 8, "step_s": 0.25, "source.model": "small"}}),
    "runs on a base": (
        "base: half\nruns: {one: {steps: 9}, two: {}}",
        {"one": {"steps": 9, "source.model": "big"}, "two": {"steps": 8, "source.model": "big"}},
    ),
    "runs and seeds": (
        "seeds: [7, 3]\nruns: {one: {}, two: {steps: 4}}",
        {
            "one-s7": {"seed": 7},
            "one-s3": {"seed": 3},
            "two-s7": {"seed": 7, "steps": 4},
            "two-s3": {"seed": 3, "steps": 4},
        },
    ),
    "a grid": ("grid: {steps: [4, 6]}", {"steps=4": {"steps": 4}, "steps=6": {"steps": 6}}),
    "a grid of two": (
        "grid: {steps: [4, 6], step_s: [0.1, 0.2]}",
        {
            "steps=4_step_s=0.1": {"steps": 4, "step_s": 0.1},
            "steps=4_step_s=0.2": {"steps": 4, "step_s": 0.2},
            "steps=6_step_s=0.1": {"steps": 6, "step_s": 0.1},
            "steps=6_step_s=0.2": {"steps": 6, "step_s": 0.2},
        },
    ),
    "a grid with one value each": (
        "grid: {steps: [4], step_s: [0.1], fail_times: [2]}",
        {"steps=4_step_s=0.1_fail_times=2": {"steps": 4, "step_s": 0.1, "fail_times": 2}},
    ),
    "a grid over a nested key": (
        "grid: {source.model: [x, y]}",
        {"model=x": {"source.model": "x"}, "model=y": {"source.model": "y"}},
    ),
    "a grid over paths": (
        'grid: {source.model: ["org/name", "a b"]}',
        {"model=org-name": {"source.model": "org/name"}, "model=a-b": {"source.model": "a b"}},
    ),
    "a grid with null": ("grid: {fail_at: [null, 2]}", {"fail_at=None": {}, "fail_at=2": {"fail_at": 2}}),
    "a grid over mappings": (
        "grid: {source: [{model: x}, {model: y}]}",
        {"source=model-x": {"source.model": "x"}, "source=model-y": {"source.model": "y"}},
    ),
    "a grid over the seed": ("grid: {seed: [5, 6]}", {"seed=5": {"seed": 5}, "seed=6": {"seed": 6}}),
    "numbers in other spellings": (
        "grid: {step_s: [1e-2, .5, 1]}",
        {"step_s=0.01": {"step_s": 0.01}, "step_s=0.5": {"step_s": 0.5}, "step_s=1": {"step_s": 1.0}},
    ),
    "a zip": (
        "zip: {steps: [4, 6], step_s: [0.1, 0.2]}",
        {
            "steps=4_step_s=0.1": {"steps": 4, "step_s": 0.1},
            "steps=6_step_s=0.2": {"steps": 6, "step_s": 0.2},
        },
    ),
    "a grid and a zip": (
        "grid: {fail_times: [2, 5]}\nzip: {steps: [4, 6], step_s: [0.1, 0.2]}",
        {
            "fail_times=2_steps=4_step_s=0.1": {"fail_times": 2, "steps": 4, "step_s": 0.1},
            "fail_times=2_steps=6_step_s=0.2": {"fail_times": 2, "steps": 6, "step_s": 0.2},
            "fail_times=5_steps=4_step_s=0.1": {"fail_times": 5, "steps": 4, "step_s": 0.1},
            "fail_times=5_steps=6_step_s=0.2": {"fail_times": 5, "steps": 6, "step_s": 0.2},
        },
    ),
    "runs and a grid": (
        "runs: {plain: {}, slow: {step_s: 0.5}}\ngrid: {steps: [4, 6]}",
        {
            "plain_steps=4": {"steps": 4},
            "plain_steps=6": {"steps": 6},
            "slow_steps=4": {"steps": 4, "step_s": 0.5},
            "slow_steps=6": {"steps": 6, "step_s": 0.5},
        },
    ),
    "runs and a zip": (
        "runs: {plain: {}, slow: {step_s: 0.5}}\nzip: {steps: [4], fail_times: [2]}",
        {
            "plain_steps=4_fail_times=2": {"steps": 4, "fail_times": 2},
            "slow_steps=4_fail_times=2": {"steps": 4, "fail_times": 2, "step_s": 0.5},
        },
    ),
    "runs, a grid, a zip and seeds": (
        "seeds: [2]\nruns: {one: {fail_rank: 0}}\ngrid: {steps: [4]}\nzip: {step_s: [0.1, 0.2]}",
        {
            "one_steps=4_step_s=0.1-s2": {"seed": 2, "fail_rank": 0, "steps": 4, "step_s": 0.1},
            "one_steps=4_step_s=0.2-s2": {"seed": 2, "fail_rank": 0, "steps": 4, "step_s": 0.2},
        },
    ),
    "an exclude rule": (
        "grid: {steps: [4, 6, 9]}\nexclude: [{steps: 6}]",
        {"steps=4": {"steps": 4}, "steps=9": {"steps": 9}},
    ),
    "an exclude rule with two keys": (
        "grid: {steps: [4, 6], step_s: [0.1, 0.2]}\nexclude: [{step_s: 0.2, steps: 4}]",
        {
            "steps=4_step_s=0.1": {"steps": 4, "step_s": 0.1},
            "steps=6_step_s=0.1": {"steps": 6, "step_s": 0.1},
            "steps=6_step_s=0.2": {"steps": 6, "step_s": 0.2},
        },
    ),
    "two exclude rules": (
        "grid: {steps: [4, 6], step_s: [0.1, 0.2]}\nexclude: [{steps: 4}, {step_s: 0.2}]",
        {"steps=6_step_s=0.1": {"steps": 6, "step_s": 0.1}},
    ),
    "an exclude rule that meets a run's own setting": (
        "runs: {plain: {}, slow: {step_s: 0.5}}\ngrid: {steps: [4, 6]}\nexclude: [{step_s: 0.5, steps: 6}]",
        {
            "plain_steps=4": {"steps": 4},
            "plain_steps=6": {"steps": 6},
            "slow_steps=4": {"steps": 4, "step_s": 0.5},
        },
    ),
    "an exclude rule written as a mapping": (
        "grid: {source.model: [x, y]}\nexclude: [{source: {model: x}}]",
        {"model=y": {"source.model": "y"}},
    ),
    "an include beside a grid": (
        "grid: {steps: [4]}\ninclude: [{steps: 9, step_s: 0.5}]",
        {"steps=4": {"steps": 4}, "steps=9_step_s=0.5": {"steps": 9, "step_s": 0.5}},
    ),
    "a named include": (
        "grid: {steps: [4]}\ninclude: [{name: long, steps: 900}]",
        {"steps=4": {"steps": 4}, "long": {"steps": 900}},
    ),
    "an include for every run": (
        "runs: {plain: {}, slow: {step_s: 0.5}}\ninclude: [{name: long, steps: 900}]",
        {
            "plain": {},
            "plain_long": {"steps": 900},
            "slow": {"step_s": 0.5},
            "slow_long": {"steps": 900, "step_s": 0.5},
        },
    ),
    "an include that a rule would exclude": (
        "grid: {steps: [4, 6]}\nexclude: [{steps: 6}]\ninclude: [{steps: 6, step_s: 0.5}]",
        {"steps=4": {"steps": 4}, "steps=6_step_s=0.5": {"steps": 6, "step_s": 0.5}},
    ),
    "includes alone, with seeds": (
        "seeds: [8]\ninclude: [{steps: 4}, {name: x, source: {model: x}}]",
        {"steps=4-s8": {"seed": 8, "steps": 4}, "x-s8": {"seed": 8, "source.model": "x"}},
    ),
    "swap": (
        "base: half\nruns: {there: {}, back: {swap: [source, target], target.model: t}}",
        {
            "there": {"steps": 8, "source.model": "big"},
            # the settings are merged first, then exchanged
            "back": {"steps": 8, "source.model": "t", "target.model": "big"},
        },
    ),
    "swap and a grid": (
        "base: quarter\nruns: {back: {swap: [source, target], target: {model: c}}}\n"
        "grid: {source.model: [x, y]}",
        {
            "back_model=x": {"steps": 8, "step_s": 0.25, "source.model": "c", "target.model": "x"},
            "back_model=y": {"steps": 8, "step_s": 0.25, "source.model": "c", "target.model": "y"},
        },
    ),
    "resources are no setting": (
        "resources: {nodes: 2}\nruns: {one: {resources.nodes: 3}, two: {steps: 4, resources: {nodes: 4}}}",
        {"one": {}, "two": {"steps": 4}},
    ),
    "needs change no id": (
        "seeds: [1, 2]\nruns: {one: {}, two: {steps: 4}}\nneeds: {two: [one]}",
        {
            "one-s1": {"seed": 1},
            "one-s2": {"seed": 2},
            "two-s1": {"seed": 1, "steps": 4},
            "two-s2": {"seed": 2, "steps": 4},
        },
    ),
    "a reference": (
        "runs: {c_1: {steps: 4}, c_2: {steps: 6}, best: {steps: {best_of: 'c_*', metric: loss, mode: min}}}",
        {"c_1": {"steps": 4}, "c_2": {"steps": 6}, "best": {"steps": ("c_1", "c_2")}},
    ),
    "a reference over seeds": (
        "seeds: [1, 2]\nruns: {c_1: {steps: 4}, best: {steps: {best_of: c_1, metric: loss, mode: min}}}",
        {
            "c_1-s1": {"seed": 1, "steps": 4},
            "c_1-s2": {"seed": 2, "steps": 4},
            "best-s1": {"seed": 1, "steps": ("c_1-s1", "c_1-s2")},
            "best-s2": {"seed": 2, "steps": ("c_1-s1", "c_1-s2")},
        },
    ),
    "a reference before its cells, and inside a mapping": (
        "runs: {best: {source: {model: {best_of: 'c_*', metric: loss, mode: min}}}, c_1: {source.model: x}}",
        {"best": {"source.model": ("c_1",)}, "c_1": {"source.model": "x"}},
    ),
    "a reference of a base": (
        "base: chooser\nruns: {c_1: {steps: 4}, c_2: {steps: 6}, best: {}, slow: {step_s: 0.5}}",
        {
            "c_1": {"steps": 4},
            "c_2": {"steps": 6},
            "best": {"steps": ("c_1", "c_2")},
            "slow": {"steps": ("c_1", "c_2"), "step_s": 0.5},
        },
    ),
    "a reference in a grid": (
        "grid: {steps: [4, {best_of: 'steps=4', metric: loss, mode: min}]}",
        {"steps=4": {"steps": 4}, "steps=best_of-steps-4": {"steps": ("steps=4",)}},
    ),
    "a reference in an include, by a pattern that fits itself": (
        "grid: {steps: [4]}\ninclude: [{name: best, steps: {best_of: '*', metric: loss, mode: min}}]",
        {"steps=4": {"steps": 4}, "best": {"steps": ("steps=4",)}},
    ),
    "a reference to cells that refer": (
        "runs:\n"
        "  c_1: {steps: 4}\n"
        "  c_2: {steps: 6}\n"
        "  d_1: {steps: {best_of: 'c_*', metric: loss, mode: min}, step_s: 0.1}\n"
        "  d_2: {steps: {best_of: 'c_*', metric: loss, mode: min}, step_s: 0.2}\n"
        "  last:\n"
        "    steps: {best_of: 'd_*', metric: loss, mode: min}\n"
        "    step_s: {best_of: 'd_*', metric: loss, mode: min}\n",
        {
            "c_1": {"steps": 4},
            "c_2": {"steps": 6},
            "d_1": {"steps": ("c_1", "c_2"), "step_s": 0.1},
            "d_2": {"steps": ("c_1", "c_2"), "step_s": 0.2},
            "last": {"steps": ("d_1", "d_2"), "step_s": ("d_1", "d_2")},
        },
    ),
}


def identify(golden: dict[str, dict]) -> dict[str, str]:
    """Every run's id, worked out from the definition: the hash of all that it computes."""
    ids: dict[str, str] = {}

    def id_of(name: str) -> str:
        if name not in ids:
            config = deepcopy(DEFAULTS)
            for key, value in golden[name].items():
                *way, last = key.split(".")
                place = config
                for part in way:
                    place = place[part]
                if isinstance(value, tuple):
                    value = {"best_of": sorted(map(id_of, value)), "metric": "loss", "mode": "min"}
                place[last] = value
            text = json.dumps({"job": "count", "config": config}, sort_keys=True, separators=(",", ":"))
            ids[name] = hashlib.sha256(text.encode()).hexdigest()[:12]
        return ids[name]

    return {name: id_of(name) for name in golden}


def spec_text(case: str) -> str:
    return f"name: s\njob: count\n{GOLDEN[case][0]}\n"


@pytest.fixture
def expanded(write_spec, project):
    """Cells of a spec's text, with the bases of this file beside it."""
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
